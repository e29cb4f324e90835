"""How near a picture is to another: PSNR and SSIM, in strips, so that large images need little memory."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

Pixels = npt.NDArray[np.uint8]

EQUAL = 100.0
"""PSNR in dB given to two equal images."""
_STRIP_PIXELS = 2_000_000
"""Pixels scored at a time; SSIM holds some twenty floats for each."""
_WINDOW = 11


def mean_squared_error(image: Pixels, other: Pixels) -> float:
    """Over all values of two [H, W, C] uint8 images, in units of white = 1."""
    total = 0.0
    strip = _strip(image)
    for top in range(0, len(image), strip):
        difference = image[top : top + strip].astype(np.int32) - other[top : top + strip]
        total += float(np.square(difference).sum())
    return total / image.size / 255**2


def psnr(image: Pixels, truth: Pixels) -> float:
    """Peak signal-to-noise ratio in dB over all RGB values of two [H, W, 3] images; `EQUAL` at most."""
    return decibels(mean_squared_error(image, truth))


def decibels(error: float) -> float:
    """PSNR of a mean squared error (white = 1)."""
    return float(min(EQUAL, -10 * np.log10(max(error, 1e-12))))


def ssim(image: Pixels, truth: Pixels) -> float | None:
    """Structural similarity (Wang et al. 2004; 11 x 11 Gaussian window, by torchmetrics), -1..1, higher is better.

    None for images smaller than the window.
    """
    height, width = image.shape[:2]
    if min(height, width) < _WINDOW:
        return None
    total, rows = 0.0, 0
    reach, strip = _WINDOW // 2, _strip(image)
    for top in range(0, height, strip):
        bottom = min(height, top + strip)
        lines = slice(max(0, min(top - reach, height - _WINDOW)), min(height, bottom + reach))
        value = structural_similarity_index_measure(_batch(image[lines]), _batch(truth[lines]), data_range=1.0)
        assert isinstance(value, torch.Tensor)
        total += float(value) * (bottom - top)
        rows += bottom - top
    return total / rows


def _strip(image: Pixels) -> int:
    """Rows of an image that are scored at a time."""
    return max(_WINDOW, _STRIP_PIXELS // int(image.shape[1]))


def _batch(pixels: Pixels) -> torch.Tensor:
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
