"""Reads the rows that are wanted of the source's files, each with a key of its own, as a Ray datasource.

Ray's own reader knows no row numbers, and a user's ids may be missing or come twice; a row's key is its file's and its
number in it. Row groups that are done are not read again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from ray.data import Datasource
from ray.data.block import BlockMetadata
from ray.data.checkpoint import CheckpointManager
from ray.data.datasource import ReadTask

from pipeline.lake.source import ParquetFile
from pipeline.schema import ROW_KEY

PIECE = 64_000_000
"""Bytes read by a task, about."""
BATCH = 16_000_000
"""Bytes handed on at a time, about."""
TASKS = 5_000
"""Ray keeps every task in the driver's memory: of more pieces several make a task."""

Then = Callable[[pa.Table, str], Iterator[pa.Table]]
"""What a task does with the rows it has read, and the root of their file."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """Some row groups of a file."""

    file: ParquetFile
    groups: tuple[int, ...]
    first: int
    """The number of the first row in the file."""
    wanted: npt.NDArray[np.bool_]
    """Of its rows, those that are to be read."""

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return sum(self.file.groups[group].size for group in self.groups)

    def read(self, store: fsspec.AbstractFileSystem) -> Iterator[pa.Table]:
        """Its rows that are wanted, with their keys and the values of the folders' names."""
        with store.open(self.file.path, "rb") as opened:
            parquet = pq.ParquetFile(opened)
            start = 0
            rows = max(1, int(len(self.wanted) * BATCH / max(1, self.size)))
            for batch in parquet.iter_batches(batch_size=rows, row_groups=list(self.groups)):
                numbers = np.flatnonzero(self.wanted[start : start + batch.num_rows])
                if len(numbers):
                    yield self._table(batch.take(pa.array(numbers)), numbers + self.first + start)
                start += batch.num_rows

    def _table(self, batch: pa.RecordBatch, numbers: npt.NDArray[np.int64]) -> pa.Table:
        table = pa.Table.from_batches([batch])
        for name, value in self.file.partitions.items():
            table = table.append_column(name, pa.array([value] * len(numbers), pa.string()))
        keys = [f"{self.file.key}-{number}" for number in numbers.tolist()]
        return table.append_column(ROW_KEY, pa.array(keys, pa.string()))


def plan_pieces(
    files: Sequence[ParquetFile],
    done: Mapping[str, pa.ChunkedArray],
    finished: Collection[str] = frozenset(),
    limit: int | None = None,
) -> list[Piece]:
    """What is to be read of these files.

    Args:
        files: in the order in which they are read.
        done: keys of rows that are not wanted any more, by their file's key.
        finished: keys of files of which no row is wanted any more.
        limit: only the first so many rows of all files count, whether they are done or not.
    """
    pieces: list[Piece] = []
    left = sum(file.rows for file in files) if limit is None else limit
    for file in files:
        wanted = np.zeros(file.rows, np.bool_)
        wanted[: min(file.rows, left)] = file.key not in finished
        left -= min(file.rows, left)
        if file.key in done:
            wanted[[int(key.rpartition("-")[2]) for key in done[file.key].to_pylist()]] = False
        pieces += _pieces(file, wanted)
    return pieces


def _pieces(file: ParquetFile, wanted: npt.NDArray[np.bool_]) -> Iterator[Piece]:
    """Neighbouring row groups with something wanted, PIECE bytes of them at a time."""
    taken: list[int] = []
    size, start, first = 0, 0, 0
    for number, group in enumerate(file.groups):
        end = start + group.rows
        if wanted[start:end].any():
            if not taken:
                first = start
            taken.append(number)
            size += group.size
        full = size >= PIECE or not wanted[start:end].any()
        if taken and (full or number == len(file.groups) - 1):
            last = end if number in taken else start
            yield Piece(file, tuple(taken), first, wanted[first:last])
            taken, size = [], 0
        start = end


class NothingToFilter(CheckpointManager):
    """Rows that are done are not read: Ray has nothing to take out, and nothing to recover."""

    def load_checkpoint(self, data_file_dir: str | None = None, data_file_filesystem: Any = None) -> tuple[None, int]:
        """Nothing."""
        return None, 0


class Rows(Datasource):
    """The datasource."""

    def __init__(self, store: fsspec.AbstractFileSystem, pieces: Sequence[Piece], then: Then) -> None:
        super().__init__()
        self._store, self._pieces, self._then = store, pieces, then

    def get_name(self) -> str:
        """As Ray shows it."""
        return "Source"

    def estimate_inmemory_data_size(self) -> int | None:
        """Bytes in the files."""
        return sum(piece.size for piece in self._pieces)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """A task for each piece, or for several where there are very many."""
        together = -(-len(self._pieces) // TASKS) or 1
        tasks = []
        for start in range(0, len(self._pieces), together):
            pieces = self._pieces[start : start + together]
            metadata = BlockMetadata(
                num_rows=int(sum(piece.wanted.sum() for piece in pieces)),
                size_bytes=sum(piece.size for piece in pieces),
                input_files=None,
                exec_stats=None,
            )
            tasks.append(ReadTask(_Read(self._store, tuple(pieces), self._then), metadata))
        return tasks


@dataclasses.dataclass(frozen=True)
class _Read:
    store: fsspec.AbstractFileSystem
    pieces: tuple[Piece, ...]
    then: Then

    def __call__(self) -> Iterator[pa.Table]:
        for piece in self.pieces:
            for table in piece.read(self.store):
                yield from self.then(table, piece.file.root)
