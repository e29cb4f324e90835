"""How far a result is from its input: what was changed, and whether it still explains the input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.damage.jpeg import jpeg
from pipeline.damage.optics import blur, low_resolution
from pipeline.damage.record import Damage
from pipeline.quality.colour import difference, lab
from pipeline.quality.strips import floats, strips

CHANGED = 8
"""Steps of 0..255 by which a channel must differ for its pixel to count as changed: less is hardly seen."""
CELLS = 16
"""Cells a side of the grid over which colours are averaged."""
_REACH = 32
"""Pixels around a strip that is damaged again."""


def changed(before: Tensor, after: Tensor) -> Tensor:
    """Share [N] of the pixels of images [N, H, W, 3] uint8 of which a channel differs by more than `CHANGED`."""
    total = torch.zeros(len(before), dtype=torch.float64, device=before.device)
    for rows, kept in strips(before):
        one, other = (images[:, rows][:, kept].short() for images in (before, after))
        total += ((one - other).abs() > CHANGED).any(3).sum((1, 2))
    return total / (before.shape[1] * before.shape[2])


def colour_shift(before: Tensor, after: Tensor) -> Tensor:
    """Mean CIEDE2000 [N] of images [N, H, W, 3] averaged over a grid of `CELLS` a side.

    What changes of the whole picture's tone and colours, not of its detail; 1 is about what can just be seen.
    """
    one, other = (lab(_averaged(images)) for images in (before, after))
    return difference(one, other).double().mean((1, 2))


def _averaged(images: Tensor) -> Tensor:
    """[N, H, W, 3] uint8 -> [N, 3, cells, cells] in 0..1."""
    height, width = images.shape[1:3]
    rows = [images[:, top:bottom] for top, bottom in _bounds(height)]
    lines = [F.adaptive_avg_pool2d(floats(part), (1, min(CELLS, width))) for part in rows]
    return torch.cat(lines, 2)


def _bounds(length: int) -> list[tuple[int, int]]:
    cells = min(CELLS, length)
    return [(place * length // cells, (place + 1) * length // cells) for place in range(cells)]


def redamaged_error(before: Tensor, after: Tensor, damage: Damage, lost: Tensor) -> float:
    """Mean squared error of an input [H, W, 3] against its result with the damage put back that was found; white = 1.

    If the result is what the picture was, only noise is left, which cannot be put back. Tone is fitted, channel by
    channel, where the image had faded; lost pixels [H, W] do not count.
    """
    total = torch.zeros((), dtype=torch.float64)
    counted = 0.0
    for rows, kept in strips(before[None], _REACH, step=16):
        present = (~lost[rows])[None, None].float()
        one, other = floats(before[None, rows]), _damaged(floats(after[None, rows]), damage)
        if damage.fading > 0.05:
            other = _fitted(other, one, present)
        error = (one - other.clamp(0, 1)).square() * present
        total += error[:, :, kept].mean(1).sum(dtype=torch.float64).cpu()
        counted += float(present[:, :, kept].sum())
    return float(total) / max(counted, 1.0)


def _damaged(images: Tensor, damage: Damage) -> Tensor:
    strength = images.new_tensor([1.0])
    if damage.blur_sigma > 0.3:
        images = blur(images, strength * min(damage.blur_sigma, 4.0))
    if damage.downscale > 1.1:
        images = low_resolution(images, damage.downscale)
    return jpeg(images, strength * damage.jpeg_quality) if damage.jpeg_quality < 95 else images


def _fitted(images: Tensor, to: Tensor, present: Tensor) -> Tensor:
    """Each channel scaled and shifted to come as near as it can, where pixels are present."""
    weight = present.sum().clamp_min(1)
    mean, wanted = ((part * present).sum((2, 3), keepdim=True) / weight for part in (images, to))
    spread = ((images - mean).square() * present).sum((2, 3), keepdim=True)
    gain = ((images - mean) * (to - wanted) * present).sum((2, 3), keepdim=True) / spread.clamp_min(1e-6)
    return (images - mean) * gain + wanted
