"""JPEG on tensors: baseline DCT, the standard's tables scaled as libjpeg does, 4:2:0 (ITU-T T.81, JFIF 1.02)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_LUMA = """
16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99
"""
_CHROMA = """
17 18 24 47 99 99 99 99 18 21 26 66 99 99 99 99 24 26 56 99 99 99 99 99 47 66 99 99 99 99 99 99
99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99
"""
_TO_YCC = ((0.299, 0.587, 0.114), (-0.168735892, -0.331264108, 0.5), (0.5, -0.418687589, -0.081312411))
_TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136286, -0.714136286), (1.0, 1.772, 0.0))


def _table(text: str, quality: Tensor) -> Tensor:
    base = torch.tensor([float(word) for word in text.split()], device=quality.device).view(8, 8)
    scale = torch.where(quality < 50, torch.floor(5000 / quality), 200 - 2 * quality)
    return torch.floor((base * scale[:, None, None] + 50) / 100).clamp(1, 255)


def _dct(device: torch.device) -> Tensor:
    k = torch.arange(8, device=device, dtype=torch.float32)
    basis = torch.cos((2 * k[None] + 1) * k[:, None] * math.pi / 16) / 2
    basis[0] /= math.sqrt(2)
    return basis


def _quantise(planes: Tensor, table: Tensor) -> Tensor:
    """`planes` [N, C, H, W] around 0, sides multiples of 8; `table` [N, 8, 8]; through the DCT and back."""
    count, channels, height, width = planes.shape
    basis = _dct(planes.device)
    blocks = planes.view(count, channels, height // 8, 8, width // 8, 8).transpose(3, 4)
    steps = table[:, None, None, None]
    coefficients = torch.round(basis @ blocks @ basis.T / steps) * steps
    return (basis.T @ coefficients @ basis).transpose(3, 4).reshape(planes.shape)


def jpeg(images: Tensor, quality: Tensor, shift: tuple[int, int] = (0, 0)) -> Tensor:
    """Compress and decompress.

    Args:
        images: [N, 3, H, W] in 0..1; they are clipped and rounded to 8 bits first.
        quality: [N], 1 to 100, as in libjpeg.
        shift: rows and columns (0 to 15) by which the block grid lies off the corner, as after a crop.
    """
    quality = torch.round(quality.float()).clamp(1, 100)
    height, width = images.shape[-2:]
    down, right = shift
    pad = (right, -(width + right) % 16, down, -(height + down) % 16)
    pixels = torch.round(F.pad(images.clamp(0, 1), pad, mode="replicate") * 255)
    ycc = torch.einsum("kc,nchw->nkhw", pixels.new_tensor(_TO_YCC), pixels)
    luma = _quantise(torch.round(ycc[:, :1]) - 128, _table(_LUMA, quality)) + 128
    chroma = torch.round(F.avg_pool2d(ycc[:, 1:], 2))
    chroma = torch.round(_quantise(chroma, _table(_CHROMA, quality))).clamp(-128, 127)
    chroma = F.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False)
    decoded = torch.cat([torch.round(luma).clamp(0, 255), chroma], dim=1)
    rgb = torch.einsum("kc,nchw->nkhw", pixels.new_tensor(_TO_RGB), decoded)
    return (torch.round(rgb).clamp(0, 255) / 255)[..., down : down + height, right : right + width]
