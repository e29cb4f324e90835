"""Pixels to the tensors that damage works on, and back."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Pixels = npt.NDArray[np.uint8]


def as_planes(pixels: Pixels) -> Tensor:
    """[H, W, 3] uint8 -> [1, 3, H, W] in 0..1."""
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255


def as_pixels(planes: Tensor) -> Pixels:
    """[1, 3, H, W], clipped to 0..1 -> [H, W, 3] uint8."""
    rounded = (planes[0].clamp(0, 1) * 255).round().byte()
    return np.ascontiguousarray(rounded.permute(1, 2, 0).cpu().numpy())
