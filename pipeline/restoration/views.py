"""What the network sees of an image: a thumbnail, native-resolution probes, and tiles with their place."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.damage.optics import blur
from pipeline.restoration.layers import grid_positions

CELL = 8
"""Pixels of a tile to one of the decoder's coarsest cells; tile sides and tile origins in training are multiples."""
SEAM, REACH = 1.2, 4
"""Standard deviation in pixels of how far a fill goes by the pixels beside it, and how far that is looked for."""
LONELY = 0.1
"""Share of known pixels around of which half of that is believed."""


def thumbnails(images: Tensor, masks: Tensor, side: int) -> Tensor:
    """Images [N, 3, H, W] in 0..1 and masks [N, 1, H, W] -> [N, 4, side, side].

    Missing pixels do not count in the average; as far as pixels are missing, their surroundings are continued. The
    mask plane holds the share of missing pixels.
    """
    planes = torch.cat([images * (1 - masks), 1 - masks], dim=1)
    while min(planes.shape[-2:]) >= 4 * side:  # halving first is as good for an area average, and much cheaper
        planes = F.avg_pool2d(planes, 2)
    small = F.interpolate(planes, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
    present = small[:, 3:]
    return torch.cat([continued(small[:, :3] / present.clamp_min(1e-3), present), 1 - present], dim=1)


def continued(pictures: Tensor, present: Tensor) -> Tensor:
    """What is present goes on smoothly where nothing is: pull and push (Gortler et al. 1996, "The Lumigraph").

    `pictures` [N, 3, S, S], `present` [N, 1, S, S], the share of each pixel that is there, 0..1.
    """
    side = pictures.shape[-1]
    if side % 2:
        total = (pictures * present).sum((2, 3), keepdim=True)
        around = (total / present.sum((2, 3), keepdim=True).clamp_min(1e-3)).expand_as(pictures)
    else:
        known = F.avg_pool2d(present, 2)
        coarser = F.avg_pool2d(pictures * present, 2) / known.clamp_min(1e-3)
        around = continued(coarser, (4 * known).clamp(max=1))
        around = F.interpolate(around, scale_factor=2, mode="bilinear", align_corners=False)
    return torch.lerp(around, pictures, present)


def filled_in(images: Tensor, fills: Tensor, masks: Tensor) -> Tensor:
    """Images [N, 3, H, W] with fills where pixels are missing, without a seam, and lines as fine as around them.

    By as much as a fill misses the pixels beside, it is taken to miss those missing: a Gaussian mean, `SEAM` wide, of
    the known pixels' differences. Farther in it stays as it is. `masks` [N, 1, H, W]: 1 where a pixel is missing.
    """
    if masks.device.type == "cpu" and not bool(masks.any()):  # asking a GPU means waiting for it
        return images
    known = 1 - masks
    around = blur(torch.cat([(images - fills) * known, known], 1), masks.new_full((len(masks),), SEAM), REACH)
    return torch.lerp(images, fills + around[:, :3] / (around[:, 3:] + LONELY), masks)


def probes(images: Tensor, masks: Tensor, side: int, count: int) -> Tensor:
    """`count` native-resolution squares of each image, spread evenly: [N, count, 4, side, side].

    Their corners lie on multiples of 8, as JPEG's blocks do. Small images are continued by repeating the edge.
    """
    planes = torch.cat([images, masks], dim=1)
    height, width = planes.shape[-2:]
    if height < side or width < side:
        planes = F.pad(planes, (0, max(0, side - width), 0, max(0, side - height)), mode="replicate")
        height, width = planes.shape[-2:]
    cut = []
    for top, left in probe_corners(height, width, side, count):
        cut.append(planes[..., top : top + side, left : left + side])
    return torch.stack(cut, dim=1)


def probe_corners(height: int, width: int, side: int, count: int) -> list[tuple[int, int]]:
    """Top left corners of an even grid of `count` (a square number) probes."""
    rows = round(count**0.5)

    def corner(index: int, length: int) -> int:
        return min(max(0, int((index + 0.5) / rows * length) - side // 2), length - side) // CELL * CELL

    return [(corner(i, height), corner(j, width)) for i in range(rows) for j in range(rows)]


def cell_positions(boxes: Tensor, rows: int, columns: int) -> Tensor:
    """Where a tile's cells lie in its image: boxes [N, 4], (top, left, bottom, right) in 0..1 -> [N, cells, 2]."""
    grid = grid_positions(rows, columns, boxes.device)
    return boxes[:, None, :2] + grid * (boxes[:, None, 2:] - boxes[:, None, :2])


def regions(maps: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """What lies under each tile of a map of its image, enlarged: [N, C, S, S], boxes [N, 4] -> [N, C, height, width].

    Boxes are (top, left, bottom, right) in 0..1.
    """
    # not F.affine_grid: under autocast it counts in half precision, which is whole pixels of a large image
    grid = cell_positions(boxes, height, width).view(-1, height, width, 2).flip(-1) * 2 - 1
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=False)
