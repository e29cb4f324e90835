"""Noise, on tensors: images [N, 3, H, W] in 0..1; one strength a sample; values are not clipped."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor


def _normal(like: Tensor, generator: Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)


def gaussian(images: Tensor, sigma: Tensor, generator: Generator) -> Tensor:
    """White Gaussian noise; `sigma` [N] in units of 0..255."""
    return images + _normal(images, generator) * (sigma / 255)[:, None, None, None]


def poisson(images: Tensor, sigma: Tensor, generator: Generator) -> Tensor:
    """Photon noise, as the Gaussian whose variance grows with brightness; `sigma` [N] of 0..255, at mid grey."""
    spread = (images.clamp(0, 1) / 0.5).sqrt()
    return images + _normal(images, generator) * spread * (sigma / 255)[:, None, None, None]


def grain(images: Tensor, sigma: Tensor, size: Tensor, generator: Generator) -> Tensor:
    """Film grain: grey noise with clumps of about `size` [N] pixels, strongest in the mid-tones.

    `sigma` [N] is its standard deviation at mid grey, in units of 0..255.
    """
    count, _, height, width = images.shape
    noise = torch.randn(
        (1, count, height + 6, width + 6), generator=generator, device=images.device, dtype=images.dtype
    )
    offsets = torch.arange(-3, 4, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (offsets / size.clamp_min(0.3)[:, None]) ** 2)
    kernel = kernel / kernel.norm(dim=1, keepdim=True)  # unit energy: the filtered noise keeps its variance
    noise = F.conv2d(noise, kernel[:, None, None, :], groups=count)
    noise = F.conv2d(noise, kernel[:, None, :, None], groups=count)[0, :, None]
    luma = images.mean(1, keepdim=True).clamp(0, 1)
    return images + noise * (4 * luma * (1 - luma)).sqrt() * (sigma / 255)[:, None, None, None]
