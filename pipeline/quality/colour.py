"""Colours as people see them: CIE Lab, and differences by CIEDE2000.

Sharma, Wu, Dalal: The CIEDE2000 color-difference formula: implementation notes, supplementary test data, and
mathematical observations, 2005. sRGB by IEC 61966-2-1, white D65.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipeline.quality.strips import floats, strips

_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
_WHITE = (0.95047, 1.0, 1.08883)
_25_7 = 25.0**7


def ciede2000(images: Tensor, truths: Tensor) -> Tensor:
    """Mean colour difference [K, N] of images [K, N, H, W, 3] to truths [N, H, W, 3], uint8: lower is better.

    1 is about what can just be seen.
    """
    total = torch.zeros(images.shape[:2], dtype=torch.float64, device=images.device)
    for rows, kept in strips(truths):
        other = lab(floats(truths[:, rows][:, kept]))
        for number, part in enumerate(images):
            one = lab(floats(part[:, rows][:, kept]))
            total[number] += difference(one, other).sum((1, 2), dtype=torch.float64)
    return total / (truths.shape[1] * truths.shape[2])


def lab(images: Tensor) -> Tensor:
    """sRGB [N, 3, H, W] in 0..1 -> CIE Lab."""
    linear = torch.where(images > 0.04045, ((images + 0.055) / 1.055) ** 2.4, images / 12.92)
    matrix = torch.tensor(_XYZ, device=images.device) / torch.tensor(_WHITE, device=images.device)[:, None]
    xyz = torch.einsum("kc,nchw->nkhw", matrix, linear)
    x, y, z = torch.where(xyz > 0.008856, xyz.clamp_min(1e-6) ** (1 / 3), 7.787 * xyz + 16 / 116).unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def difference(one: Tensor, other: Tensor) -> Tensor:
    """CIEDE2000 of each pixel of two Lab pictures [N, 3, H, W] -> [N, H, W]; the letters are those of the paper."""
    (l1, a1, b1), (l2, a2, b2) = one.unbind(1), other.unbind(1)
    g = 1.5 - 0.5 * _saturated((torch.hypot(a1, b1) + torch.hypot(a2, b2)) / 2)
    a1, a2 = a1 * g, a2 * g
    c1, c2 = torch.hypot(a1, b1), torch.hypot(a2, b2)
    h1, h2 = torch.atan2(b1, a1), torch.atan2(b2, a2)
    is_grey = c1 * c2 == 0
    turn = torch.remainder(h2 - h1 + math.pi, 2 * math.pi) - math.pi  # the short way round
    turn = torch.where(is_grey, 0.0, turn)
    hue = torch.where(is_grey, h1 + h2, h1 + turn / 2)
    c, l = (c1 + c2) / 2, (l1 + l2) / 2  # noqa: E741
    t = (
        1
        - 0.17 * torch.cos(hue - math.radians(30))
        + 0.24 * torch.cos(2 * hue)
        + 0.32 * torch.cos(3 * hue + math.radians(6))
        - 0.20 * torch.cos(4 * hue - math.radians(63))
    )
    degrees = torch.remainder(torch.rad2deg(hue), 360)
    rotation = -2 * _saturated(c) * torch.sin(torch.deg2rad(60 * torch.exp(-(((degrees - 275) / 25) ** 2))))
    lightness = (l2 - l1) / (1 + 0.015 * (l - 50) ** 2 / torch.sqrt(20 + (l - 50) ** 2))
    chroma = (c2 - c1) / (1 + 0.045 * c)
    of_hue = 2 * torch.sqrt(c1 * c2) * torch.sin(turn / 2) / (1 + 0.015 * c * t)
    return (lightness**2 + chroma**2 + of_hue**2 + rotation * chroma * of_hue).clamp_min(0).sqrt()


def _saturated(chroma: Tensor) -> Tensor:
    power = chroma**7
    return torch.sqrt(power / (power + _25_7))
