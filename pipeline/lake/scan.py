"""The rows of a table, read file by file.

What pyarrow keeps of a Parquet file that it has opened is some kilobyte a column and row group, for as long as the
dataset lives; of a table of a million images that is gigabytes. Here it goes with each file.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import fsspec
import pyarrow as pa
import pyarrow.dataset as pads

AHEAD = 8
"""Files whose beginning is read while others are looked at."""
_ROW_GROUPS = 8
"""Of a file that are read at a time."""


@dataclasses.dataclass(frozen=True)
class Scan:
    """Some files of a table, and which of their rows count."""

    store: fsspec.AbstractFileSystem
    root: str
    paths: tuple[str, ...]
    """As the store has them, in the order in which they are read."""
    schema: pa.Schema
    """Of the table, with its partitions."""
    condition: pads.Expression | None = None

    def batches(
        self,
        columns: Mapping[str, pads.Expression],
        condition: pads.Expression | None = None,
        paths: Collection[str] | None = None,
    ) -> Iterator[tuple[str, pa.RecordBatch]]:
        """The rows that count, in the order of the table, each batch with the path of its file.

        Args:
            columns: what is read, by the names that it gets.
            condition: of the rows that count, those alone.
            paths: of the files, these alone.
        """
        both = [one for one in (self.condition, condition) if one is not None]
        where = both[0] & both[1] if len(both) > 1 else both[0] if both else None
        wanted = [path for path in self.paths if paths is None or path in paths]
        with ThreadPoolExecutor(AHEAD) as readers:
            readings = (_Reading(readers, path, self._batches(path, columns, where)) for path in wanted)
            files = deque(islice(readings, AHEAD))
            while files:
                batch = files[0].next()
                if batch is not None:
                    yield files[0].path, batch
                else:
                    files.popleft()
                    files.extend(islice(readings, 1))

    def table(self, columns: Mapping[str, pads.Expression], condition: pads.Expression | None = None) -> pa.Table:
        """All of these together, in memory."""
        batches = [batch for _, batch in self.batches(columns, condition)]
        return pa.Table.from_batches(batches) if batches else self.dataset(()).to_table(columns=dict(columns))

    def dataset(self, paths: Sequence[str]) -> pads.Dataset:
        """Some of the files, as pyarrow sees them: all of their rows and columns."""
        options = {"filesystem": self.store, "format": "parquet", "partitioning": "hive"}
        return pads.dataset(list(paths), schema=self.schema, partition_base_dir=self.root, **options)

    def _batches(
        self, path: str, columns: Mapping[str, pads.Expression], condition: pads.Expression | None
    ) -> Iterator[pa.RecordBatch]:
        # With threads of its own, pyarrow would hold far more than so many row groups.
        yield from self.dataset([path]).to_batches(
            columns=dict(columns), filter=condition, use_threads=False, batch_readahead=_ROW_GROUPS
        )


class _Reading:
    """A file that is read one batch ahead."""

    def __init__(self, readers: ThreadPoolExecutor, path: str, batches: Iterator[pa.RecordBatch]) -> None:
        self.path, self._readers, self._batches = path, readers, batches
        self._ahead = self._read()

    def next(self) -> pa.RecordBatch | None:
        """None: there is no more."""
        batch = self._ahead.result()
        if batch is not None:
            self._ahead = self._read()
        return batch

    def _read(self) -> Future[pa.RecordBatch | None]:
        return self._readers.submit(next, self._batches, None)
