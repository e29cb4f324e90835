"""The ledger: which input files are finished, under which recipe, in which generation of the table.

It lies in the object store beside the table, in segments that are only ever added; many are put together to one now and
then. What is written with a later commit counts, and reading a segment twice changes nothing, so a crash at any moment
leaves a ledger that is right.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.lake.places import join, make_folder, names_in, put

SEGMENT = pa.schema(
    [
        pa.field("path", pa.string()),  # in the source's store
        pa.field("size", pa.int64()),  # bytes
        pa.field("version", pa.string()),  # what the store calls this state of the file: ETag or time
        pa.field("table", pa.string()),  # folder of the Delta or Iceberg table that it belongs to, or empty
        pa.field("rows", pa.int64()),
        pa.field("run_id", pa.string()),
        pa.field("commit", pa.int64()),
        pa.field("recipe_digest", pa.string()),
        pa.field("gone", pa.bool_()),  # its rows have left the table
        pa.field("ids", pa.large_binary()),  # of the rows: 8 bytes each, by ids.hashed
    ]
)
BEGUN = pa.schema([SEGMENT.field(name) for name in ("path", "size", "version", "table", "commit")])
SEGMENTS = 24
"""More small ones are put together to one."""
FILES = 10_000
"""Whose ids are read at a time."""
SMALL = 16_000_000
"""Bytes; larger segments stay as they are."""


class InputFile(NamedTuple):
    """One state of one input file. A file that was written anew is another one."""

    path: str
    size: int
    version: str
    table: str = ""
    """The folder of the Delta or Iceberg table that it belongs to."""

    @property
    def key(self) -> str:
        """16 hexadecimal digits that stand for it."""
        parts = [self.path, str(self.size), self.version, *([self.table] if self.table else [])]
        return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:16]


class State(NamedTuple):
    """What has become of a file last."""

    commit: int
    """The commit with which its last row came into the table, or all of them went."""
    gone: bool
    """Its rows are not in the table any more."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A file that is finished, or whose rows have left the table."""

    file: InputFile
    rows: int
    run_id: str
    commit: int
    """See `State`."""
    recipe_digest: str
    ids: bytes = b""
    """Of its rows, 8 bytes each."""
    gone: bool = False
    """See `State`."""


def _is_over(state: State | None, begun: int) -> bool:
    """Whether a file with which a run began after the commit `begun` is finished, or has left the table since."""
    return state is not None and (not state.gone or state.commit > begun)


class Ledger:
    """The ledger of one generation of an output's table."""

    def __init__(self, store: fsspec.AbstractFileSystem, folder: str) -> None:
        self._store, self._folder = store, folder
        self._begun = join(folder, "begun")

    def states(self) -> dict[InputFile, State]:
        """What is known of every file."""
        states: dict[InputFile, State] = {}
        for path in self._segments(self._folder):
            columns = [*InputFile._fields, *State._fields]
            table = self._read(path, columns)
            *fields, commits, gone = (table[name].to_pylist() for name in columns)
            for file, state in zip(map(InputFile, *fields), map(State, commits, gone), strict=True):
                states[file] = max(state, states.get(file, state))
        return states

    def ids(self, files: Collection[InputFile]) -> Iterator[npt.NDArray[np.uint64]]:
        """The ids of the rows of some files, piece by piece."""
        for path in self._segments(self._folder):
            with self._store.open(path, "rb") as file:
                for batch in pq.ParquetFile(file).iter_batches(FILES, columns=[*InputFile._fields, "ids"]):
                    *fields, ids = (column.to_pylist() for column in batch.columns)
                    known = zip(map(InputFile, *fields), ids, strict=True)
                    yield np.frombuffer(b"".join(part or b"" for file, part in known if file in files), np.uint64)

    def add(self, entries: Iterable[Entry]) -> None:
        """Write down what has become of files. May be repeated."""
        rows = [
            entry.file._asdict()
            | {"rows": entry.rows, "run_id": entry.run_id, "commit": entry.commit, "gone": entry.gone}
            | {"recipe_digest": entry.recipe_digest, "ids": entry.ids}
            for entry in entries
        ]
        if rows:
            self._write(self._folder, pa.Table.from_pylist(rows, SEGMENT))
            self._put_together()

    def begin(self, files: Iterable[InputFile], commit: int) -> None:
        """Write down what a run is about to read: if it is killed, and a file changes, its rows must be found.

        Args:
            files: what it reads.
            commit: the number of the last one; a file whose rows left the table with it, or before, is begun again.
        """
        self._write(self._begun, pa.Table.from_pylist([file._asdict() | {"commit": commit} for file in files], BEGUN))

    def begun(self, states: Mapping[InputFile, State]) -> set[InputFile]:
        """The files that runs have begun with, and that are neither finished nor gone since; `states` as of now."""
        begun = (file for path in self._segments(self._begun) for file in self._begun_in(path).items())
        return {file for file, commit in begun if not _is_over(states.get(file), commit)}

    def forget_begun(self, states: Mapping[InputFile, State]) -> None:
        """Remove the lists of files with which runs have begun, if all of them are over."""
        for path in self._segments(self._begun):
            if all(_is_over(states.get(file), commit) for file, commit in self._begun_in(path).items()):
                self._store.rm_file(path)

    def _begun_in(self, path: str) -> dict[InputFile, int]:
        table = self._read(path)
        *fields, commits = (table[name].to_pylist() for name in BEGUN.names)
        return dict(zip(map(InputFile, *fields), commits, strict=True))

    def _put_together(self) -> None:
        paths = [path for path in self._segments(self._folder) if self._store.size(path) < SMALL]
        if len(paths) > SEGMENTS:
            self._write(self._folder, pa.concat_tables([self._read(path) for path in paths]))
            self._store.rm(paths)

    def _segments(self, folder: str) -> list[str]:
        return [join(folder, name) for name in names_in(self._store, folder) if name.endswith(".parquet")]

    def _read(self, path: str, columns: list[str] | None = None) -> pa.Table:
        with self._store.open(path, "rb") as file:
            return pq.ParquetFile(file).read(columns=columns)

    def _write(self, folder: str, table: pa.Table) -> None:
        make_folder(self._store, folder)
        data = io.BytesIO()
        pq.write_table(table, data, compression="zstd")
        put(self._store, join(folder, f"{uuid.uuid4().hex}.parquet"), data.getvalue())
