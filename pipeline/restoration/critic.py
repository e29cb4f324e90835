"""The critic: is the result farther from the truth than what came in?

What a network expects of its own result is what it expected while it made it: where it takes a branch for a hair, it is
as sure of the hair as of the repair. The critic is shown both pictures side by side, made and judged, and has learned
from results of which the truth was known.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline.damage.tone import luma
from pipeline.restoration.layers import ResidualBlock, keep_scale
from pipeline.restoration.rows import Rows
from pipeline.restoration.sight import thumbnail_of

SIDE = 160
"""Pixels of the square views in which both are compared."""
LARGE = 256
"""Pixels of the shorter side of an image from which on the critic is too cautious."""
LARGER = 1.1
"""By so much logits are too large there, measured: at three times the probability results are as seldom worse. It has
learned from few large pictures."""
LOST = 0.1
"""dB that a result must have lost to count as worse."""
MAGNIFIED = 3.0
"""What differences are multiplied by: most are small."""
FAINT = 1e-4
"""Differences of the size that are told from none at all."""
WITHHELD = 0.1
"""Share of what is known that is withheld at a time, while it learns."""


class Opinion(NamedTuple):
    """What the critic says of each result of a batch."""

    worse: Tensor  # [N], logit that it is `LOST` dB worse than the input, or more
    gain: Tensor  # [N], how much better it is: the logarithm of the input's mean squared error less the result's
    log_error: Tensor  # [N], the logarithm of the result's mean squared error


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
        self.out = nn.Sequential(
            nn.Linear(second + 2 * third + 128, 128), nn.GELU(), nn.Dropout(WITHHELD), nn.Linear(128, 3)
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
        worse, gain, log_error = self.out(torch.cat([seen, told], dim=1)).float().unbind(1)
        return Opinion(worse, gain, log_error)


def pair_of(before: Rows, after: Rows, grey: bool, device: torch.device) -> Tensor:
    """An image and its result as the critic is shown them: [6, SIDE, SIDE], 0..1, on a device.

    `grey`: the image has no colours, and the result is judged without those that it may have been given.
    """
    was, now = (thumbnail_of(image, SIDE, device)[0, :3].clamp(0, 1) for image in (before, after))
    return torch.cat([was, luma(now[None])[0].expand(3, -1, -1) if grey else now])
