"""Restored images as files of their own, named by what is in them: writing one twice changes nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import fsspec

from pipeline.errors import StoreUnavailable
from pipeline.lake.attempts import Attempts, GaveUp
from pipeline.lake.places import as_uri, make_folder, open_store, put, put_file
from pipeline.lake.storage import Options
from pipeline.redaction import redacted, without_secrets


@dataclasses.dataclass(frozen=True)
class ImageWriter:
    """Writes images below a folder. Travels to Ray's workers."""

    folder: str
    """A path or URI."""
    storage: Options = dataclasses.field(default_factory=dict, repr=False)
    """Options of the store, with the secrets that they name: other machines may not know them."""

    def __call__(self, data: bytes, sha256: str, ending: str) -> str:
        """Write an image file, and return its URI.

        Raises:
            StoreUnavailable: it could not be written.
        """
        return self._written(sha256, ending, lambda store, path: put(store, path, data))

    def file(self, local: Path, sha256: str, ending: str) -> str:
        """The same from a file on this machine."""
        return self._written(sha256, ending, lambda store, path: put_file(store, path, local))

    def _written(self, sha256: str, ending: str, deliver: Callable[[fsspec.AbstractFileSystem, str], None]) -> str:
        store, root = open_store(self.folder, self.storage)
        folder = f"{root}/{sha256[:2]}"
        path = f"{folder}/{sha256}.{ending}"

        def write() -> None:
            make_folder(store, folder)
            deliver(store, path)

        try:
            Attempts()(write)
        except GaveUp as end:
            said = without_secrets(str(end.__cause__))
            message = f"{redacted(path)} could not be written in {end.attempts} attempts: {said}"
            raise StoreUnavailable(message, end.attempts) from end.__cause__
        return as_uri(store, path)
