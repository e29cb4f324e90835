"""Reads images that a table names by URI."""

from __future__ import annotations

import dataclasses

from pipeline.errors import ForbiddenURI, StoreUnavailable, UnreadableImage
from pipeline.imaging.cells import LONGEST_URI, redacted, shown
from pipeline.lake.attempts import Attempts, GaveUp
from pipeline.lake.places import local_path, open_store
from pipeline.lake.storage import Options


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
    """Options of the store."""

    def __call__(self, uri: str) -> bytes:
        """The content of a file.

        Raises:
            ForbiddenURI: the URI lies outside the allowed places.
            UnreadableImage: there is no such file, or no access to it.
            StoreUnavailable: the store gave passing errors, in every attempt.
        """
        place = self._resolved(uri)

        def read() -> bytes:
            store, path = open_store(place, self.storage)
            with store.open(path, "rb") as file:
                data: bytes = file.read(self.max_bytes + 1)
                return data

        try:
            return Attempts(self.attempts)(read)
        except GaveUp as end:
            reason = _reason(end.__cause__ or end)
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
        place = _normal(uri if absolute else f"{self.base.rstrip('/')}/{uri}")
        prefixes = [_normal(prefix).rstrip("/") + "/" for prefix in (self.base, *self.allowed)]
        if not any(place.startswith(prefix) for prefix in prefixes) or ".." in place.split("/"):
            raise ForbiddenURI(
                f"{shown(uri)} lies outside {', '.join(redacted(prefix) for prefix in prefixes)}; "
                "allow its folder with source.allowed_uris"
            )
        return place


def _reason(error: BaseException) -> str:
    """An error in short; the path that it may repeat is shown once already."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"{type(error).__name__}: {text[:500]}"


def _normal(uri: str) -> str:
    """Local paths absolute, without links, `.`, `..` and `file://`; other URIs as they are."""
    scheme, separator, _ = uri.partition("://")
    return uri if separator and scheme not in ("file", "local") else local_path(uri)
