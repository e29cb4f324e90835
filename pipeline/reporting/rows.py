"""What reports are made of: the rows of a table."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Protocol

import pyarrow as pa
import pyarrow.dataset as pads


class Rows(Protocol):
    """Reads them."""

    @property
    def schema(self) -> pa.Schema:
        """Of the table."""

    def batches(
        self,
        columns: Mapping[str, pads.Expression],
        condition: pads.Expression | None = None,
        paths: Collection[str] | None = None,
    ) -> Iterator[tuple[str, pa.RecordBatch]]:
        """Those that meet a condition, of files with these paths; each batch with the path of its file."""
