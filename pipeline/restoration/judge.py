"""The judge: what PSNR a result will have, from all that the model knows of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SMALLEST = 1e-6
"""Mean squared error below which nothing is told apart: 60 dB."""
USUAL, SPREAD = -7.0, 2.0
"""Logarithm of a usual mean squared error (30 dB), and what brings logarithms near unit size."""
JUDGED = 4
"""Numbers that an image's pixels are summed up in."""


def summary(log_error: Tensor, change: Tensor, lost: Tensor) -> Tensor:
    """What an image's pixels say, [N, 4], each near unit size.

    Args:
        log_error: [N, 1, H, W], logarithm of the expected squared error.
        change: [N, 3, H, W], result less input.
        lost: [N, 1, H, W], logit that the pixel is lost.
    """
    return describe(
        log_error.exp().mean((1, 2, 3)),
        log_error.mean((1, 2, 3)),
        change.square().mean((1, 2, 3)),
        (lost > 0).float().mean((1, 2, 3)),
    )


def describe(squared_error: Tensor, log_error: Tensor, squared_change: Tensor, lost: Tensor) -> Tensor:
    """The same from the means of each image: [N] each -> [N, 4]."""
    logarithms = [(squared_error + SMALLEST).log(), log_error, (squared_change + SMALLEST).log()]
    return torch.stack([*((part - USUAL) / SPREAD for part in logarithms), 10 * lost], dim=1)


class Judge(nn.Module):
    """The logarithm of a result's mean squared error.

    The sum of what is expected of each pixel says too much: an image may have faded or may be meant to look like that,
    and the mean over both is that of the worse. In decibels the likely case counts, and where the pixels do not
    know, the global view does.
    """

    def __init__(self, width: int, found: int) -> None:
        """`width` of the global vector, `found`: how many findings."""
        super().__init__()
        self.body = nn.Sequential(nn.Linear(JUDGED + width + found, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU())
        self.out = nn.Linear(64, 1)
        nn.init.zeros_(self.out.weight)
        assert self.out.bias is not None
        nn.init.zeros_(self.out.bias)

    def forward(self, pixels: Tensor, vector: Tensor, found: Tensor) -> Tensor:
        """`pixels` [N, 4] by `summary`, `vector` [N, width], `found` [N, F], about unit size -> [N]."""
        known = torch.cat([pixels, vector, found], dim=1).float()
        expected = SPREAD * pixels[:, 0].float() + USUAL
        out: Tensor = expected + self.out(self.body(known))[:, 0].float()
        return out
