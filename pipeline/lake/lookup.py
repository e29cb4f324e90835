"""Rows of the output table, read by their keys."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import fsspec
import pyarrow as pa
import pyarrow.dataset as pads


@dataclasses.dataclass(frozen=True)
class Lookup:
    """Reads rows of a table by their keys. Travels to Ray's workers."""

    store: fsspec.AbstractFileSystem
    root: str
    paths: tuple[str, ...]
    schema: pa.Schema
    key_column: str

    def __call__(self, keys: Sequence[str]) -> pa.Table:
        """Rows with these keys, with all columns, partitions too."""
        options = {"filesystem": self.store, "format": "parquet", "partitioning": "hive"}
        dataset = pads.dataset(list(self.paths), schema=self.schema, partition_base_dir=self.root, **options)
        return dataset.to_table(filter=pads.field(self.key_column).isin(pa.array(list(keys), pa.string())))
