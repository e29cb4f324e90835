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
_STRIP = 50_000
"""Pixels of a plane looked at together: so many that what is made of them stays in a core's cache."""
_FLOATS = 16_000_000
"""Pixels of planes that are halved together."""
_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_C1, _C2 = 0.01**2, 0.03**2


def structure(images: Tensor, truths: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """SSIM and MS-SSIM, [K, N] each, of images [K, N, H, W, 3] to truths [N, H, W, 3], uint8.

    In -1..1 and 0..1, higher is better; 1: equal. None for images that are smaller than the window, or than `SMALLEST`.
    """
    count, (height, width, channels) = images.shape[:2], truths.shape[1:]
    if min(height, width) < WINDOW:
        return None, None
    levels = len(_WEIGHTS) if min(height, width) >= SMALLEST else 1
    ones = images.movedim(4, 2).reshape(count[0], -1, height, width)
    others = truths.movedim(3, 1).reshape(-1, height, width)
    many = max(1, _FLOATS // (height * width))
    whole, contrast = [], []
    for start in range(0, len(others), many):
        parts = _levels(ones[:, start : start + many], others[start : start + many], levels)
        whole.append(parts[0])
        contrast.append(parts[1])
    similar, of_contrast = (torch.cat(found, 2).view(levels, *count, channels).mean(3) for found in (whole, contrast))
    if levels == 1:
        return similar[0], None
    factors = torch.cat([of_contrast[:-1], similar[-1:]]).clamp_min(0)
    return similar[0], (factors ** factors.new_tensor(_WEIGHTS)[:, None, None]).prod(0)


def _levels(ones: Tensor, other: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Similarity and its part without brightness, [levels, K, M], of planes [K, M, H, W] to planes [M, H, W].

    Each level is half as large.
    """
    found = []
    for level in range(levels):
        found.append(_similarity(ones, other))
        if level + 1 < levels:
            ones, other = torch.stack([_halved(one) for one in ones]), _halved(other)
    whole, contrast = zip(*found, strict=True)
    return torch.stack(whole), torch.stack(contrast)


def _similarity(ones: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Means [K, M] of the similarity and of its part without brightness; the latter without edges."""
    count, (height, width) = ones.shape[:2], other.shape[1:]
    whole = torch.zeros(count, dtype=torch.float64, device=other.device)
    contrast = torch.zeros_like(whole)
    for rows, kept in strips(other, _REACH, pixels=_STRIP):
        top, bottom = _REACH - kept.start, _REACH - (rows.stop - rows.start - kept.stop)
        y = _padded(other[:, rows], top, bottom)
        mean_y, yy = _window(torch.stack([y, y * y], 1)).unbind(1)
        spread_y, bright_y = (yy - mean_y**2).clamp_min(0) + _C2, mean_y**2 + _C1
        first = rows.start + kept.start
        inner = slice(max(0, _REACH - first), max(0, height - _REACH - first))
        for number, one in enumerate(ones):
            x = _padded(one[:, rows], top, bottom)
            mean_x, xx, xy = _window(torch.stack([x, x * x, x * y], 1)).unbind(1)
            means = mean_x * mean_y
            of_contrast = (2 * (xy - means) + _C2) / ((xx - mean_x**2).clamp_min(0) + spread_y)
            similar = of_contrast * (2 * means + _C1) / (mean_x**2 + bright_y)
            whole[number] += similar.sum((0, 2), dtype=torch.float64)
            contrast[number] += of_contrast[inner, :, _REACH:-_REACH].sum((0, 2), dtype=torch.float64)
    return whole / (height * width), contrast / max(1, (height - 2 * _REACH) * (width - 2 * _REACH))


def _padded(planes: Tensor, top: int, bottom: int) -> Tensor:
    """[M, h, W] of 0..1, or of bytes -> [h + top + bottom, M, W + 10] in 0..1, reflected at the edges."""
    padded = F.pad(_scaled(planes)[:, None], (_REACH, _REACH, top, bottom), mode="reflect")[:, 0]
    return padded.transpose(0, 1).contiguous()


def _window(planes: Tensor) -> Tensor:
    """Means [h, K, M, W] under the Gaussian window, of [h + 10, K, M, W + 10].

    As products with a banded matrix, block by block: convolutions of one channel take 5 to 20 times as long on CPUs.
    """
    height, width = planes.shape[0] - WINDOW + 1, planes.shape[3] - WINDOW + 1
    offsets = torch.arange(WINDOW, device=planes.device) - float(_REACH)
    weights = torch.exp(-0.5 * (offsets / 1.5) ** 2)
    side = _BLOCK + WINDOW - 1
    band = planes.new_zeros(_BLOCK, side)
    for row in range(_BLOCK):
        band[row, row : row + WINDOW] = weights / weights.sum()
    flat = planes.flatten(1)
    down = flat.new_empty(height, flat.shape[1])
    for top in range(0, height, _BLOCK):
        tall = min(_BLOCK, height - top)
        torch.mm(band[:tall, : tall + WINDOW - 1], flat[top : top + tall + WINDOW - 1], out=down[top : top + tall])
    lines = F.pad(down.view(-1, planes.shape[3]), (0, -width % _BLOCK))
    across = lines.unfold(1, side, _BLOCK).reshape(-1, side) @ band.T
    return across.view(height, *planes.shape[1:3], -1)[..., :width]


def _halved(planes: Tensor) -> Tensor:
    """[M, H, W] -> [M, H // 2, W // 2], in 0..1."""
    planes = planes[:, : planes.shape[1] // 2 * 2]
    out = torch.empty(len(planes), planes.shape[1] // 2, planes.shape[2] // 2, device=planes.device)
    for rows, _ in strips(planes, step=2):
        out[:, rows.start // 2 : rows.stop // 2] = F.avg_pool2d(_scaled(planes[:, rows])[:, None], 2)[:, 0]
    return out


def _scaled(planes: Tensor) -> Tensor:
    """Bytes, or 0..1 already -> 0..1."""
    return planes.float() / 255 if planes.dtype == torch.uint8 else planes
