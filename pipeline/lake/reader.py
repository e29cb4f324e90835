"""Reads the rows that are wanted of the source's files, each with a key of its own, as a Ray datasource.

Ray's own reader knows no row numbers, and a user's ids may be missing or come twice; a row's key is its file's and its
number in it. Row groups that are done are not read again, nor columns that nobody wants.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
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

from pipeline.lake.inputs import ImageFile, ParquetFile, SourceFile, broken
from pipeline.schema import ROW_KEY

PIECE = 64_000_000
"""Bytes read by a task, about."""
BEGIN = (1, 1, 2, 4, 8, 16)
"""Rows of the first tasks: Ray hands on what a task has made when it ends, or when a block of it is full, which takes a
CPU half a minute, and an actor what it has restored when all of it is: of one row the first, in a second or so."""
AT_ONCE = 200
"""Tasks that are wanted at least, as long as none is smaller than `SMALL`."""
FILES = 500
"""Image files read by a task at most."""
BATCH = 16_000_000
"""Bytes handed on at a time, about."""
BUFFER = 1_000_000
"""Bytes of a column read ahead."""
SMALL = 1_000_000
"""Bytes of small files that are read by one task, at least: together they fill batches of the model."""
TASKS = 4_900
"""Ray keeps every task in the driver's memory: of more pieces several make a task."""

