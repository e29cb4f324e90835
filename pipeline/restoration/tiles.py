"""Cuts images into tiles of one size (height and width) with a margin, and puts the inner parts together again."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.restoration.views import CELL

CPU = torch.device("cpu")
Size = tuple[int, int]
"""Height and width of tiles, pixels."""
WHITES = {np.dtype(np.uint8): 255.0, np.dtype(np.uint16): 65535.0}
"""What whole numbers mean by white."""


@dataclasses.dataclass(frozen=True)
class Tile:
    """One tile's place in its image, in pixels; the tile may reach beyond the lower and right edges."""

    top: int
    left: int
    keep: tuple[int, int, int, int]
    """Top, left, bottom, right of the part of the image that this tile is trusted with."""

    def box(self, size: Size, height: int, width: int) -> tuple[float, float, float, float]:
        """(top, left, bottom, right) of the tile, which is of this size, as shares of the image's sides."""
        bottom, right = self.top + size[0], self.left + size[1]
        return self.top / height, self.left / width, bottom / height, right / width


def covering(length: int, side: int, margin: int) -> int:
    """How many tiles it takes to cover `length` with `margin` off every inner edge, at least."""
    return 1 if length <= side else -(-(length - 2 * margin) // _inner(side, margin))


def _inner(side: int, margin: int) -> int:
    inner = side - 2 * margin
    return inner - (inner % CELL if inner > CELL else 0)


def spans(length: int, side: int, margin: int) -> Iterator[tuple[int, int, int]]:
    """Start, and the span kept (from, to), of the fewest tiles that cover `length` with `margin` off every inner edge.

    Tiles start on multiples of CELL, as the patches did in training: JPEG's blocks lie alike in every tile then.
    """
    if length <= side:
        yield 0, 0, length
        return
    inner, count = _inner(side, margin), covering(length, side, margin)
    last = -(-(length - side) // CELL) * CELL
    kept = 0
    for index in range(count):
        start = min(index * inner, last)
        end = length if index == count - 1 else start + side - margin
        yield start, kept, end
        kept = end


def plan_tiles(height: int, width: int, size: Size, margin: int) -> list[Tile]:
    """Tiles of a size that cover an image; every pixel is kept from exactly one."""
    rows, columns = list(spans(height, size[0], margin)), list(spans(width, size[1], margin))
    return [
        Tile(top, left, (keep_top, keep_left, keep_bottom, keep_right))
        for top, keep_top, keep_bottom in rows
        for left, keep_left, keep_right in columns
    ]


def cut(pixels: npt.NDArray[np.generic], tile: Tile, size: Size, device: torch.device = CPU) -> Tensor:
    """The pixels of a tile of a size, [C, *size], float32 in 0..1, from [H, W, C] of uint8, uint16, bool or float.

    Beyond the edges of the image its picture is mirrored.
    """
    height, width = pixels.shape[:2]
    bottom, right = tile.top + size[0], tile.left + size[1]
    part = pixels[tile.top : bottom] if bottom <= height else pixels[_mirrored(tile.top, size[0], height)]
    part = part[:, tile.left : right] if right <= width else part[:, _mirrored(tile.left, size[1], width)]
    return as_floats(part, device)


def as_floats(pixels: npt.NDArray[np.generic], device: torch.device = CPU) -> Tensor:
    """[H, W, C] of uint8, uint16, bool or float -> [C, H, W], float32 in 0..1."""
    tensor = sent(torch.from_numpy(pixels.copy()), device).permute(2, 0, 1).float()
    return tensor / WHITES[pixels.dtype] if pixels.dtype in WHITES else tensor


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """On a device; a GPU gets it when it has come so far, and is not waited for."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def _mirrored(start: int, side: int, length: int) -> npt.NDArray[np.intp]:
    index = np.arange(start, start + side)
    if length == 1:
        return np.zeros_like(index)
    period = 2 * (length - 1)
    index = index % period
    return np.where(index < length, index, period - index)
