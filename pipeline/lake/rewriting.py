"""Takes rows out of data files that are never changed: each is written anew without them, under another name.

Which files hold some of the rows is found by reading the column of the rows' keys, and nothing else.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import fsspec
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.lake.places import join
from pipeline.lake.table import DataFile, Removal

READERS = 16
"""Columns of keys read at a time."""
PREFIX = "rewritten_"
"""How the names of the new files begin; the number of the commit follows."""


class Rewritten(NamedTuple):
    """A data file that goes, and what comes in its place."""

    old: str
    new: DataFile | None
    """None: all of its rows go."""


def rewrite(
    store: fsspec.AbstractFileSystem, root: str, paths: Sequence[str], removal: Removal, number: int
) -> list[Rewritten]:
    """Write anew, without the rows that go, the data files that hold some of them.

    To be repeated after a crash: the same commit writes the same files.

    Args:
        store: of the table.
        root: the table's folder.
        paths: of its data files, relative to it.
        removal: which rows go.
        number: of the commit that they go with.
    """
    if not removal:
        return []

    def holds(path: str) -> bool:
        with store.open(join(root, path), "rb") as file:
            keys = pq.ParquetFile(file).read(columns=[removal.column])[removal.column]
        return bool(pc.any(removal.of(keys)).as_py())

    with ThreadPoolExecutor(READERS) as pool:
        affected = [path for path, is_hit in zip(paths, pool.map(holds, paths), strict=True) if is_hit]
    return [
        Rewritten(path, _without(store, root, path, removal, f"{PREFIX}{number:08d}_{count:05d}.parquet"))
        for count, path in enumerate(sorted(affected))
    ]


def _without(store: fsspec.AbstractFileSystem, root: str, path: str, removal: Removal, name: str) -> DataFile | None:
    """Write a data file without the rows that go beside the old one, row group by row group."""
    new, rows = join(posixpath.dirname(path), name), 0
    with store.open(join(root, path), "rb") as old:
        parquet = pq.ParquetFile(old)
        keys = parquet.read(columns=[removal.column])[removal.column]
        if pc.all(removal.of(keys)).as_py():
            return None
        with store.open(join(root, new), "wb") as file, pq.ParquetWriter(file, parquet.schema_arrow) as writer:
            for group in range(parquet.num_row_groups):
                table = parquet.read_row_group(group)
                table = table.filter(pc.invert(removal.of(table[removal.column])))
                if table.num_rows:
                    writer.write_table(table)
                rows += table.num_rows
    store.invalidate_cache()
    return DataFile(new, int(store.size(join(root, new))), rows)
