"""The cells of an image column, in any of the shapes in which tables hold images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pyarrow as pa

from pipeline.errors import MissingImage, UnsupportedColumn

IMAGE_TYPES = "images are bytes, URIs (string), or a struct with 'bytes' and 'path'"

Fetch = Callable[[str], bytes]
"""Reads the file behind a URI; raises a RowError if it must not or cannot."""


class File(NamedTuple):
    """One image file, wherever it lay."""

    data: bytes
    uri: str | None


def holds_images(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold images: bytes, URIs, or Hugging Face's struct of `bytes` and `path`."""
    if pa.types.is_dictionary(kind):
        return holds_images(kind.value_type)
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    return _is_bytes(kind) or _is_text(kind) or pa.types.is_null(kind)


def read_cell(value: Any, kind: pa.DataType, column: str, fetch: Fetch) -> File:
    """The image file in one cell.

    Raises:
        MissingImage: the cell is null.
        UnsupportedColumn: the column's type holds no images.
        RowError: as `fetch` raises it.
    """
    if not holds_images(kind):
        raise UnsupportedColumn(f"column {column!r} has the type {kind}; {IMAGE_TYPES}")
    if isinstance(value, dict):
        data, uri = value.get("bytes"), value.get("path")
        if data is None and uri:
            return File(fetch(uri), uri)
        if data is None:
            raise MissingImage(f"column {column!r} is null")
        return File(data, uri)
    if value is None:
        raise MissingImage(f"column {column!r} is null")
    return File(fetch(value), value) if isinstance(value, str) else File(value, None)


def _is_bytes(kind: pa.DataType) -> bool:
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
    return any(test(kind) for test in tests)


def _is_text(kind: pa.DataType) -> bool:
    return any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))
