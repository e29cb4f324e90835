"""Lost sharpness, on tensors: images [N, 3, H, W] in 0..1."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_REACH = 9
FILTERS = ("bicubic", "bilinear", "area", "nearest")
"""How a picture may have been made smaller."""


def blur(images: Tensor, sigma: Tensor, reach: int = _REACH) -> Tensor:
    """Gaussian blur, a lens out of focus; `sigma` [N] in pixels, up to 4 with the usual `reach` to each side."""
    offsets = torch.arange(reach + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma.clamp_min(0.05)[:, None]) ** 2)
    weights = (kernel / (kernel[:, :1] + 2 * kernel[:, 1:].sum(1, keepdim=True)))[..., None, None, None]
    out = F.pad(images, (reach, reach, reach, reach), mode="replicate")
    for axis in (3, 2):  # a convolution of so few channels takes five times as long
        wide, length = out, images.shape[axis]
        out = wide.narrow(axis, reach, length) * weights[:, 0]
        for far in range(1, reach + 1):
            both = wide.narrow(axis, reach - far, length) + wide.narrow(axis, reach + far, length)
            out.addcmul_(both, weights[:, far])
    return out


def motion(images: Tensor, length: Tensor, angle: Tensor) -> Tensor:
    """Blur along a line: camera or scanner moved; `length` [N] in pixels, up to 18, `angle` [N] in degrees."""
    count, channels, height, width = images.shape
    offsets = torch.arange(-_REACH, _REACH + 1, device=images.device, dtype=images.dtype)
    y, x = offsets[:, None], offsets[None]
    turned = torch.deg2rad(angle)[:, None, None]
    along = x * turned.cos() + y * turned.sin()
    across = y * turned.cos() - x * turned.sin()
    within = (length[:, None, None] / 2 + 0.5 - along.abs()).clamp(0, 1)
    kernel = within * (1 - across.abs()).clamp_min(0)
    kernel = (kernel / kernel.sum((1, 2), keepdim=True)).repeat_interleave(channels, 0)
    flat = F.pad(images, (_REACH, _REACH, _REACH, _REACH), mode="replicate")
    flat = flat.reshape(1, count * channels, height + 2 * _REACH, width + 2 * _REACH)
    return F.conv2d(flat, kernel[:, None], groups=count * channels).view(images.shape)


def low_resolution(images: Tensor, factor: float, mode: str = "bicubic") -> Tensor:
    """Shrink by `factor` and enlarge again by bicubic interpolation.

    `mode` is one of `FILTERS`; bicubic and bilinear are antialiased, as Pillow and MATLAB do it.

    Raises:
        ValueError: there is no such filter.
    """
    if mode not in FILTERS:
        raise ValueError(f"a filter is one of {', '.join(FILTERS)}, not {mode!r}")
    height, width = images.shape[-2:]
    size = (max(1, round(height / factor)), max(1, round(width / factor)))
    if mode == "nearest":
        small = F.interpolate(images, size=size, mode="nearest-exact")
    elif mode == "area":
        small = F.interpolate(images, size=size, mode="area")
    else:
        small = F.interpolate(images, size=size, mode=mode, antialias=True, align_corners=False)
    return F.interpolate(small, size=(height, width), mode="bicubic", align_corners=False)
