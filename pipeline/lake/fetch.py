"""Reads images that a table names by URI."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
from collections.abc import Callable, Sequence
from typing import IO, Any, TypeVar
from urllib.parse import unquote, urljoin

import fsspec
from fsspec.utils import get_protocol

from pipeline.errors import ForbiddenURI, StoreUnavailable, UnreadableImage
from pipeline.imaging.cells import LONGEST_URI, shown
from pipeline.lake.attempts import Attempts, GaveUp
from pipeline.lake.places import local_path, open_store
from pipeline.lake.storage import Options, for_fsspec
from pipeline.redaction import redacted, without_secrets

Content = TypeVar("Content")


@dataclasses.dataclass(frozen=True)
class UriReader:
    """Reads URIs below the allowed places, and no others. Travels to Ray's workers."""

    base: str
    """Where relative URIs start: the source's folder, as a URI. It is always allowed."""
    allowed: tuple[str, ...]
    """Further prefixes."""
    max_bytes: int
    attempts: int
    storage: Options = dataclasses.field(default_factory=dict, repr=False)
    """Options of the source's store, with the secrets that they name: other machines may not know them."""
    links: bool = False
    """Whether links are followed to wherever they lead: where the names come from a folder and not from a table."""

    def __call__(self, uri: str) -> bytes:
        """The content of a file.

        Raises:
            ForbiddenURI: the URI lies outside the allowed places.
            UnreadableImage: there is no such file.
            StoreUnavailable: the store gave passing errors in every attempt, or no access.
        """

        def read(file: IO[bytes]) -> bytes:
            with file:
                return file.read(self.max_bytes + 1)

        return self._opened(uri, read)

    def open(self, uri: str) -> IO[bytes]:
        """A file that is read in parts, from any place in it.

        Raises:
            RowError: as by calling.
            OSError: later, in reading.
        """
        return self._opened(uri, lambda file: file)

    def place(self, uri: str) -> str:
        """Where a file lies, as it may be shown.

        Raises:
            RowError: as by calling.
        """
        return shown(self._resolved(uri))

    def _opened(self, uri: str, use: Callable[[IO[bytes]], Content]) -> Content:
        place = self._resolved(uri)

        def attempt() -> Content:
            protocol = get_protocol(place)
            options = self.storage if _family(protocol) == _family(get_protocol(self.base)) else {}
            if protocol in ("http", "https"):
                store, path = _http(self._prefixes(), json.dumps(dict(options))), place
            else:
                store, path = open_store(place, options)
            return use(store.open(path, "rb"))

        try:
            return Attempts(self.attempts)(attempt)
        except GaveUp as end:
            reason = _reason(end.__cause__ or end)
            if end.__cause__ and isinstance(end.__cause__.__cause__, ForbiddenURI):  # it was sent on
                raise end.__cause__.__cause__ from end
            if _is_refused(end.__cause__):  # a right that is missing now, or has run out
                raise StoreUnavailable(f"no access to {shown(place)}: {reason}", end.attempts) from end.__cause__
            if end.permanent:
                raise UnreadableImage(f"cannot read {shown(place)}: {reason}", end.attempts) from end.__cause__
            message = f"{shown(place)} could not be read in {end.attempts} attempts: {reason}"
            raise StoreUnavailable(message, end.attempts) from end.__cause__

    def _resolved(self, uri: str) -> str:
        if not uri.strip():
            raise UnreadableImage("the URI is empty")
        if len(uri) > LONGEST_URI or uri.startswith("data:") or "\0" in uri:
            raise UnreadableImage(
                f"{shown(uri)} is no URI; images in base64 must be decoded to bytes before they are put in the table"
            )
        absolute = "://" in uri or uri.startswith("/")
        place = self._normal(uri if absolute else f"{self.base.rstrip('/')}/{uri}")
        prefixes = self._prefixes()
        if not _is_below(place, prefixes):
            leads = f" leads to {place}, which" if "://" not in place and not place.endswith(uri) else ""
            raise ForbiddenURI(
                f"{shown(uri)}{leads} lies outside {', '.join(redacted(prefix) for prefix in prefixes)}; "
                "allow its folder with source.allowed_uris"
            )
        return place

    def _prefixes(self) -> tuple[str, ...]:
        return tuple(self._normal(prefix).rstrip("/") + "/" for prefix in (self.base, *self.allowed))

    def _normal(self, uri: str) -> str:
        """Local paths absolute, without links, `.`, `..` and `file://`; other URIs as they are."""
        scheme, separator, path = uri.partition("://")
        if separator and scheme not in ("file", "local"):
            return uri
        return os.path.abspath(path or scheme) if self.links else local_path(uri)  # noqa: PTH100  # links stay


def _reason(error: BaseException) -> str:
    """An error in short; the path that it may repeat is shown once already."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"{type(error).__name__}: {without_secrets(text)[:500]}"


def _is_refused(error: BaseException | None) -> bool:
    status = getattr(error.__cause__, "status", None) if isinstance(error, FileNotFoundError) else None
    return isinstance(error, PermissionError) or status in (401, 403)


def _family(protocol: str) -> str:
    """Stores that are reached under several names have one."""
    return {"s3a": "s3", "gcs": "gs", "az": "abfs", "abfss": "abfs", "https": "http"}.get(protocol, protocol)


def _is_below(place: str, prefixes: Sequence[str]) -> bool:
    return any(place.startswith(prefix) for prefix in prefixes) and not _climbs(place)


def _climbs(place: str) -> bool:
    """Whether a path has steps upwards, in any spelling that a server may understand."""
    if "://" not in place:
        return False
    path = place.partition("://")[2]
    while (plain := unquote(path)) != path:
        path = plain
    return any(step.strip() == ".." for step in re.split(r"[/\\?#;]", path))


@functools.lru_cache(maxsize=4)
def _http(prefixes: tuple[str, ...], options: str) -> fsspec.AbstractFileSystem:
    """The web, which may send a request on to other places, but only to allowed ones; `options` in JSON."""
    import aiohttp

    async def check(session: Any, context: Any, sent: Any) -> None:
        headers = sent.response.headers
        target = urljoin(str(sent.url), headers.get("Location") or headers.get("URI", ""))
        if not _is_below(target, prefixes) and not _is_below(target.replace("https://", "http://", 1), prefixes):
            raise ForbiddenURI(
                f"{shown(str(sent.url))} sends on to {shown(target)}, which is not allowed; "
                "allow its folder with source.allowed_uris"
            )

    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(check)
    given = for_fsspec("http", json.loads(options))
    client = {**given.pop("client_kwargs", {}), "trace_configs": [trace]}
    return fsspec.filesystem("http", client_kwargs=client, skip_instance_cache=True, **given)
