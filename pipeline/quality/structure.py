"""SSIM and MS-SSIM, together, since both need the same windows.

Wang, Bovik, Sheikh, Simoncelli: Image quality assessment: from error visibility to structural similarity, 2004; Wang,
Simoncelli, Bovik: Multiscale structural similarity, 2003. The window is a Gaussian of 11 x 11 pixels and 1.5 wide;
edges are reflected, as in torchmetrics, whose values these are; but that holds all of an image in floats, and takes
several times as long (`python -m benchmarks.scores`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.quality.strips import strips

WINDOW = 11
SMALLEST = 176
"""Pixels of the shorter side from which on there is an MS-SSIM: the window must fit into a sixteenth of it."""
_REACH = WINDOW // 2
_BLOCK = 16
_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_C1, _C2 = 0.01**2, 0.03**2


def structure(images: Tensor, truths: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """SSIM [N] and MS-SSIM [N] of images [N, H, W, 3] uint8, in -1..1 and 0..1, higher is better; 1: equal.

    None for images that are smaller than the window, or than `SMALLEST`.
    """
    shorter = min(images.shape[1:3])
    if shorter < WINDOW:
        return None, None
    levels = len(_WEIGHTS) if shorter >= SMALLEST else 1
    whole = torch.zeros(levels, len(images), dtype=torch.float64, device=images.device)
    contrast = torch.zeros_like(whole)
    for channel in range(images.shape[-1]):  # one by one: a quarter of an image in floats is much, of a large one
        one, other = images[..., channel], truths[..., channel]
        for level in range(levels):
            similarity, of_contrast = _similarity(one, other)
            whole[level] += similarity / images.shape[-1]
            contrast[level] += of_contrast / images.shape[-1]
            if level + 1 < levels:
                one, other = _halved(one), _halved(other)
    if levels == 1:
        return whole[0], None
    parts = torch.cat([contrast[:-1], whole[-1:]]).clamp_min(0)
    return whole[0], (parts ** parts.new_tensor(_WEIGHTS)[:, None]).prod(0)


def _similarity(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Means [N] of the similarity and of its part without brightness, of planes [N, H, W]; the latter without edges."""
    height, width = one.shape[1:]
    whole = torch.zeros(len(one), dtype=torch.float64, device=one.device)
    contrast = torch.zeros_like(whole)
    for rows, kept in strips(one, _REACH):
        top, bottom = _REACH - kept.start, _REACH - (rows.stop - rows.start - kept.stop)
        x, y = (_padded(planes[:, rows], top, bottom) for planes in (one, other))
        mean_x, mean_y, xx, yy, xy = _window(torch.stack([x, y, x * x, y * y, x * y]))
        variances = (xx - mean_x**2).clamp_min(0) + (yy - mean_y**2).clamp_min(0)
        of_contrast = (2 * (xy - mean_x * mean_y) + _C2) / (variances + _C2)
        similar = of_contrast * (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
        whole += similar.sum((1, 2), dtype=torch.float64)
        first = rows.start + kept.start
        inner = slice(max(0, _REACH - first), height - _REACH - first)
        contrast += of_contrast[:, inner, _REACH:-_REACH].sum((1, 2), dtype=torch.float64)
    return whole / (height * width), contrast / ((height - 2 * _REACH) * (width - 2 * _REACH))


def _padded(planes: Tensor, top: int, bottom: int) -> Tensor:
    """[N, h, W] of 0..1, or of bytes, reflected at the edges that strips do not cover."""
    scaled = planes.float() / 255 if planes.dtype == torch.uint8 else planes
    return F.pad(scaled[:, None], (_REACH, _REACH, top, bottom), mode="reflect")[:, 0]


def _window(planes: Tensor) -> Tensor:
    """Means [K, N, h, W] under the Gaussian window, of [K, N, h + 10, W + 10].

    As products with a banded matrix, block by block: on CPUs 3 to 15 times as fast as convolutions of one channel.
    """
    height, width = planes.shape[2] - WINDOW + 1, planes.shape[3] - WINDOW + 1
    offsets = torch.arange(WINDOW, device=planes.device) - float(_REACH)
    weights = torch.exp(-0.5 * (offsets / 1.5) ** 2)
    band = planes.new_zeros(_BLOCK, _BLOCK + WINDOW - 1)
    for row in range(_BLOCK):
        band[row, row : row + WINDOW] = weights / weights.sum()
    side = _BLOCK + WINDOW - 1
    flat = F.pad(planes.flatten(0, 1), (0, -width % _BLOCK, 0, -height % _BLOCK))
    flat = (band @ flat.unfold(1, side, _BLOCK).transpose(2, 3)).flatten(1, 2)
    flat = (flat.unfold(2, side, _BLOCK) @ band.T).flatten(2, 3)
    return flat[:, :height, :width].reshape(*planes.shape[:2], height, width)


def _halved(planes: Tensor) -> Tensor:
    """[N, H, W] -> [N, H // 2, W // 2], in 0..1."""
    planes = planes[:, : planes.shape[1] // 2 * 2]
    out = torch.empty(len(planes), planes.shape[1] // 2, planes.shape[2] // 2, device=planes.device)
    for rows, _ in strips(planes, step=2):
        scaled = planes[:, rows].float() / 255 if planes.dtype == torch.uint8 else planes[:, rows]
        out[:, rows.start // 2 : rows.stop // 2] = F.avg_pool2d(scaled[:, None], 2)[:, 0]
    return out
