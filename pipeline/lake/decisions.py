"""What persons have decided about results: a small Parquet table beside the output's own, `reviews/`.

Each decision is written at once, as a file of one row; `compact` puts them together. The latest about a result counts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import io
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import OutputError
from pipeline.lake.places import explained, join, make_folder, names_in, put
from pipeline.redaction import redacted

SCHEMA = pa.schema(
    [
        pa.field("result_id", pa.string()),  # of the row that was seen
        pa.field("row_id", pa.string()),  # its id, as text
        pa.field("source_row", pa.string()),
        pa.field("run_id", pa.string()),  # that had made it
        pa.field("decision", pa.string()),  # accepted or rejected
        pa.field("reviewer", pa.string()),
        pa.field("note", pa.string()),
        pa.field("decided_at", pa.timestamp("us", tz="UTC")),
    ]
)
DECISIONS = ("accepted", "rejected")
READERS = 16
"""Files read at a time."""


@dataclasses.dataclass(frozen=True)
class Reviewed:
    """One decision; the fields are the columns of `SCHEMA`."""

    result_id: str
    row_id: str
    source_row: str
    run_id: str
    decision: str
    reviewer: str
    note: str
    decided_at: dt.datetime


class Decisions:
    """The decisions below an output."""

    def __init__(self, store: fsspec.AbstractFileSystem, root: str) -> None:
        self._store, self._root = store, root
        self._known: dict[str, list[Reviewed]] = {}

    def add(self, reviewed: Reviewed) -> None:
        """Write one down; it is safe when this returns.

        Raises:
            OutputError: the store refuses.
        """
        self._write([reviewed])

    def latest(self) -> dict[str, Reviewed]:
        """By `result_id`.

        Raises:
            OutputError: they cannot be read.
        """
        latest: dict[str, Reviewed] = {}
        for reviewed in sorted(self._read(self._names()), key=lambda one: one.decided_at):
            latest[reviewed.result_id] = reviewed
        return latest

    def compact(self) -> None:
        """Put all files together in one. Whoever reads meanwhile sees some decisions twice, which changes nothing."""
        names = self._names()
        if len(names) > 1:
            self._write(sorted(set(self._read(names)), key=lambda one: one.decided_at))
            for name in names:
                with explained(self._root, OutputError), contextlib.suppress(FileNotFoundError):  # another was faster
                    self._store.rm_file(join(self._root, name))

    def _names(self) -> list[str]:
        with explained(self._root, OutputError):
            return [name for name in names_in(self._store, self._root) if name.endswith(".parquet")]

    def _read(self, names: Sequence[str]) -> list[Reviewed]:
        """Files never change: what was read once is remembered."""
        missing = [name for name in names if name not in self._known]
        with ThreadPoolExecutor(READERS) as pool:
            for name, found in zip(missing, pool.map(self._read_file, missing), strict=True):
                if found is None:  # somebody else has just put it together with others
                    return self._read(self._names())
                self._known[name] = found
        return [reviewed for name in names for reviewed in self._known[name]]

    def _read_file(self, name: str) -> list[Reviewed] | None:
        path = join(self._root, name)
        with explained(self._root, OutputError):
            try:
                data = self._store.cat_file(path)
            except FileNotFoundError:
                return None
        try:
            return [Reviewed(**row) for row in pq.read_table(io.BytesIO(data), schema=SCHEMA).to_pylist()]
        except pa.ArrowException as error:
            raise OutputError(f"{redacted(path)} holds no decisions ({error}); remove it, or put it right") from error

    def _write(self, reviewed: Sequence[Reviewed]) -> None:
        data = io.BytesIO()
        pq.write_table(pa.Table.from_pylist([dataclasses.asdict(one) for one in reviewed], SCHEMA), data)
        name = f"{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}.parquet"
        with explained(self._root, OutputError):
            make_folder(self._store, self._root)
            put(self._store, join(self._root, name), data.getvalue())
