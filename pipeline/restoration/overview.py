"""Square views of whole images to planes as large, for what a tile is too small to tell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.restoration.colour import STRIP
from pipeline.restoration.layers import ResidualBlock, activate, grid_positions, keep_scale
from pipeline.restoration.precision import autocast
from pipeline.restoration.rows import Rows
from pipeline.restoration.sight import thumbnail_of

SIDES = (256, 384, 512)
"""Pixels of the square views."""
ENLARGED = 1.15
"""What a view's side is at most to the image's shorter one, but for small images."""
AROUND = np.ones((1, 1, 3, 3), np.bool_)
"""What of a view touches a pixel."""
TOGETHER = {"cuda": 32}
"""Views in one run, by the kind of device; elsewhere one, so that none depends on its company."""


def side_for(height: int, width: int) -> int:
    """Of the view of an image."""
    return max((side for side in SIDES if side <= ENLARGED * min(height, width)), default=min(SIDES))


def view_of(image: Rows, device: torch.device) -> Tensor:
    """The view of an image: [1, 3, S, S], 0..1, on a device; S by `side_for`."""
    return thumbnail_of(image, side_for(*image.size), device)[:, :3]


class ViewNet(nn.Module):
    """Views of whole images to planes of the same size, down to 1/16 and up again (U-Net, arXiv:1505.04597)."""

    def __init__(self, widths: tuple[int, ...], planes: int) -> None:
        """`widths`: channels at 1/2, 1/4, 1/8 and 1/16 of the view; `planes`: how many come out."""
        super().__init__()
        first, second, third, fourth = widths
        self.enter = keep_scale(nn.Conv2d(5, first, 4, stride=2, padding=1), 2.0)
        self.first = ResidualBlock(first, norm=False)
        self.to_second = keep_scale(nn.Conv2d(first, second, 2, stride=2))
        self.second = ResidualBlock(second)
        self.to_third = keep_scale(nn.Conv2d(second, third, 2, stride=2))
        self.third = nn.Sequential(ResidualBlock(third), ResidualBlock(third))
        self.to_fourth = keep_scale(nn.Conv2d(third, fourth, 2, stride=2))
        self.fourth = nn.Sequential(ResidualBlock(fourth), ResidualBlock(fourth))
        self.sum_up = nn.Sequential(nn.Linear(fourth, fourth), nn.GELU(), nn.Linear(fourth, fourth))
        self.last_fourth = ResidualBlock(fourth)
        self.up_third = keep_scale(nn.ConvTranspose2d(fourth, third, 2, stride=2), 0.5)
        self.last_third = ResidualBlock(third)
        self.up_second = keep_scale(nn.ConvTranspose2d(third, second, 2, stride=2), 0.5)
        self.last_second = ResidualBlock(second)
        self.up_first = keep_scale(nn.ConvTranspose2d(second, first, 2, stride=2), 0.5)
        self.last_first = ResidualBlock(first, norm=False)
        self.leave = nn.ConvTranspose2d(first, planes, 2, stride=2)
        with torch.no_grad():
            self.leave.weight.mul_(0.1)

    def forward(self, views: Tensor) -> Tensor:
        """`views` [N, 3, S, S] in 0..1, S a multiple of 16 -> [N, planes, S, S]."""
        side = views.shape[-1]
        places = 2 * grid_positions(side, side, views.device).T.reshape(2, side, side) - 1
        planes = torch.cat([2 * views - 1, places.expand(len(views), -1, -1, -1)], dim=1)
        first = self.first(activate(self.enter(planes.contiguous(memory_format=torch.channels_last))))
        second = self.second(self.to_second(first))
        third = self.third(self.to_third(second))
        deep = self.fourth(self.to_fourth(third))
        deep = self.last_fourth(deep + self.sum_up(deep.mean((2, 3)))[:, :, None, None])
        features = self.last_third(third + self.up_third(deep))
        features = self.last_second(second + self.up_second(features))
        features = self.last_first(first + self.up_first(features))
        out: Tensor = self.leave(features).float()
        return out

    def say(self, views: Sequence[Tensor]) -> list[Tensor]:
        """What comes of each view, by `view_of`, on the CPU: [1, planes, S, S]."""
        said: dict[int, Tensor] = {}
        for side in sorted({view.shape[-1] for view in views}):
            rows = [row for row, view in enumerate(views) if view.shape[-1] == side]
            device = views[rows[0]].device
            together = TOGETHER.get(device.type, 1)
            for some in (rows[start : start + together] for start in range(0, len(rows), together)):
                with autocast(device):
                    planes = self(torch.cat([views[row] for row in some]))
                said.update(zip(some, planes.detach().cpu().split(1), strict=True))
        return [said[row] for row in range(len(views))]


def is_sure(logits: Tensor, sure: float, larger: float) -> Tensor:
    """Which logits [1, 1, S, S] exceed `sure`, or `larger` in views that are larger than the smallest."""
    return logits > (sure if logits.shape[-1] == min(SIDES) else larger)


def connected(seeds: Tensor, within: Tensor) -> npt.NDArray[np.bool_]:
    """What of `within` touches `seeds`, through as many of its pixels as it may be: [1, 1, S, S], bool."""
    from scipy import ndimage  # takes a third of a second, and in many pictures nothing is found

    found: npt.NDArray[np.bool_] = ndimage.binary_propagation(seeds.numpy(), AROUND, within.numpy())
    return found


def enlarged(planes: Tensor, size: tuple[int, int], top: int, bottom: int) -> Iterator[tuple[slice, Tensor]]:
    """Rows `top` to `bottom` of the planes [1, C, S, S] of a view, at the size of its image.

    Yields:
        Strip by strip which of these rows, and their planes, [C, n, W].
    """
    height, width = size
    x = (2 * torch.arange(width) + 1) / width - 1
    for first in range(top, bottom, STRIP):
        y = (2 * torch.arange(first, min(bottom, first + STRIP)) + 1) / height - 1
        grid = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, width)], dim=-1)[None]
        part = F.grid_sample(planes, grid, mode="bilinear", padding_mode="border", align_corners=False)
        yield slice(first - top, first - top + len(y)), part[0]
