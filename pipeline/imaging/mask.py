"""Masks, in all the ways in which people draw them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.imaging.original import Original


def lost_in(image: Original) -> npt.NDArray[np.bool_]:
    """Where a mask that came as a file says that the picture is lost: [H, W]. See `lost_pixels`."""
    samples = image.samples
    if image.white != 255 or samples.dtype != np.uint8:
        samples = np.rint(np.nan_to_num(samples.astype(np.float32)) * (255 / image.white)).clip(0, 255).astype(np.uint8)
    return lost_pixels(samples)


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
