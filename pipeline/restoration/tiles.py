"""Cuts images into tiles of one size with a margin, and puts the inner parts together again."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.restoration.views import CELL

CPU = torch.device("cpu")
WHITES = {np.dtype(np.uint8): 255.0, np.dtype(np.uint16): 65535.0}
"""What whole numbers mean by white."""


@dataclasses.dataclass(frozen=True)
class Tile:
    """One tile's place in its image, in pixels; the tile may reach beyond the lower and right edges."""

    top: int
    left: int
    keep: tuple[int, int, int, int]
    """Top, left, bottom, right of the part of the image that this tile is trusted with."""

    def box(self, side: int, height: int, width: int) -> tuple[float, float, float, float]:
        """(top, left, bottom, right) of the tile as shares of the image's sides."""
        return self.top / height, self.left / width, (self.top + side) / height, (self.left + side) / width


def spans(length: int, side: int, margin: int) -> Iterator[tuple[int, int, int]]:
    """Start, and the span kept (from, to), of the fewest tiles that cover `length` with `margin` off every inner edge.

    Tiles start on multiples of CELL, as the patches did in training: JPEG's blocks lie alike in every tile then.
    """
    if length <= side:
        yield 0, 0, length
        return
    inner = side - 2 * margin
    inner -= inner % CELL if inner > CELL else 0
    count = -(-(length - 2 * margin) // inner)
    last = -(-(length - side) // CELL) * CELL
    kept = 0
    for index in range(count):
        start = min(index * inner, last)
        end = length if index == count - 1 else start + side - margin
        yield start, kept, end
        kept = end


def plan_tiles(height: int, width: int, side: int, margin: int) -> list[Tile]:
    """Tiles that cover an image; every pixel is kept from exactly one."""
    rows, columns = list(spans(height, side, margin)), list(spans(width, side, margin))
    return [
        Tile(top, left, (keep_top, keep_left, keep_bottom, keep_right))
        for top, keep_top, keep_bottom in rows
        for left, keep_left, keep_right in columns
    ]


def cut(pixels: npt.NDArray[np.generic], tile: Tile, side: int, device: torch.device = CPU) -> Tensor:
    """The tile's pixels [C, side, side], float32 in 0..1, from [H, W, C] of uint8, uint16, bool or float.

    Beyond the edges of the image its picture is mirrored.
    """
    height, width = pixels.shape[:2]
    rows = _mirrored(tile.top, side, height)
    columns = _mirrored(tile.left, side, width)
    part = pixels[tile.top : tile.top + side] if tile.top + side <= height else pixels[rows]
    part = part[:, tile.left : tile.left + side] if tile.left + side <= width else part[:, columns]
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
