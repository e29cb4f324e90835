"""MDSI: Ziaei Nafchi, Shahkolaei, Hedjam, Cheriet: Mean deviation similarity index, IEEE Access 2016.

As in the authors' code and piq's (piqa's takes the mean over columns and images, which is not the paper's).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.quality.gradients import similarity, slopes
from pipeline.quality.strips import PIXELS, floats

_LHM = ((0.2989, 0.5870, 0.1140), (0.30, 0.04, -0.35), (0.34, -0.60, 0.17))
_C1, _C2, _C3 = 140.0, 55.0, 550.0
_ALPHA = 0.6
_SIDE = 256
_LARGEST = 8_000_000
"""Pixels of an image that is not made smaller."""


def mdsi(images: Tensor, truths: Tensor) -> Tensor:
    """Distance [K, N] of images [K, N, H, W, 3] to truths [N, H, W, 3], uint8: 0 and more, lower is better; 0: equal.

    Not a number of panoramas so long that they would not fit into memory.
    """
    count = images.shape[:2]
    if min(truths.shape[1:3]) < 1.5 * _SIDE and truths.shape[1] * truths.shape[2] > _LARGEST:
        return torch.full(count, math.nan, dtype=torch.float64, device=images.device)
    flat, y = _small(images.flatten(0, 1)), _small(truths)
    x, slope_x, slope_y = _apart(flat, count), _apart(_slopes(flat), count), _slopes(y)
    size_x, size_y, size_mean = _size(slope_x), _size(slope_y), _size((slope_x + slope_y) / 2)
    gradients = (
        similarity(size_x, size_y, _C1) + similarity(size_x, size_mean, _C2) - similarity(size_y, size_mean, _C2)
    )
    colours_x, colours_y = x[:, :, 1:], y[:, 1:]
    of_colours = (2 * (colours_x * colours_y).sum(2, keepdim=True) + _C3) / (
        (colours_x**2 + colours_y**2).sum(2, keepdim=True) + _C3
    )
    both = _ALPHA * gradients + (1 - _ALPHA) * of_colours
    roots = both.to(torch.complex128) ** 0.25  # some are below 0
    deviations: Tensor = (roots - roots.mean((2, 3, 4), keepdim=True)).abs().mean((2, 3, 4))
    return deviations**0.25


def _apart(flat: Tensor, count: tuple[int, ...]) -> Tensor:
    return flat.view(*count, *flat.shape[1:])


def _small(images: Tensor) -> Tensor:
    """[N, H, W, 3] -> [N, 3, h, w] of LHM, 0..255, its shorter side between 171 and 384 pixels if it was longer.

    Each pixel is the mean of a square around its place; beyond the edges is black.
    """
    count, height, width = images.shape[:3]
    factor = max(1, round(min(height, width) / _SIDE))
    before, cells = (factor - 1) // 2, -(-height // factor)
    at_once = max(1, PIXELS // (count * width * factor))
    parts = []
    for cell in range(0, cells, at_once):
        top, bottom = cell * factor - before, min(cells, cell + at_once) * factor - before
        rows = floats(images[:, max(0, top) : bottom]) * 255
        pad = (before, factor // 2, max(0, -top), max(0, bottom - height))
        parts.append(F.avg_pool2d(F.pad(rows, pad), factor))
    return torch.einsum("kc,nchw->nkhw", torch.tensor(_LHM, device=images.device), torch.cat(parts, 2))


def _slopes(planes: Tensor) -> Tensor:
    """Prewitt gradient of the brightness of [N, 3, h, w]: [N, 2, h, w]."""
    return slopes(planes[:, :1], [1.0, 1.0, 1.0], [1 / 3, 0.0, -1 / 3], (1, 1))


def _size(slopes: Tensor) -> Tensor:
    return slopes.square().sum(-3, keepdim=True).sqrt()
