"""The ledger: which input files are finished, under which recipe, in which generation of the table.

It lies in the object store beside the table, in segments that are only ever added; many are put together to one now and
then. Reading a file twice changes nothing, so a crash at any moment leaves a ledger that is right.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import posixpath
import uuid
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.lake.places import join, make_folder, put

SEGMENT = pa.schema(
    [
        pa.field("path", pa.string()),  # in the source's store
        pa.field("size", pa.int64()),  # bytes
        pa.field("version", pa.string()),  # what the store calls this state of the file: ETag or time
        pa.field("rows", pa.int64()),
        pa.field("run_id", pa.string()),
        pa.field("commit", pa.int64()),
        pa.field("recipe_digest", pa.string()),
        pa.field("ids", pa.large_binary()),  # of the rows: 8 bytes each, by ids.hashed
    ]
)
SEGMENTS = 24
"""More small ones are put together to one."""
SMALL = 16_000_000
"""Bytes; larger segments stay as they are."""


class InputFile(NamedTuple):
    """One state of one input file. A file that was written anew is another one."""

    path: str
    size: int
    version: str

    @property
    def key(self) -> str:
        """16 hexadecimal digits that stand for it."""
        return hashlib.sha256(f"{self.path}\n{self.size}\n{self.version}".encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class Entry:
    """A finished file."""

    file: InputFile
    rows: int
    run_id: str
    commit: int
    """The commit with which its last row came into the table."""
    recipe_digest: str
    ids: bytes = b""
    """Of its rows, 8 bytes each."""


class Ledger:
    """The ledger of one generation of an output's table."""

    def __init__(self, store: fsspec.AbstractFileSystem, folder: str) -> None:
        self._store, self._folder = store, folder

    def finished(self) -> set[InputFile]:
        """All files that are finished."""
        files: set[InputFile] = set()
        for path in self._segments():
            table = self._read(path, ["path", "size", "version"])
            columns = (table[name].to_pylist() for name in ("path", "size", "version"))
            files.update(map(InputFile, *columns))
        return files

    def ids(self) -> Iterator[npt.NDArray[np.uint64]]:
        """The ids of their rows, segment by segment."""
        for path in self._segments():
            parts = self._read(path, ["ids"])["ids"].to_pylist()
            yield np.frombuffer(b"".join(part or b"" for part in parts), np.uint64)

    def add(self, entries: Iterable[Entry]) -> None:
        """Write down finished files. May be repeated."""
        rows = [
            entry.file._asdict()
            | {"rows": entry.rows, "run_id": entry.run_id, "commit": entry.commit}
            | {"recipe_digest": entry.recipe_digest, "ids": entry.ids}
            for entry in entries
        ]
        if rows:
            self._write(pa.Table.from_pylist(rows, SEGMENT))
            self._put_together()

    def _put_together(self) -> None:
        paths = [path for path in self._segments() if self._store.size(path) < SMALL]
        if len(paths) > SEGMENTS:
            self._write(pa.concat_tables([self._read(path) for path in paths]))
            self._store.rm(paths)

    def _segments(self) -> list[str]:
        self._store.invalidate_cache()
        if not self._store.exists(self._folder):
            return []
        paths = self._store.ls(self._folder, detail=False)
        return sorted(path for path in paths if path.endswith(".parquet") and not _is_hidden(path))

    def _read(self, path: str, columns: list[str] | None = None) -> pa.Table:
        with self._store.open(path, "rb") as file:
            return pq.ParquetFile(file).read(columns=columns)

    def _write(self, table: pa.Table) -> None:
        make_folder(self._store, self._folder)
        data = io.BytesIO()
        pq.write_table(table, data, compression="zstd")
        put(self._store, join(self._folder, f"{uuid.uuid4().hex}.parquet"), data.getvalue())


def _is_hidden(path: str) -> bool:
    return posixpath.basename(path).startswith(".")
