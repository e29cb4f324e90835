"""Data files that are written and not yet in the table, as Ray's two-phase checkpoint tells of them.

Ray writes `NAME.pending.parquet` with the keys of the rows, then the data files whose names begin with NAME, then moves
the pending file to `NAME.parquet`. What is pending was perhaps written by half; what is not pending is whole.
"""

from __future__ import annotations

import io
import posixpath
from collections import Counter
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import RunError
from pipeline.lake.places import join, make_folder, names_in, put
from pipeline.lake.table import KEY_DIGITS, DataFile

PENDING = ".pending.parquet"
READERS = 16
"""Small files read at a time."""


class Staged(NamedTuple):
    """One whole write of Ray's: some rows in one data file (or one a partition)."""

    name: str
    keys: pa.ChunkedArray
    """Of its rows."""

    @property
    def rows_by_file(self) -> Counter[str]:
        """How many rows of each input file it holds, by the file's key."""
        counts = pc.value_counts(pc.utf8_slice_codeunits(self.keys, 0, KEY_DIGITS)).to_pylist()
        return Counter({count["values"]: count["counts"] for count in counts})


class Staging:
    """The checkpoint of an output's unfinished input files."""

    def __init__(self, store: fsspec.AbstractFileSystem, data: str, folder: str) -> None:
        """`data` is the table's folder, `folder` that of the checkpoint."""
        self._store, self._data, self.folder = store, data, folder
        self._known: dict[str, Staged] = {}

    def recover(self) -> int:
        """Remove what a killed run left half done; returns how many writes that was. Nobody else may be writing.

        (Ray's own recovery would also remove data whose pending file was copied, but not yet deleted.)
        """
        make_folder(self._store, self.folder)
        names = self._names()
        pending = {name.removesuffix(PENDING) for name in names if name.endswith(PENDING)}
        half = {name for name in pending if f"{name}.parquet" not in names}
        self.remove_half(half)
        self._remove(join(self.folder, name + PENDING) for name in pending - half)
        return len(half)

    def remove_half(self, names: Collection[str]) -> None:
        """Remove what is pending, with its data files."""
        if names:
            self._remove(path for path in self._data_paths() if write_of(path) in names)
            self._remove(join(self.folder, name + PENDING) for name in names)

    @property
    def is_empty(self) -> bool:
        """Whether there is no whole write."""
        return all(name.endswith(PENDING) for name in self._names())

    def whole(self) -> list[Staged]:
        """All writes that are whole."""
        names = [n.removesuffix(".parquet") for n in self._names() if n.endswith(".parquet") and PENDING not in n]
        with ThreadPoolExecutor(READERS) as pool:
            for staged in pool.map(self._read, [name for name in names if name not in self._known]):
                self._known[staged.name] = staged
        return [self._known[name] for name in names]

    def short(self, names: Iterable[str]) -> set[str]:
        """Of these writes, those whose data files are missing or hold less than they should: somebody removed them."""
        wanted = set(names)
        held: Counter[str] = Counter()
        paths = [path for path in self._data_paths() if write_of(path) in wanted] if wanted else []
        with ThreadPoolExecutor(READERS) as pool:
            for path, rows in zip(paths, pool.map(self._readable_rows, paths), strict=True):
                held[write_of(path)] += rows
        return {name for name in wanted if held[name] < len(self._known[name].keys)}

    def data_files(self, names: Iterable[str]) -> list[DataFile]:
        """The data files of some writes.

        Raises:
            RunError: of one of them there are none, or they hold other than its rows.
        """
        wanted = set(names)
        found: dict[str, list[str]] = {name: [] for name in wanted}
        sizes = {}
        for path, size in self._data_paths().items():
            if write_of(path) in wanted:
                found[write_of(path)].append(path)
                sizes[path] = size
        with ThreadPoolExecutor(READERS) as pool:
            rows = dict(zip(sizes, pool.map(self._rows, sizes), strict=True))
        for name, paths in found.items():
            held, wrote = sum(rows[path] for path in paths), len(self._known[name].keys)
            if held != wrote:
                raise RunError(
                    f"the data files of {name} hold {held} rows, but {wrote} were written; somebody has changed "
                    f"{self._data}: remove {join(self.folder, name)}.parquet and its data files, and run again"
                )
        prefix = self._data + "/"
        return [DataFile(path.removeprefix(prefix), sizes[path], rows[path]) for path in sorted(sizes)]

    def discard(self, names: Iterable[str]) -> None:
        """Make writes pending again; `remove_half` throws them away then, or the next `recover`."""
        for name in names:
            path = join(self.folder, f"{name}.parquet")
            put(self._store, join(self.folder, name + PENDING), self._store.cat_file(path))
            self._store.rm_file(path)
            self._known.pop(name, None)

    def forget(self, names: Iterable[str]) -> None:
        """The input files of these writes are finished, and in the ledger."""
        gone = list(names)
        self._remove(join(self.folder, f"{name}.parquet") for name in gone)
        for name in gone:
            self._known.pop(name, None)

    def _names(self) -> set[str]:
        return set(names_in(self._store, self.folder))

    def _data_paths(self) -> dict[str, int]:
        """Sizes of all Parquet files below the table's folder, by path."""
        self._store.invalidate_cache()
        if not self._store.exists(self._data):
            return {}
        found = self._store.find(self._data, detail=True)
        return {path: int(info["size"]) for path, info in found.items() if path.endswith(".parquet")}

    def _read(self, name: str) -> Staged:
        table = pq.read_table(io.BytesIO(self._store.cat_file(join(self.folder, f"{name}.parquet"))))
        return Staged(name, table.column(0).cast(pa.string()))

    def _rows(self, path: str) -> int:
        with self._store.open(path, "rb") as file:
            return int(pq.read_metadata(file).num_rows)

    def _readable_rows(self, path: str) -> int:
        try:
            return self._rows(path)
        except pa.ArrowInvalid:  # cut off, as by a loss of power
            return 0

    def _remove(self, paths: Iterable[str]) -> None:
        gone = list(paths)
        if gone:
            self._store.rm(gone)


def write_of(path: str) -> str:
    """The name of the write that a data file belongs to: Ray adds `-0`, `-1`, …"""
    return posixpath.basename(path).removesuffix(".parquet").rpartition("-")[0]
