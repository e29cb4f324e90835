"""Test images from tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.errors import RowError, SourceError
from pipeline.imaging.tables import CAPTIONS, ImageTable, captions_of

PUBLISHED = ("kodak24", "live1", "set5")
"""Sets whose protocols the field's papers share."""


class Sample(NamedTuple):
    """One undamaged test image."""

    id: str
    pixels: npt.NDArray[np.uint8]
    """[H, W, 3]"""
    captions: tuple[str, ...]
    row: dict[str, Any]
    """All of its row."""


def read_samples(tables: Sequence[ImageTable], limit: int | None = None) -> list[Sample]:
    """Read tables with `image` and, where they have them, `id` and `captions` or `caption`; the first `limit` rows.

    Raises:
        SourceError: a table has no column `image`, or one of its images is broken.
    """
    samples: list[Sample] = []
    for table in tables:
        table.check("image")
        for number, row in enumerate(table.rows()):
            if len(samples) == limit:
                return samples
            try:
                pixels = table.decode(row, "image")
            except RowError as error:
                raise SourceError(f"{table.path}, row {number} ({row.get('id')}): {error.message}") from error
            captions = captions_of(next((row[name] for name in CAPTIONS if row.get(name)), None))
            samples.append(Sample(str(row.get("id", number)), pixels, captions, row))
    return samples
