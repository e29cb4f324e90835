"""Reads images that a table names by URI; the one place where transient errors are tried again."""

from __future__ import annotations

import dataclasses
import posixpath
import random
import time

from pipeline.errors import ConservatorError, ForbiddenURI, StoreUnavailable, UnreadableImage
from pipeline.imaging.cells import redacted
from pipeline.lake.places import open_store

FIRST_WAIT = 0.5
LONGEST_WAIT = 20.0
"""Seconds between attempts; doubled each time, with jitter."""
PERMANENT = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


@dataclasses.dataclass(frozen=True)
class UriReader:
    """Reads URIs below the allowed places, and no others. Travels to Ray's workers."""

    base: str
    """Where relative URIs start: the source's folder, as a URI. It is always allowed."""
    allowed: tuple[str, ...]
    """Further prefixes."""
    max_bytes: int
    attempts: int

    def __call__(self, uri: str) -> bytes:
        """The content of a file.

        Raises:
            ForbiddenURI: the URI lies outside the allowed places.
            UnreadableImage: there is no such file, or no access to it.
            StoreUnavailable: the store gave passing errors, in every attempt.
        """
        place = self._resolved(uri)
        wait = FIRST_WAIT
        for attempt in range(1, self.attempts + 1):
            try:
                store, path = open_store(place)
                with store.open(path, "rb") as file:
                    data: bytes = file.read(self.max_bytes + 1)
                    return data
            except (*PERMANENT, ConservatorError) as error:
                raise UnreadableImage(f"cannot read {redacted(place)}: {error}", attempt) from error
            except Exception as error:  # what a store raises when it is busy or away differs from driver to driver
                if attempt == self.attempts:
                    message = (
                        f"{redacted(place)} could not be read in {attempt} attempts: {type(error).__name__}: {error}"
                    )
                    raise StoreUnavailable(message, attempt) from error
                time.sleep(wait * random.uniform(0.5, 1.0))
                wait = min(2 * wait, LONGEST_WAIT)
        raise AssertionError("attempts is at least 1")

    def _resolved(self, uri: str) -> str:
        if not uri.strip():
            raise UnreadableImage("the URI is empty")
        absolute = "://" in uri or uri.startswith("/")
        place = _normal(uri if absolute else f"{self.base.rstrip('/')}/{uri}")
        prefixes = [_normal(prefix).rstrip("/") + "/" for prefix in (self.base, *self.allowed)]
        if not any(place.startswith(prefix) for prefix in prefixes) or ".." in place.split("/"):
            raise ForbiddenURI(
                f"{redacted(uri)} lies outside {', '.join(redacted(prefix) for prefix in prefixes)}; "
                "allow its folder with source.allowed_uris"
            )
        return place


def _normal(uri: str) -> str:
    """Local paths absolute, without `.`, `..` and `file://`; other URIs as they are."""
    scheme, separator, path = uri.partition("://")
    if separator and scheme not in ("file", "local"):
        return uri
    return posixpath.abspath(path if separator else uri)
