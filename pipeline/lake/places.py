"""Places on any store: local paths and fsspec URLs alike."""

from __future__ import annotations

import contextlib
import os
import posixpath
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import fsspec
from fsspec.core import url_to_fs
from fsspec.utils import get_protocol

from pipeline.errors import ConservatorError, OutputError, SourceError
from pipeline.lake.storage import Options, for_fsspec
from pipeline.redaction import redacted, without_secrets

OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "az", "oci", "oss"}
"""Schemes of stores without folders."""


def open_store(uri: str, storage: Options | None = None) -> tuple[fsspec.AbstractFileSystem, str]:
    """The filesystem of a URI, and the path in it; local paths are absolute, without links or `..`.

    Args:
        uri: of a file or folder.
        storage: options of its driver, as in the recipe.

    Raises:
        SourceError: the scheme is unknown, its driver is not installed, or does not know an option.
    """
    protocol = get_protocol(uri)
    options = {} if protocol in ("file", "local") else for_fsspec(protocol, storage or {})
    try:
        store, path = url_to_fs(uri, **options)
    except (ImportError, TypeError, ValueError) as error:
        extra = "; pip install '.[s3]'" if uri.startswith("s3") else ""
        raise SourceError(f"cannot open {redacted(uri)}: {without_secrets(str(error))}{extra}") from error
    return store, local_path(uri) if is_local(store) else path


def local_path(uri: str) -> str:
    """A local path or `file://` URI as an absolute path without links and `..`."""
    scheme, separator, path = uri.partition("://")
    if not separator:
        return os.path.realpath(Path(scheme).expanduser())
    return os.path.realpath(path if Path(path).exists() else unquote(path))


def is_local(store: fsspec.AbstractFileSystem) -> bool:
    """Whether the store is this machine's own files."""
    return _protocols(store)[0] in ("file", "local")


def as_uri(store: fsspec.AbstractFileSystem, path: str) -> str:
    """A path in a store as `open_store` takes it: local ones stay paths."""
    return path if is_local(store) else str(store.unstrip_protocol(path))


def make_folder(store: fsspec.AbstractFileSystem, path: str) -> None:
    """Make a folder, where stores have them: object stores need none, and would make a bucket of a mistyped name."""
    if not OBJECT_STORES.intersection(_protocols(store)):
        store.makedirs(path, exist_ok=True)


def names_in(store: fsspec.AbstractFileSystem, folder: str) -> list[str]:
    """Names of the files of a folder, sorted, as they are now; none if there is no such folder."""
    store.invalidate_cache()
    try:
        paths = store.ls(folder, detail=False)
    except FileNotFoundError:
        return []
    return sorted(name for name in map(posixpath.basename, paths) if name and not name.startswith("."))


def put(store: fsspec.AbstractFileSystem, path: str, data: bytes) -> None:
    """Write a small file whole or not at all, in place of what was there."""
    if not is_local(store):  # an object appears when all of it has arrived
        store.pipe_file(path, data)
        return
    _temporary(path, data).replace(path)


def put_file(store: fsspec.AbstractFileSystem, path: str, local: Path) -> None:
    """Copy a local file to a path, whole or not at all, in place of what was there."""
    if not is_local(store):
        store.put_file(str(local), path)
        return
    fresh = Path(path).with_name(f".{Path(path).name}.{uuid.uuid4().hex}")
    try:
        with local.open("rb") as source, fresh.open("xb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
            target.flush()
            os.fsync(target.fileno())
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def put_new(store: fsspec.AbstractFileSystem, path: str, data: bytes) -> bool:
    """Write a small file where none is yet; of several that try, one succeeds.

    `data` must differ from what others write, so that an answer that got lost can be told from a defeat. The store must
    know conditional writes, as S3 (If-None-Match) and local disks do.

    Returns:
        Whether the file is ours.
    """
    if is_local(store):
        fresh = _temporary(path, data)
        try:
            Path(path).hardlink_to(fresh)
        except FileExistsError:
            return Path(path).read_bytes() == data
        finally:
            fresh.unlink()
        return True
    try:
        store.pipe_file(path, data, mode="create")
    except Exception:
        store.invalidate_cache()
        if not store.exists(path):
            raise
        return bool(store.cat_file(path) == data)
    return True


def _temporary(path: str, data: bytes) -> Path:
    """A file with this content in the folder of `path`, whose name begins with a dot."""
    fresh = Path(path).with_name(f".{posixpath.basename(path)}.{uuid.uuid4().hex}")
    with fresh.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return fresh


def _protocols(store: fsspec.AbstractFileSystem) -> tuple[str, ...]:
    return (store.protocol,) if isinstance(store.protocol, str) else tuple(store.protocol)


def join(folder: str, *names: str) -> str:
    """A path below a folder, on any store."""
    return posixpath.join(folder, *names)


_PASSING = ("Timeout", "Connect", "Endpoint", "Unavailable", "SlowDown", "Throttl", "ServerError")


@contextlib.contextmanager
def explained(uri: str, kind: type[SourceError] | type[OutputError]) -> Iterator[None]:
    """Turns what stores raise into an error that names the place and the remedy."""
    try:
        yield
    except PermissionError as error:
        said = without_secrets(str(error))
        raise kind(f"no access to {redacted(uri)}: {said}; check the credentials and the rights") from error
    except FileNotFoundError as error:
        raise kind(f"{redacted(uri)} does not exist ({without_secrets(str(error))})") from error
    except ConservatorError:
        raise
    except Exception as error:  # drivers raise what their libraries do: no credentials, no such host, …
        said = without_secrets(str(error))
        later = is_passing(error)
        raise kind(f"cannot use {redacted(uri)}: {type(error).__name__}: {said}", later) from error


def is_passing(error: BaseException) -> bool:
    """Whether a store did not answer, which may pass, as far as the names of its library's errors tell."""
    names = " ".join(one.__name__ for one in type(error).__mro__)
    return isinstance(error, ConnectionError | TimeoutError) or any(word in names for word in _PASSING)
