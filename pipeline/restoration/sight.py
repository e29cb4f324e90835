"""What the global view is shown of an image that is read in rows, be it as large as it may."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.restoration.colour import STRIP, is_grey
from pipeline.restoration.config import ModelConfig
from pipeline.restoration.rows import Rows
from pipeline.restoration.tiles import Tile, as_floats, cut
from pipeline.restoration.views import probe_corners, thumbnails

Pixels = npt.NDArray[Any]


class Sight(NamedTuple):
    """What the global view is shown of an image."""

    thumbnail: Tensor  # [4, S, S]
    probes: Tensor  # [P, 4, s, s]
    grey: bool

    @classmethod
    def of(cls, image: Rows, config: ModelConfig, device: torch.device) -> Sight:
        """What a model of this shape is shown, which is on this device; the probes lie in the CPU's memory."""
        thumbnail = thumbnail_of(image, config.thumbnail, device)[0]
        return cls(thumbnail, probes_of(image, config.probe, config.probes), has_no_colours(image))


def _planes(pixels: Pixels, mask: Pixels | None, device: torch.device) -> tuple[Tensor, Tensor]:
    """[H, W, 3] and [H, W] -> floats [1, 3, H, W] and [1, 1, H, W]."""
    image = as_floats(pixels, device)[None]
    lost = torch.zeros_like(image[:, :1]) if mask is None else as_floats(mask[..., None], device)[None]
    return image, lost


def thumbnail_of(image: Rows, side: int, device: torch.device) -> Tensor:
    """What `thumbnails` gives: [1, 4, side, side], on a device.

    Large images are averaged strip by strip first, so that they never stand in floats whole.
    """
    height, width = image.size
    factor = 1
    while min(height, width) // (2 * factor) >= 2 * side:
        factor *= 2
    if factor == 1:
        return thumbnails(*_planes(*image.rows(0, height), device), side)
    images, masks = [], []
    for top in range(0, height - factor + 1, STRIP):
        picture, lost = _planes(*image.rows(top, min(top + STRIP, height - height % factor)), device)
        present = F.avg_pool2d(1 - lost, factor)
        images.append(F.avg_pool2d(picture * (1 - lost), factor) / present.clamp_min(1e-3))
        masks.append(1 - present)
    return thumbnails(torch.cat(images, 2), torch.cat(masks, 2), side)


def probes_of(image: Rows, side: int, count: int) -> Tensor:
    """[count, 4, side, side] without turning the whole image into floats."""
    height, width = image.size
    found = []
    for top, left in probe_corners(max(height, side), max(width, side), side, count):
        pixels, mask = image.rows(top, min(height, top + side))
        lost = np.zeros((*pixels.shape[:2], 1), np.bool_) if mask is None else mask[..., None]
        corner = Tile(0, left, (0, 0, 0, 0))
        found.append(torch.cat([cut(pixels, corner, (side, side)), cut(lost, corner, (side, side))]))
    return torch.stack(found)


def has_no_colours(image: Rows) -> bool:
    """Whether all of its pixels are grey."""
    height, _ = image.size
    return all(is_grey(image.rows(top, min(height, top + STRIP))[0]) for top in range(0, height, STRIP))
