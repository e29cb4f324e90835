"""The cells of an image column, in any of the shapes in which tables hold images."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa

from pipeline.errors import MissingImage, UnsupportedColumn
from pipeline.redaction import redacted

IMAGE_TYPES = "images are bytes, URIs (string), or a struct with 'bytes' and 'path'"

_SIGNATURE = re.compile(
    r"(x-amz-|x-goog-|x-oss-|(aws|google)access|signature=|sig=|expires=|token=|key-pair-id=|policy=|s[evprt]=|skoid=|sktid=)",
    re.IGNORECASE,
)
"""How the parts of a query begin with which stores sign a URL for a while."""

LONGEST_URI = 2048
"""Characters; longer text in an image column is something else, such as an image in base64."""

Fetch = Callable[[str], bytes]
"""Reads the file behind a URI; raises a RowError if it must not or cannot."""


def holds_images(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold images: bytes, URIs, or Hugging Face's struct of `bytes` and `path`."""
    if pa.types.is_dictionary(kind):
        return holds_images(kind.value_type)
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    return is_bytes(kind) or is_text(kind) or pa.types.is_null(kind)


def read_cell(value: Any, kind: pa.DataType, column: str, fetch: Fetch) -> bytes:
    """The image file in one cell, or behind the URI that it holds.

    Raises:
        MissingImage: the cell is null.
        UnsupportedColumn: the column's type holds no images.
        RowError: as `fetch` raises it.
    """
    if not holds_images(kind):
        raise UnsupportedColumn(f"column {column!r} has the type {kind}; {IMAGE_TYPES}")
    data = value.get("bytes") if isinstance(value, dict) else value
    uri = _uri(value)
    if isinstance(data, bytes) and (data or uri is None):
        return data
    if uri is None:
        raise MissingImage(f"column {column!r} is {'empty' if value else 'null'}")
    return fetch(uri)


def is_empty(value: Any) -> bool:
    """Whether a cell holds nothing: null, no bytes, no text, or a struct of such."""
    if isinstance(value, dict):
        return is_empty(value.get("bytes")) and is_empty(value.get("path"))
    return value is None or (isinstance(value, bytes | str) and not value)


def uri_of(value: Any) -> str | None:
    """The URI that a cell holds, as it may be shown: without user name, password or query, and not endless."""
    uri = _uri(value)
    return None if uri is None else shown(uri)


def uri_in(value: Any) -> str | None:
    """The URI behind which a cell's image is, if it does not hold its bytes."""
    if isinstance(value, dict) and value.get("bytes"):
        return None
    return _uri(value)


def _uri(value: Any) -> str | None:
    place = value.get("path") if isinstance(value, dict) else value
    return place if isinstance(place, str) and place else None


def shown(uri: str) -> str:
    """A URI from a cell as it may stand in messages and tables; one that is too long to be one is cut."""
    text = redacted(uri)
    return text if len(text) <= LONGEST_URI else f"{text[:40]}… ({len(text)} characters)"


def unsigned(uri: str) -> str:
    """A URL without user name, password and signature: the same however often it is signed anew."""
    if "://" not in uri:
        return uri
    try:
        parts = urlsplit(uri)
    except ValueError:
        return uri
    kept = [pair for pair in parts.query.split("&") if pair and not _SIGNATURE.match(pair)]
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="&".join(kept)).geturl()


def is_bytes(kind: pa.DataType) -> bool:
    """Whether cells are bytes."""
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
    return any(test(kind) for test in tests)


def is_list(kind: pa.DataType) -> bool:
    """Whether cells are lists."""
    views = (pa.types.is_list_view, pa.types.is_large_list_view)
    return any(test(kind) for test in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list, *views))


def is_text(kind: pa.DataType) -> bool:
    """Whether cells are strings."""
    return any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))
