"""Masks, in all the ways in which people draw them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def lost_pixels(mask: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Where a mask says that the picture is lost.

    Args:
        mask: [H, W] or [H, W, C], C being grey, grey and alpha, RGB, or RGB and alpha. 8-bit masks are white
            (128 and above) where lost, or nonzero if they hold nothing above 1; masks of other types are nonzero.
            What is transparent is not lost.

    Returns:
        [H, W], bool.
    """
    if mask.ndim == 3:
        channels = mask.shape[2]
        shown = mask[..., : channels - 1 if channels in (2, 4) else channels].max(axis=2)
        mask = np.where(mask[..., -1] > 0, shown, 0).astype(mask.dtype) if channels in (2, 4) else shown
    threshold = 127 if mask.dtype == np.uint8 and mask.max(initial=0) > 1 else 0
    lost: npt.NDArray[np.bool_] = mask > threshold
    return lost
