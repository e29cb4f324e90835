"""How far a result is from its input: what was changed, and whether it still explains the input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.damage.jpeg import jpeg
from pipeline.damage.optics import blur, low_resolution
from pipeline.damage.record import Damage
from pipeline.quality.colour import difference, lab
from pipeline.quality.gate import CHANGED
from pipeline.quality.strips import floats, strips

CELLS = 16
"""Cells a side of the grid over which colours are averaged."""
FADED = 0.05
"""Fading from which on tone is fitted."""
_STRIP = 4_000_000
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
    """[N, H, W, C] uint8 -> [N, C, cells, cells] in 0..1."""
    height, width = images.shape[1:3]
    rows = [images[:, top:bottom] for top, bottom in _bounds(height)]
    lines = [F.adaptive_avg_pool2d(floats(part), (1, min(CELLS, width))) for part in rows]
    return torch.cat(lines, 2)


def _bounds(length: int) -> list[tuple[int, int]]:
    cells = min(CELLS, length)
    return [(place * length // cells, (place + 1) * length // cells) for place in range(cells)]


def redamaged_error(before: Tensor, after: Tensor, damage: Damage, lost: Tensor) -> float | None:
    """Mean squared error of an input [H, W, 3] against its result with the damage put back that was found; white = 1.

    If the result is what the picture was, only noise is left, which cannot be put back. Where the image had faded, one
    gain and one shift of each channel are fitted. Lost pixels [H, W] do not count; None if there are no others.
    Images over `_STRIP` are damaged in strips, which costs some of the accuracy where their resolution was low.
    """
    tone = _tone(before, after, lost) if damage.fading > FADED else None
    total, counted = 0.0, 0.0
    for rows, kept in strips(before[None], _REACH, step=16, pixels=_STRIP):
        present = (~lost[rows])[None, None].float()
        one, other = floats(before[None, rows]), _damaged(floats(after[None, rows]), damage)
        if tone is not None:
            other = other * tone[0] + tone[1]
        error = (one - other.clamp(0, 1)).square().mean(1, keepdim=True) * present
        total += float(error[:, :, kept].sum(dtype=torch.float64))
        counted += float(present[:, :, kept].sum())
    return total / counted if counted else None


def _damaged(images: Tensor, damage: Damage) -> Tensor:
    strength = images.new_tensor([1.0])
    if damage.blur_sigma > 0.3:
        images = blur(images, strength * min(damage.blur_sigma, 4.0))
    if damage.downscale > 1.1:
        images = low_resolution(images, damage.downscale)
    return jpeg(images, strength * damage.jpeg_quality) if damage.jpeg_quality < 95 else images


def _tone(before: Tensor, after: Tensor, lost: Tensor) -> tuple[Tensor, Tensor]:
    """The gain and the shift [1, 3, 1, 1] that bring the result's cells nearest to the input's."""
    weight = 1 - _averaged((255 * lost.byte())[None, :, :, None])
    weight = weight / weight.sum().clamp_min(1e-6)
    one, other = (_averaged(images[None]) for images in (before, after))
    wanted, mean = ((part * weight).sum((2, 3), keepdim=True) for part in (one, other))
    spread = ((other - mean).square() * weight).sum((2, 3), keepdim=True)
    gain = ((other - mean) * (one - wanted) * weight).sum((2, 3), keepdim=True) / spread.clamp_min(1e-6)
    return gain, wanted - gain * mean
