"""Strips: rows of images that are scored at a time, so that memory does not grow with the image."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

PIXELS = 1_000_000
"""Scored at a time; the scores hold some twenty floats for each."""
_LEAST = 16
"""Rows of a strip at least, however wide: more than any score looks around a pixel."""


def strips(images: Tensor, reach: int = 0, step: int = 1, pixels: int | None = None) -> Iterator[tuple[slice, slice]]:
    """Which rows of `images` [N, H, W, …] to look at together: all of them come once.

    Args:
        images: of one size.
        reach: rows above and below that are looked at too, as far as the image goes; a multiple of `step`.
        step: strips begin at multiples of it.
        pixels: looked at together; None: `PIXELS`.

    Yields:
        The rows to load, and which of them count.
    """
    count, height, width = images.shape[:3]
    tall = max(_LEAST, (pixels or PIXELS) // (count * width) // step * step)
    tall += -tall % step
    for top in range(0, height, tall):
        bottom, first = min(height, top + tall), max(0, top - reach)
        yield slice(first, min(height, bottom + reach)), slice(top - first, bottom - first)


def floats(images: Tensor) -> Tensor:
    """[N, H, W, C] of 0..255 -> [N, C, H, W] in 0..1, channel by channel in memory, where sums are fast."""
    return images.movedim(-1, 1).contiguous().to(torch.float32).div_(255)
