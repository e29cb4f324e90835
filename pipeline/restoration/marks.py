"""Marks: where scratches, dust, hairs, folds, tears, holes and missing corners cover a picture, found before all else.

A tile shows little of what tells them from the picture: that a line goes on, that a corner is gone. They are looked for
in a view of the whole image, by a small network of its own, which learns from many more pictures than the decoder
does. What it finds is filled as if a mask had told of it, but that pixels beside it may change, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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

Pixels = npt.NDArray[Any]

SIDES = (256, 384, 512)
"""Pixels of the square views in which marks are looked for."""
ENLARGED = 1.15
"""What a view's side is at most to the image's shorter one, but for small images."""
LIKELY = 0.5
"""Logit from which on a pixel is taken for covered, where it touches one that is `SURE`."""
SURE, SURE_LARGER = 7.0, 8.0
"""Logit that one pixel at least of each mark must have, in views of the smallest side and in larger ones: less is found
in many pictures without any (docs/evaluation.md). The weights have learned from few sharp large pictures."""
LARGER = 1.5
"""By so much logits are too large, measured: covered pixels count for more in learning, since few are."""
TOGETHER = {"cuda": 32}
"""Views in one run, by the kind of device; elsewhere one, so that none depends on its company."""
SUREST = 0.99
"""More than this is never believed."""


def side_for(height: int, width: int) -> int:
    """Of the view of an image."""
    return max((side for side in SIDES if side <= ENLARGED * min(height, width)), default=min(SIDES))


class MarkHead(nn.Module):
    """Views of whole images to the logit that each pixel is covered."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        """`widths`: channels at 1/2, 1/4, 1/8 and 1/16 of the view."""
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
        self.leave = nn.ConvTranspose2d(first, 1, 2, stride=2)
        with torch.no_grad():
            self.leave.weight.mul_(0.1)
            assert self.leave.bias is not None
            self.leave.bias.fill_(-4.0)  # few pixels are covered

    def forward(self, views: Tensor) -> Tensor:
        """`views` [N, 3, S, S] in 0..1, S a multiple of 16 -> logits [N, 1, S, S]."""
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


class Marks:
    """Where an image is covered."""

    def __init__(self, logits: Tensor, size: tuple[int, int]) -> None:
        """Of an image of this height and width, by what `MarkHead` says of its view: [1, 1, S, S]."""
        likely = (logits > LIKELY).numpy()
        marks = (logits > (SURE if logits.shape[-1] == min(SIDES) else SURE_LARGER)).numpy()
        self.any = bool(marks.any())
        """Whether it is covered anywhere."""
        if self.any:
            from scipy import ndimage  # takes a third of a second, and many pictures are without

            marks = ndimage.binary_propagation(marks, np.ones((1, 1, 3, 3)), likely)
        self._logits = torch.where(torch.from_numpy(likely & ~marks), torch.full_like(logits, LIKELY - 1), logits)
        self._size = size

    def rows(self, top: int, bottom: int) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float16]]:
        """Which pixels of these rows are covered, and how probable that is: [n, W] each."""
        height, width = self._size
        covered, probable = np.empty((bottom - top, width), np.bool_), np.empty((bottom - top, width), np.float16)
        x = (2 * torch.arange(width) + 1) / width - 1
        for first in range(top, bottom, STRIP):
            y = (2 * torch.arange(first, min(bottom, first + STRIP)) + 1) / height - 1
            grid = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, width)], dim=-1)[None]
            logits = F.grid_sample(self._logits, grid, mode="bilinear", padding_mode="border", align_corners=False)
            here = slice(first - top, first - top + len(y))
            covered[here] = (logits[0, 0] > LIKELY).numpy()
            probable[here] = torch.sigmoid(logits[0, 0] - LARGER).clamp(max=SUREST).numpy()
        return covered, probable


class Marked:
    """An image of which what is covered is missing, too."""

    def __init__(self, image: Rows, marks: Marks) -> None:
        self._image, self._marks = image, marks

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self._image.size

    def rows(self, top: int, bottom: int) -> tuple[Pixels, npt.NDArray[np.bool_] | None]:
        """These rows, and where they are missing or covered."""
        pixels, missing = self._image.rows(top, bottom)
        covered, _ = self._marks.rows(top, bottom)
        return pixels, covered if missing is None else covered | missing


def find_marks(head: MarkHead, images: Sequence[Rows], device: torch.device) -> list[Marks | None]:
    """Look for marks in images; None for those that have none."""
    views = [thumbnail_of(image, side_for(*image.size), device)[:, :3] for image in images]
    logits: dict[int, Tensor] = {}
    for side in sorted({view.shape[-1] for view in views}):
        rows = [row for row, view in enumerate(views) if view.shape[-1] == side]
        together = TOGETHER.get(device.type, 1)
        for some in (rows[start : start + together] for start in range(0, len(rows), together)):
            with autocast(device):
                found = head(torch.cat([views[row] for row in some]))
            logits.update(zip(some, found.detach().cpu().split(1), strict=True))
    marks = [Marks(logits[row], image.size) for row, image in enumerate(images)]
    return [one if one.any else None for one in marks]
