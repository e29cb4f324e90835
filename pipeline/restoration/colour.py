"""Grey pictures, and colours that leave the luminance alone. Images [3, H, W], floats in 0..1, sRGB-encoded."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.damage.tone import luma


def is_grey(pixels: npt.NDArray[np.generic]) -> bool:
    """Whether all three channels of [H, W, 3] are equal everywhere."""
    return bool((pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all())


def colour_onto(luminance: Tensor, coloured: Tensor) -> Tensor:
    """The colours of `coloured` [3, H, W] on the luminance [1, H, W]; never outside 0..1.

    Where a colour does not fit at this luminance it is made paler, so that the luma of the result is exactly
    the luminance given.
    """
    chroma = coloured - luma(coloured)
    luminance = luminance.clamp(0, 1)
    room = torch.where(chroma > 0, (1 - luminance) / chroma.clamp_min(1e-6), luminance / (-chroma).clamp_min(1e-6))
    return luminance + chroma * room.amin(0, keepdim=True).clamp(max=1)
