"""Grey pictures, and colours that leave the luminance alone. Images [3, H, W], floats in 0..1, sRGB-encoded."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.damage.tone import luma
from pipeline.restoration.tiles import as_floats

STRIP = 512
"""Rows of a large image that are converted at a time."""


def coloured(before: npt.NDArray[Any], colours: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The colours of one picture on the luminance of another, grey one, in whose type they come; both [H, W, 3]."""
    out, white = np.empty_like(before), np.iinfo(before.dtype).max
    for top in range(0, len(before), STRIP):
        rows = slice(top, top + STRIP)
        both = colour_onto(as_floats(before[rows])[:1], as_floats(colours[rows]))
        out[rows] = np.rint(both.permute(1, 2, 0).numpy() * white)
    return out


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
