"""Rows of a stage as Arrow tables, beside the source's own columns.

A stage's columns carry a prefix that no source column may have, so that no name can collide on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from pipeline.errors import ConservatorError
from pipeline.imaging.cells import is_list
from pipeline.schema import INTERNAL

Row = dict[str, Any]


def with_columns(source: pa.Table, rows: Sequence[Row], schema: pa.Schema, prefix: str = INTERNAL) -> pa.Table:
    """The source's columns, then those of `schema`: a dict of values for each row; absent values are null."""
    table = source
    for field in schema:
        values = pa.array([row.get(field.name) for row in rows], type=field.type)
        table = table.append_column(field.with_name(prefix + field.name), values)
    return table


def as_type(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """A column as the type that it has in the output; what is no list where lists are wanted becomes one of one.

    Times are cut off below the unit of that type.
    """
    if is_list(kind) and not is_list(column.type):
        return pa.chunked_array([[None if value is None else [value] for value in column.to_pylist()]], type=kind)
    if pa.types.is_dictionary(column.type) and not pa.types.is_dictionary(kind):
        column = column.cast(column.type.value_type)
    return column.cast(kind, safe=not _is_finer(column.type, kind))


def _is_finer(kind: pa.DataType, than: pa.DataType) -> bool:
    """Whether times of this type are given more exactly than those of another."""
    units = ("s", "ms", "us", "ns")
    if pa.types.is_timestamp(kind) and pa.types.is_timestamp(than):
        return units.index(kind.unit) > units.index(than.unit)
    return bool(pa.types.is_date64(kind) and pa.types.is_date32(than))


def source_columns(table: pa.Table) -> pa.Table:
    """Only the source's own columns."""
    return table.select([name for name in table.column_names if not name.startswith(INTERNAL)])


def stage_rows(table: pa.Table) -> list[Row]:
    """Only the stage's columns, a dict a row, under their plain names."""
    names = [name for name in table.column_names if name.startswith(INTERNAL)]
    rows: list[Row] = table.select(names).rename_columns([name.removeprefix(INTERNAL) for name in names]).to_pylist()
    return rows


def failure(stage: str, error: Exception) -> Row:
    """The error columns of a row that failed in `stage`."""
    message = error.message if isinstance(error, ConservatorError) else str(error) or type(error).__name__
    attempts = getattr(error, "attempts", 1)
    return {"error_stage": stage, "error_type": type(error).__name__, "error_message": message, "attempts": attempts}
