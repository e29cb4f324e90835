"""Places on any store: local paths and fsspec URLs alike."""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Iterator

import fsspec
from fsspec.core import url_to_fs

from pipeline.errors import ConservatorError, OutputError, SourceError
from pipeline.imaging.cells import redacted


def open_store(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The filesystem of a URI, and the path in it.

    Raises:
        SourceError: the scheme is unknown, or its driver is not installed.
    """
    try:
        store, path = url_to_fs(uri)
    except (ImportError, ValueError) as error:
        extra = "; pip install 'conservator[s3]'" if uri.startswith("s3") else ""
        raise SourceError(f"cannot open {redacted(uri)}: {error}{extra}") from error
    return store, path


def is_local(store: fsspec.AbstractFileSystem) -> bool:
    """Whether the store is this machine's own files."""
    protocol = store.protocol if isinstance(store.protocol, str) else store.protocol[0]
    return protocol in ("file", "local")


def join(folder: str, *names: str) -> str:
    """A path below a folder, on any store."""
    return posixpath.join(folder, *names)


@contextlib.contextmanager
def explained(uri: str, kind: type[SourceError] | type[OutputError]) -> Iterator[None]:
    """Turns what stores raise into an error that names the place and the remedy."""
    try:
        yield
    except PermissionError as error:
        raise kind(f"no access to {redacted(uri)}: {error}; check the credentials and the rights") from error
    except FileNotFoundError as error:
        raise kind(f"{redacted(uri)} does not exist ({error})") from error
    except ConservatorError:
        raise
    except Exception as error:  # drivers raise what their libraries do: no credentials, no such host, …
        raise kind(f"cannot use {redacted(uri)}: {type(error).__name__}: {error}") from error
