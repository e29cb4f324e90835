"""The critic: is the result farther from the truth than what came in?

What a network expects of its own result is what it expected while it made it: where it takes a branch for a hair, it is
as sure of the hair as of the repair. The critic is shown both pictures side by side, made and judged, and has learned
from results of which the truth was known: place by place, for one picture tells much more in its places than as a
whole.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline.damage.tone import luma
from pipeline.restoration.judge import SMALLEST, SPREAD, USUAL
from pipeline.restoration.layers import ResidualBlock, activate, keep_scale
from pipeline.restoration.rows import Rows
from pipeline.restoration.sight import thumbnail_of

SIDE = 160
"""Pixels of the square views in which both are compared."""
CELLS = SIDE // 8
"""Places a side of which it says how far each picture is from the truth there."""
LOST = 0.1
"""dB that a result must have lost to count as worse."""
MAGNIFIED = 3.0
"""What differences are multiplied by: most are small."""
FAINT = 1e-4
"""Differences of the size that are told from none at all."""
WITHHELD = 0.1
"""Share of what is known that is withheld at a time, while it learns."""
SUMMED = 4
"""Numbers that the errors in all places are summed up in."""


class Opinion(NamedTuple):
    """What the critic says of each result of a batch."""

    worse: Tensor  # [N], logit that it is `LOST` dB worse than the input, or more
    gain: Tensor  # [N], how much better it is: the logarithm of the input's mean squared error less the result's
    log_error: Tensor  # [N], the logarithm of the result's mean squared error
    cells: Tensor  # [N, 2, CELLS, CELLS], that of the input's and of the result's in each place


class Critic(nn.Module):
    """Pairs of input and result to an `Opinion`."""

    usual: Tensor
    spread: Tensor

    def __init__(self, widths: tuple[int, ...], known: int) -> None:
        """`widths`: channels at 1/4, 1/8 and 1/16 of the views; `known`: how many numbers are known beside them."""
        super().__init__()
        first, second, third = widths
        self.enter = keep_scale(nn.Conv2d(9, first, 4, stride=4))
        self.first = nn.Sequential(ResidualBlock(first), ResidualBlock(first))
        self.to_second = keep_scale(nn.Conv2d(first, second, 2, stride=2))
        self.second = nn.Sequential(ResidualBlock(second), ResidualBlock(second))
        self.to_third = keep_scale(nn.Conv2d(second, third, 2, stride=2))
        self.third = nn.Sequential(ResidualBlock(third), ResidualBlock(third))
        self.numbers = nn.Sequential(nn.Linear(known, 128), nn.GELU())
        self.told = nn.Linear(128, second)
        self.up = keep_scale(nn.ConvTranspose2d(third, second, 2, stride=2), 0.5)
        self.cells = keep_scale(nn.Conv2d(second, 2, 1), 0.1)
        self.out = nn.Sequential(
            nn.Linear(second + 2 * third + 128 + SUMMED, 128), nn.GELU(), nn.Dropout(WITHHELD), nn.Linear(128, 3)
        )
        self.register_buffer("usual", torch.zeros(known))
        self.register_buffer("spread", torch.ones(known))

    def forward(self, pairs: Tensor, known: Tensor) -> Opinion:
        """`pairs` [N, 6, S, S] by `pair_of`, `known` [N, K], the numbers that `judge.Judge` is told, in one row."""
        before, after = 2 * pairs[:, :3] - 1, 2 * pairs[:, 3:] - 1
        change = after - before
        planes = [before, MAGNIFIED * change, 2 * change.sign() * (change.abs() + FAINT).sqrt()]
        features = self.first(self.enter(torch.cat(planes, dim=1).contiguous(memory_format=torch.channels_last)))
        middle = self.second(self.to_second(features))
        deep = self.third(self.to_third(middle))
        seen = torch.cat([deep.mean((2, 3)), deep.amax((2, 3)), middle.amax((2, 3))], dim=1).float()
        told = self.numbers((known.float() - self.usual) / self.spread)
        field = activate(middle + self.up(deep) + self.told(told)[:, :, None, None])
        cells = SPREAD * self.cells(field).float() + USUAL
        summed = _summed(cells)
        worse, gain, log_error = self.out(torch.cat([seen, told, (summed - USUAL) / SPREAD], dim=1)).float().unbind(1)
        was, now = summed[:, 0], summed[:, 1]
        return Opinion(worse, was - now + gain, now + log_error, cells)


def _summed(cells: Tensor) -> Tensor:
    """What errors in all places come to, [N, 2, S, S]: [N, SUMMED].

    The logarithms of the mean over them of the input's and of the result's, and of the parts of both by which one is
    worse than the other there.
    """
    before, after = cells.flatten(2).unbind(1)
    lost, won = (
        torch.log((one.exp() - other.exp()).clamp_min(SMALLEST)) for one, other in ((after, before), (before, after))
    )
    each = torch.stack([before, after, lost, won], dim=1)
    return torch.logsumexp(each, dim=2) - math.log(each.shape[-1])


def pair_of(before: Rows, after: Rows, grey: bool, device: torch.device) -> Tensor:
    """An image and its result as the critic is shown them: [6, SIDE, SIDE], 0..1, on a device.

    `grey`: the image has no colours, and the result is judged without those that it may have been given.
    """
    was, now = (thumbnail_of(image, SIDE, device)[0, :3].clamp(0, 1) for image in (before, after))
    return torch.cat([was, luma(now[None])[0].expand(3, -1, -1) if grey else now])
