"""Missing and covered areas, with their true masks: masks [N, 1, H, W], 1 where the picture is lost."""

from __future__ import annotations

import math
import random

import torch
from torch import Tensor


def scratches(height: int, width: int, count: int, dice: random.Random) -> Tensor:
    """Thin, nearly straight lines across the picture, 1 to 3 pixels wide: a mask [1, H, W]."""
    y, x = torch.meshgrid(torch.arange(height).float(), torch.arange(width).float(), indexing="ij")
    mask = torch.zeros(height, width)
    for _ in range(count):
        angle = dice.uniform(0, math.pi)
        centre_y, centre_x = dice.uniform(0, height), dice.uniform(0, width)
        along = (x - centre_x) * math.cos(angle) + (y - centre_y) * math.sin(angle)
        across = (y - centre_y) * math.cos(angle) - (x - centre_x) * math.sin(angle)
        bend = dice.uniform(-6, 6) * torch.sin(along / dice.uniform(20, 90))
        length = dice.uniform(0.15, 0.9) * max(height, width)
        near = (across - bend).abs() <= dice.uniform(0.5, 1.6)
        mask[near & (along.abs() < length / 2)] = 1
    return mask[None]


def holes(height: int, width: int, share: float, dice: random.Random) -> Tensor:
    """Blots of irregular outline that cover about `share` of the area: a mask [1, H, W]."""
    y, x = torch.meshgrid(torch.arange(height).float(), torch.arange(width).float(), indexing="ij")
    mask = torch.zeros(height, width, dtype=torch.bool)
    for _ in range(40):
        if float(mask.float().mean()) >= share:
            break
        radius = dice.uniform(0.25, 0.6) * math.sqrt(share * height * width)
        radius = max(2.0, radius)
        dy, dx = y - dice.uniform(0, height), x - dice.uniform(0, width)
        turn = torch.atan2(dy, dx)
        outline = 1 + 0.25 * torch.sin(3 * turn + dice.uniform(0, 6.3))
        outline += 0.15 * torch.sin(7 * turn + dice.uniform(0, 6.3))
        mask |= torch.hypot(dy, dx) < radius * outline
    return mask.float()[None]


def cover(images: Tensor, masks: Tensor, colours: Tensor) -> Tensor:
    """Paint `colours` [N, 3] where `masks` [N, 1, H, W] are 1."""
    return torch.lerp(images, colours[:, :, None, None].expand_as(images), masks)
