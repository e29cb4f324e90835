"""What the network sees of an image: a thumbnail, native-resolution probes, and tiles with their place."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.restoration.layers import grid_positions

CELL = 8
"""Pixels of a tile to one of the decoder's coarsest cells; tile sides and tile origins in training are multiples."""


def thumbnails(images: Tensor, masks: Tensor, side: int) -> Tensor:
    """Images [N, 3, H, W] in 0..1 and masks [N, 1, H, W] -> [N, 4, side, side].

    Missing pixels do not count in the average; where all are missing the picture is 0. The mask plane holds
    the share of missing pixels.
    """
    planes = torch.cat([images * (1 - masks), 1 - masks], dim=1)
    while min(planes.shape[-2:]) >= 4 * side:  # halving first is as good for an area average, and much cheaper
        planes = F.avg_pool2d(planes, 2)
    small = F.interpolate(planes, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
    present = small[:, 3:]
    return torch.cat([small[:, :3] / present.clamp_min(1e-3), 1 - present], dim=1)


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


def cell_positions(boxes: Tensor, cells: int) -> Tensor:
    """Where a tile's cells lie in its image: boxes [N, 4], (top, left, bottom, right) in 0..1 -> [N, cells ** 2, 2]."""
    grid = grid_positions(cells, cells, boxes.device)
    return boxes[:, None, :2] + grid * (boxes[:, None, 2:] - boxes[:, None, :2])


def coarse_regions(coarse: Tensor, boxes: Tensor, side: int) -> Tensor:
    """The coarse picture under each tile, enlarged: [N, 3, S, S], boxes [N, 4] in 0..1 -> [N, 3, side, side]."""
    height, width = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    theta = boxes.new_zeros(len(boxes), 2, 3)
    theta[:, 0, 0], theta[:, 0, 2] = width, boxes[:, 1] + boxes[:, 3] - 1
    theta[:, 1, 1], theta[:, 1, 2] = height, boxes[:, 0] + boxes[:, 2] - 1
    grid = F.affine_grid(theta, [len(boxes), 3, side, side], align_corners=False)
    return F.grid_sample(coarse, grid, mode="bilinear", padding_mode="border", align_corners=False)
