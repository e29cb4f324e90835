"""A source that is looked through while its first files are worked on: a million files take minutes to list, and half
an hour to look into."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor

from pipeline.errors import ConservatorError, Interrupted, SourceError
from pipeline.lake.find import Files
from pipeline.lake.inputs import ParquetFile, read_footer
from pipeline.lake.keys import Keys, keys_of, stands_alone
from pipeline.lake.ledger import InputFile
from pipeline.lake.source import READERS, Source, find, source_of
from pipeline.recipe import Columns
from pipeline.recipe import Source as Settings

FIRST = {"images": 20_000, "parquet": 1_000}
"""About so many files are worked on at first, if the others are not even listed."""
CHUNK = 1_000
"""Files that its threads are told of at a time."""
PATIENCE = 20.0
"""Seconds to wait for all of a source before work begins with what is known of it."""
LOOK = 0.5
"""Seconds between two questions whether a run is to end."""


class Search:
    """Looks through a source in a thread of its own, from the moment on that it is made."""

    def __init__(
        self, kind: str, uris: Sequence[str], columns: Columns, settings: Settings, finished: Collection[InputFile]
    ) -> None:
        """Of what `open_source` would open; `kind`: by `format_of`, no table. `finished` files are not looked into."""
        self._kind, self._uris, self._columns, self._settings = kind, uris, columns, settings
        self._finished = finished
        self._found: tuple[str, Files] | None = None
        self._footers: dict[str, ParquetFile] = {}
        self._keys: dict[str, Keys] = {}
        self._error: Exception | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="search", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Look no further."""
        self._closed.set()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until all is looked through, or so long; whether it is."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def is_over(self, stopped: Callable[[], bool]) -> bool:
        """Wait until all is looked through, or for `PATIENCE`; whether it is.

        Raises:
            Interrupted: `stopped` said so.
        """
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            if self.wait(LOOK):
                return True
            if stopped():
                raise Interrupted("stopped while the source was looked through; run again to go on from here")
        return False

    def whole(self, finished: Collection[InputFile]) -> Source:
        """The source, when all of it is looked through.

        Args:
            finished: files that are done, at least those that were at first.

        Raises:
            SourceError: as `open_source`.
        """
        self.wait()
        if self._error is not None:
            raise self._error
        assert self._found is not None
        return self._source(*self._found, finished, are_all=True)

    def first(self, finished: Collection[InputFile]) -> Source:
        """Files to begin with; it may have none.

        Raises:
            SourceError: as `open_source`, of these files alone: it may be wrong of the source.
        """
        if self._found is not None:
            kind, files = self._found
            known = set(self._footers)
        else:
            kind, files = find(self._kind, self._uris, self._settings, max(FIRST.values()))
            known = set(list(files.found)[: FIRST[kind]])
        files = files._replace(found={path: found for path, found in files.found.items() if path in known})
        return self._source(kind, files, finished, are_all=False)

    def _source(self, kind: str, files: Files, finished: Collection[InputFile], are_all: bool) -> Source:
        footers, keys = self._footers.copy(), self._keys.copy()
        source = source_of(kind, files, self._columns, finished, self._settings, footers, are_all)
        return dataclasses.replace(source, keys=keys)

    def _run(self) -> None:
        try:
            kind, files = self._found = find(self._kind, self._uris, self._settings)
            if kind != "images":
                paths = [path for path, found in sorted(files.found.items()) if found.input(path) not in self._finished]
                with ThreadPoolExecutor(READERS) as pool:
                    for start in range(0, len(paths), CHUNK):
                        for footer in pool.map(lambda path: self._look(files, path), paths[start : start + CHUNK]):
                            self._footers[footer.path] = footer
        except Exception as error:  # the thread that waits raises it
            self._error = error

    def _look(self, files: Files, path: str) -> ParquetFile:
        if self._closed.is_set():
            raise SourceError("the source is not looked through any further")
        footer = read_footer(files.store, path, files.found[path])
        column, filters = self._columns.id, self._settings.filters
        if stands_alone(footer, column, filters):
            with contextlib.suppress(ConservatorError):  # who asks for all keys hears of it
                self._keys[footer.key] = keys_of(files.store, footer, column, filters)
        return footer
