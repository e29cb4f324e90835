"""Changes of tone and colour, on tensors: images [N, 3, H, W] in 0..1; one strength a sample."""

from __future__ import annotations

import torch
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # BT.601


def luma(images: Tensor) -> Tensor:
    """BT.601 luma, full range, as JPEG uses it: [..., 3, H, W] -> [..., 1, H, W]."""
    return (images * images.new_tensor(LUMA)[:, None, None]).sum(-3, keepdim=True)


def black_and_white(images: Tensor) -> Tensor:
    """Grey in all three channels."""
    return luma(images).expand_as(images).clone()


def fade(images: Tensor, strength: Tensor) -> Tensor:
    """Contrast is lost towards light grey and colours pale; `strength` [N] is the share lost, 0..1."""
    strength = strength[:, None, None, None]
    pale = torch.lerp(images, luma(images).expand_as(images), 0.7 * strength)
    return torch.lerp(pale, pale.new_full((), 0.72).expand_as(pale), strength)


def cast(images: Tensor, gains: Tensor) -> Tensor:
    """A colour cast: each channel is multiplied; `gains` [N, 3]."""
    return images * gains[:, :, None, None]


def sepia(images: Tensor, strength: Tensor) -> Tensor:
    """Towards a brown-toned print; `strength` [N], 0..1."""
    toned = luma(images) * images.new_tensor([1.07, 0.93, 0.74])[:, None, None]
    return torch.lerp(images, toned, strength[:, None, None, None])


def yellow(images: Tensor, density: Tensor) -> Tensor:
    """Yellowed paper or varnish; `density` [N] is the optical density gained in blue, 0..1.

    Green gains 0.3 of it and red 0.05, about what aged paper does (light lost: 1 - 10 ** -density).
    """
    gains = 10 ** (-density[:, None] * images.new_tensor([0.05, 0.3, 1.0]))
    return cast(images, gains)


def uneven(images: Tensor, field: Tensor, stops: Tensor) -> Tensor:
    """Uneven illumination; `field` [N, 1, H, W] is 1 where it is darkest, by `stops` [N]; each halves the light."""
    return images * 2 ** (-stops[:, None, None, None] * field)


def vignette(height: int, width: int, centre: tuple[float, float], device: torch.device) -> Tensor:
    """A field for `uneven` [1, 1, H, W]: light falls off with the squared distance from `centre` (y, x in 0..1)."""
    y = torch.linspace(0, 1, height, device=device)[:, None] - centre[0]
    x = torch.linspace(0, 1, width, device=device)[None] - centre[1]
    squared = y * y + x * x
    return (squared / squared.max().clamp_min(1e-6))[None, None]
