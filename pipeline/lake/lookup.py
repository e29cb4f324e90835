"""Rows of the output table, read by their keys."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.dataset as pads

from pipeline.lake.scan import Scan


@dataclasses.dataclass(frozen=True)
class Lookup:
    """Reads rows of a table by their keys. Travels to Ray's workers."""

    table: Scan
    key_column: str

    def __call__(self, keys: Sequence[str]) -> pa.Table:
        """Rows with these keys, with all columns, partitions too."""
        wanted = pads.field(self.key_column).isin(pa.array(list(keys), pa.string()))
        return self.table.dataset(self.table.paths).to_table(filter=wanted)
