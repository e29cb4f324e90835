"""Halftone print and its rescan, on tensors."""

from __future__ import annotations

import functools
import itertools
import math

import torch
from torch import Tensor

from pipeline.damage.optics import blur
from pipeline.damage.tone import luma

ANGLES = (15.0, 75.0, 0.0)
"""Degrees of the cyan, magenta and yellow screens, as printers turn them against moiré."""
BLACK_ANGLE = 45.0
EDGE = 0.1
"""Softness of a dot's edge, as a share of the tone scale."""
_WITHIN = (1 / 6, 1 / 2, 5 / 6)
"""Places within a pixel at which the dots are drawn, in both directions."""


def halftone(images: Tensor, period: Tensor, grey: bool = False, softness: float = 0.3) -> Tensor:
    """Print with dots and scan again.

    Args:
        images: [N, 3, H, W] in 0..1.
        period: [N], pixels from dot to dot: the scan's dots per inch over the screen's lines per inch (300 dpi of a
            133 lpi book give 2.3, 600 dpi of an 85 lpi newspaper 7).
        grey: one black screen instead of three coloured ones.
        softness: sigma of the scanner's blur, in periods.

    The share of ink under every dot is the picture's own, so its mean brightness stays.
    """
    planes = (luma(images) if grey else images).clamp(0, 1)
    printed = torch.zeros_like(planes)
    for down, right in itertools.product(_WITHIN, _WITHIN):
        printed += ((planes - _screens(images, period, grey, down, right)) / EDGE + 0.5).clamp(0, 1)
    return blur((printed / len(_WITHIN) ** 2).expand_as(images), softness * period)


def _screens(images: Tensor, period: Tensor, grey: bool, down: float, right: float) -> Tensor:
    """What each point is compared with, [N, 1 or 3, H, W], at this place within the pixels."""
    height, width = images.shape[-2:]
    y = torch.arange(height, device=images.device, dtype=images.dtype)[:, None] + down
    x = torch.arange(width, device=images.device, dtype=images.dtype)[None] + right
    screens = []
    for angle in (BLACK_ANGLE,) if grey else ANGLES:
        turn = math.radians(angle)
        u = (x * math.cos(turn) + y * math.sin(turn)) / period[:, None, None]
        v = (y * math.cos(turn) - x * math.sin(turn)) / period[:, None, None]
        screens.append(_threshold((torch.cos(2 * math.pi * u) + torch.cos(2 * math.pi * v)) / 2))
    return torch.stack(screens, 1)


def _threshold(screen: Tensor) -> Tensor:
    """Each value of a screen (-1..1) as the share of its cell that lies below it: equal steps of tone, equal ink."""
    table = _shares().to(screen.device, screen.dtype)
    place = (screen + 1) / 2 * (len(table) - 1)
    low = place.floor().clamp(0, len(table) - 2)
    return torch.lerp(table[low.long()], table[low.long() + 1], place - low)


@functools.lru_cache(1)
def _shares() -> Tensor:
    phase = torch.cos(2 * math.pi * (torch.arange(512) + 0.5) / 512)
    values = ((phase[:, None] + phase[None]) / 2).flatten().sort().values
    return torch.searchsorted(values, torch.linspace(-1, 1, 513)).float() / len(values)
