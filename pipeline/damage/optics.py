"""Lost sharpness, on tensors: images [N, 3, H, W] in 0..1."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_REACH = 9


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur, a lens out of focus; `sigma` [N] in pixels, up to 4."""
    count, channels, height, width = images.shape
    offsets = torch.arange(-_REACH, _REACH + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma.clamp_min(0.05)[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    flat = images.reshape(1, count * channels, height, width)
    flat = F.pad(flat, (_REACH, _REACH, _REACH, _REACH), mode="reflect")
    flat = F.conv2d(flat, kernel[:, None, None, :], groups=count * channels)
    return F.conv2d(flat, kernel[:, None, :, None], groups=count * channels).view(images.shape)


def low_resolution(images: Tensor, factor: float, mode: str = "bicubic") -> Tensor:
    """Shrink by `factor` (antialiased, `mode` "bilinear" or "bicubic") and enlarge again by bicubic interpolation."""
    height, width = images.shape[-2:]
    size = (max(1, round(height / factor)), max(1, round(width / factor)))
    small = F.interpolate(images, size=size, mode=mode, antialias=True, align_corners=False)
    return F.interpolate(small, size=(height, width), mode="bicubic", align_corners=False)
