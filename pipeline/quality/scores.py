"""Errors in decibels, and the two scores of a pair that the evaluation is about."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.quality.strips import strips
from pipeline.quality.structure import structure

Pixels = npt.NDArray[np.uint8]

EQUAL = 100.0
"""PSNR in dB given to two equal images."""


def squared_error(images: Tensor, others: Tensor) -> Tensor:
    """Mean [N] over all values of images [N, H, W, C] uint8, in units of white = 1."""
    total = torch.zeros(len(images), dtype=torch.float64, device=images.device)
    for rows, kept in strips(images):
        one, other = (part[:, rows][:, kept].int() for part in (images, others))
        total += (one - other).square().sum((1, 2, 3))
    return total / images[0].numel() / 255**2


def psnr(image: Pixels, truth: Pixels) -> float:
    """Peak signal-to-noise ratio in dB over all RGB values of two [H, W, 3] images; `EQUAL` at most."""
    return decibels(float(squared_error(_batch(image), _batch(truth))))


def decibels(error: float) -> float:
    """PSNR of a mean squared error (white = 1)."""
    return min(EQUAL, -10 * math.log10(max(error, 1e-12)))


def ssim(image: Pixels, truth: Pixels) -> float | None:
    """Structural similarity of two [H, W, 3] images, -1..1, higher is better; None if smaller than its window."""
    value, _ = structure(_batch(image)[None], _batch(truth))
    return None if value is None else float(value)


def _batch(pixels: Pixels) -> Tensor:
    return torch.from_numpy(pixels.copy())[None]
