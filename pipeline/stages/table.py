"""Rows of a stage as Arrow tables, beside the source's own columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from pipeline.errors import ConservatorError

Row = dict[str, Any]


def with_columns(source: pa.Table, rows: Sequence[Row], schema: pa.Schema) -> pa.Table:
    """The source's columns with those of `schema`, a dict of values for each row; absent values are null."""
    table = source
    for field in schema:
        values = pa.array([row.get(field.name) for row in rows], type=field.type)
        table = table.append_column(field, values)
    return table


def without_columns(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Only the columns that are not of `schema`."""
    return table.select([name for name in table.column_names if name not in schema.names])


def failure(stage: str, error: Exception) -> Row:
    """The error columns of a row that failed in `stage`."""
    message = error.message if isinstance(error, ConservatorError) else str(error) or type(error).__name__
    name = type(error).__name__
    attempts = getattr(error, "attempts", 1)
    return {"error_stage": stage, "error_type": name, "error_message": message, "attempts": attempts}