Then = Callable[[pa.Table, str], Iterator[pa.Table]]
"""What a task does with the rows it has read, and the root of their file."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """Some row groups of a Parquet file."""

    file: ParquetFile
    groups: tuple[int, ...]
    first: int
    """The number of the first row in the file."""
    wanted: npt.NDArray[np.bool_]
    """Of its rows, those that are to be read."""

    @property
    def paths(self) -> tuple[str, ...]:
        """Of the file."""
        return (self.file.path,)

    @property
    def root(self) -> str:
        """See `Found`."""
        return self.file.root

    @property
    def rows(self) -> int:
        """How many are wanted."""
        return int(self.wanted.sum())

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return sum(self.file.groups[group].size for group in self.groups)

    def read(self, store: fsspec.AbstractFileSystem, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Its rows that are wanted, with their keys and the values of partitions."""
        rows = max(1, int(len(self.wanted) * BATCH / max(1, self.size)))
        start = 0
        with broken(self.file.path), store.open(self.file.path, "rb") as opened:
            # No whole row group at once: those of other writers may be larger than memory.
            parquet = pq.ParquetFile(opened, pre_buffer=False, buffer_size=BUFFER)
            for table in self.file.read(parquet, self.groups, columns, rows):
                numbers = np.flatnonzero(self.wanted[start : start + table.num_rows])
                if len(numbers):
                    yield self._table(table.take(pa.array(numbers)), numbers + self.first + start)
                start += table.num_rows
                if not self.wanted[start:].any():  # what is left need not be read
                    return

    def split(self, rows: int) -> tuple[Piece, Piece]:
        """The first so many of its rows, and the others."""
        before = np.cumsum(self.wanted) <= rows
        return tuple(dataclasses.replace(self, wanted=self.wanted & part) for part in (before, ~before))  # type: ignore[return-value]

    def _table(self, table: pa.Table, numbers: npt.NDArray[np.int64]) -> pa.Table:
        for name, value in self.file.constants.items():
            table = table.append_column(name, pa.repeat(value, len(numbers)))
        keys = [f"{self.file.key}-{number}" for number in numbers.tolist()]
        return table.append_column(ROW_KEY, pa.array(keys, pa.string()))


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Some image files. What is in them is fetched by who decodes them."""

    files: tuple[ImageFile, ...]

    @property
    def paths(self) -> tuple[str, ...]:
        """Of the files."""
        return tuple(file.path for file in self.files)

    @property
    def root(self) -> str:
        """Of their names."""
        return self.files[0].root

    @property
    def rows(self) -> int:
        """How many there are."""
        return len(self.files)

    @property
    def size(self) -> int:
        """Bytes of all."""
        return sum(file.size for file in self.files)

    def split(self, rows: int) -> tuple[Pictures, Pictures]:
        """The first so many of them, and the others."""
        return Pictures(self.files[:rows]), Pictures(self.files[rows:])

    def read(self, store: fsspec.AbstractFileSystem, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Their rows, a few at a time, with their keys."""
        few = max(1, len(self.files) * BATCH // max(1, self.size))
        for start in range(0, len(self.files), few):
            files = self.files[start : start + few]
            table = pa.Table.from_pylist([dict(file.row) for file in files], files[0].schema)
            yield table.append_column(ROW_KEY, pa.array([f"{file.key}-0" for file in files], pa.string()))


Part = Piece | Pictures


def plan_parts(
    files: Sequence[SourceFile],
    wanted: Mapping[str, npt.NDArray[np.bool_]],
    done: Mapping[str, Sequence[int]],
) -> list[Part]:
    """What is to be read of these files.

    Args:
        files: in the order in which they are read.
        wanted: which of their rows are, by the files' keys; those of other files are all.
        done: numbers of rows that are not wanted any more, by their file's key.
    """
    parts: list[Part] = []
    images: list[ImageFile] = []
    held = 0
    for file in files:
        rows = wanted[file.key].copy() if file.key in wanted else np.ones(file.rows, np.bool_)
        if file.key in done:
            rows[list(done[file.key])] = False
        if isinstance(file, ParquetFile):
            parts += _pieces(file, rows)
        elif rows[0]:
            full = len(images) == FILES or held + file.size > PIECE  # a giant goes alone
            if images and (full or images[-1].root != file.root):
                parts.append(Pictures(tuple(images)))
                images, held = [], 0
            images.append(file)
            held += file.size
    return [*parts, Pictures(tuple(images))] if images else parts


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


class NothingToFilter(CheckpointManager):  # type: ignore[misc]  # Ray is untyped here
    """Rows that are done are not read: Ray has nothing to take out, and nothing to recover."""

    def load_checkpoint(self, data_file_dir: str | None = None, data_file_filesystem: Any = None) -> tuple[None, int]:
        """Nothing."""
        return None, 0


class Rows(Datasource):  # type: ignore[misc]  # Ray is untyped here
    """The datasource."""

    def __init__(
        self,
        store: fsspec.AbstractFileSystem,
        parts: Sequence[Part],
        columns: Sequence[str],
        then: Then,
        stopped: Callable[[], bool] = bool,
        at_once: int = 0,
    ) -> None:
        """For tasks to read.

        Args:
            store: where the parts lie.
            parts: of `plan_parts`.
            columns: that are read.
            then: what is done with the rows.
            stopped: asked before every part is read: when it says so, nothing more is.
            at_once: how many tasks the cluster could run; there are `AT_ONCE` in any case.
        """
        super().__init__()
        self._size = sum(part.size for part in parts)
        share = min(PIECE, max(SMALL, self._size // max(AT_ONCE, at_once)))
        first, others = _begin(parts)
        fewest = -(-len(parts) // TASKS)
        self._bundles = [*first, *_bundles(others, share, fewest)]
        self._store, self._columns, self._then, self._stopped = store, tuple(columns), then, stopped

    def get_name(self) -> str:
        """As Ray shows it."""
        return "Source"

    def estimate_inmemory_data_size(self) -> int:
        """Bytes in the files."""
        return self._size

    @property
    def tasks(self) -> int:
        """How many there are. Ray must be told: where it thinks that they are few it cuts up what they make."""
        return len(self._bundles)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """A task for each part, or for several where they are small or very many; and little ones to begin with."""
        tasks = []
        for parts in self._bundles:
            metadata = BlockMetadata(
                num_rows=None,  # unknown: it may be stopped
                size_bytes=sum(part.size for part in parts),
                input_files=None,
                exec_stats=None,
            )
            tasks.append(ReadTask(_Read(self._store, tuple(parts), self._columns, self._then, self._stopped), metadata))
        return tasks


@dataclasses.dataclass(frozen=True)
class _Read:
    store: fsspec.AbstractFileSystem
    parts: tuple[Part, ...]
    columns: tuple[str, ...]
    then: Then
    stopped: Callable[[], bool]

    def __call__(self) -> Iterator[pa.Table]:
        held: list[pa.Table] = []
        root, size = "", 0
        for part in self.parts:
            if self.stopped():
                break
            for table in part.read(self.store, self.columns):
                if held and (part.root != root or not table.schema.equals(held[0].schema)):
                    yield from self.then(_in_one(held), root)
                    held, size = [], 0
                held.append(table)
                root, size = part.root, size + table.nbytes
                if size >= BATCH:
                    yield from self.then(_in_one(held), root)
                    held, size = [], 0
        if held:
            yield from self.then(_in_one(held), root)


def _in_one(tables: Sequence[pa.Table]) -> pa.Table:
    """As one: what comes after takes time and memory for every chunk, and that could be one a row."""
    return tables[0] if len(tables) == 1 else pa.concat_tables(tables).combine_chunks()


def _begin(parts: Sequence[Part]) -> tuple[list[tuple[Part, ...]], list[Part]]:
    """The first few rows, for tasks of their own, and all others."""
    others, bundles = collections.deque(parts), []
    for wanted in BEGIN:
        bundle: list[Part] = []
        while others and wanted > 0:
            part = others.popleft()
            if part.rows > wanted:
                part, rest = part.split(wanted)
                others.appendleft(rest)
            bundle.append(part)
            wanted -= part.rows
        if bundle:
            bundles.append(tuple(bundle))
    return bundles, list(others)


def _bundles(parts: Sequence[Part], size: int, fewest: int) -> Iterator[tuple[Part, ...]]:
    """Neighbouring parts, until they have `size` bytes together; of very many at least `fewest`."""
    bundle: list[Part] = []
    held = 0
    for part in parts:
        if bundle and held + part.size > size and len(bundle) >= fewest:
            yield tuple(bundle)
            bundle, held = [], 0
        bundle.append(part)
        held += part.size
    if bundle:
        yield tuple(bundle)
