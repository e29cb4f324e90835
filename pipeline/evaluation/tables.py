"""Test images from Parquet tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from pipeline.errors import RowError, SourceError
from pipeline.imaging.decode import decode_image


class Sample(NamedTuple):
    """One undamaged test image."""

    id: str
    pixels: npt.NDArray[np.uint8]
    """[H, W, 3]"""
    captions: tuple[str, ...]
    row: dict[str, Any]
    """All of its row."""


def read_samples(path: str | Path) -> list[Sample]:
    """Read a table with `image` and, where it has them, `id` and `captions` or `caption`.

    Raises:
        SourceError: the file cannot be read, has no column `image`, or one of its images is broken.
    """
    try:
        table = pq.read_table(path)
    except (OSError, ValueError) as error:
        raise SourceError(f"cannot read {path}: {error}") from error
    if "image" not in table.column_names:
        raise SourceError(f"{path} has no column 'image'; its columns are {', '.join(table.column_names)}")
    samples = []
    for number, row in enumerate(table.to_pylist()):
        data = row["image"]["bytes"] if isinstance(row["image"], dict) else row["image"]
        texts = row.get("captions") or row.get("caption") or []
        captions = (texts,) if isinstance(texts, str) else tuple(texts)
        try:
            pixels = decode_image(data).rgb
        except RowError as error:
            raise SourceError(f"{path}, row {number} ({row.get('id')}): {error.message}") from error
        samples.append(Sample(str(row.get("id", number)), pixels, captions, row))
    return samples
