"""Tone: what fading, casts, yellowing, toning and uneven light did to a picture, undone before all else.

They change a picture slowly over its area, so that a thumbnail shows all of it, and what undoes them is a few numbers
and a coarse grid: a small network of its own learns that from a hundred times as many pictures as the decoder sees.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.damage.tone import luma
from pipeline.restoration.judge import SMALLEST
from pipeline.restoration.layers import ResidualBlock, activate, grid_positions, keep_scale

SIDE = 64
"""Pixels of the thumbnail that is judged."""
CELLS = 8
"""Of the grid on which uneven light is undone, a side."""
LEVELS = (0.01, 0.1, 0.5, 0.9, 0.99)
"""Quantiles of each colour that tell of fading and casts."""
CERTAIN = 4.25
"""Logit from which on a tone may be taken for changed."""
LEAST_GAIN = 1.0
"""dB that undoing it must be expected to gain."""
CONFIRMED = 0.25
"""`Damage.fading` that the global view must see, too, before a tone is undone: it errs elsewhere than the tone head."""
QUICK = 8.0
"""What the last layer's numbers are multiplied by: the optimiser moves it by little a step, and they reach far."""
AROUND = 6
"""What is within about this part of a picture's side of something lost is beside it."""
TIMID = 1e-3
"""Squared error that a map of colours is worth which changes them by as much as they are."""
DESCRIBED = 27
"""Numbers in which `_described` says what a tone does."""


class Tone(NamedTuple):
    """What undoes the tone of each image of a batch: each colour times its `gain`, then an affine map of the three."""

    gain: Tensor  # [N, 3, 8, 8], logarithm
    affine: Tensor  # [N, 3, 4], to red, green and blue from each, and what is added

    @classmethod
    def none(cls, count: int, device: torch.device) -> Tone:
        """What changes nothing at all."""
        return cls(
            torch.zeros(count, 3, CELLS, CELLS, device=device), torch.eye(3, 4, device=device).repeat(count, 1, 1)
        )

    def where(self, used: Tensor) -> Tone:
        """The same where `used` [N] bool, elsewhere what changes nothing."""
        nothing = Tone.none(len(used), self.gain.device)
        chosen = used[:, None, None]
        return Tone(
            torch.where(chosen[..., None], self.gain, nothing.gain), torch.where(chosen, self.affine, nothing.affine)
        )


class Judged(NamedTuple):
    """What is known of the tone of each image of a batch."""

    tone: Tone
    changed: Tensor  # [N], logit that the tone is not the original's
    fading: Tensor  # [N], `Damage.fading`; may fall below 0, which means none
    log_error: Tensor  # [N], logarithm of the mean squared error that the picture has once it is undone
    log_left: Tensor  # [N], the same if it is left as it is

    @property
    def is_worth_it(self) -> Tensor:
        """[N] bool: the tone is certainly not the original's, and much is gained by undoing it."""
        gain = 10 / math.log(10) * (self.log_left - self.log_error)
        return (self.changed > CERTAIN) & (gain > LEAST_GAIN)


def undone(images: Tensor, gain: Tensor, affine: Tensor, grey: Tensor) -> Tensor:
    """Images [N, 3, H, W] with their tone undone; what is `grey` [N] bool stays so.

    `gain` [N, 3, H, W] is `Tone.gain` at the images' size, of the part that they are; `affine` is the tone's.
    """
    weights = affine[..., None, None]
    mixed = (weights[:, :, :3] * (images * gain.exp())[:, None]).sum(2) + weights[:, :, 3]
    return torch.where(grey[:, None, None, None], luma(mixed).expand_as(mixed), mixed)


def redone(images: Tensor, gain: Tensor, affine: Tensor) -> Tensor:
    """What `undone` has made of images with colours, the other way round."""
    mixed = images - affine[:, :, 3, None, None]
    unmixed = torch.linalg.pinv(affine[:, :, :3])[..., None, None]
    out: Tensor = (unmixed * mixed[:, None]).sum(2) * (-gain).exp()
    return out


def as_around(pictures: Tensor, originals: Tensor, lost: Tensor) -> Tensor:
    """Pictures [N, 3, S, S] with the tone that the originals have beside what is lost.

    That of the affine map of colours which brings both nearest there (least squares); `lost` [N, 1, S, S] is the share
    of each pixel that is.
    """
    side = 2 * (pictures.shape[-1] // AROUND) + 1
    near = F.avg_pool2d(F.pad(lost, (side // 2,) * 4, mode="replicate"), side, stride=1)
    weight = ((1 - lost) * (near + 1e-3)).flatten(2)
    weight = weight / weight.sum(2, keepdim=True).clamp_min(1e-6)
    colours = pictures.flatten(2)
    known = torch.cat([colours, torch.ones_like(colours[:, :1])], dim=1)
    square = (known * weight) @ known.transpose(1, 2) + TIMID * torch.eye(4, device=known.device)
    change = torch.linalg.solve(square, (known * weight) @ (originals.flatten(2) - colours).transpose(1, 2))
    out: Tensor = pictures + (change.transpose(1, 2) @ known).view_as(pictures)
    return out


def levels_of(pictures: Tensor) -> Tensor:
    """The quantiles `LEVELS` of each colour of [N, 3, H, W]: [N, 15]."""
    return pictures.flatten(2).quantile(pictures.new_tensor(LEVELS), dim=2).permute(1, 2, 0).flatten(1)


class ToneHead(nn.Module):
    """Thumbnails to what undoes their tone."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        """`widths`: channels at 1/2, 1/4, 1/8 and 1/16 of the thumbnail."""
        super().__init__()
        first, second, third, fourth = widths
        self.enter = keep_scale(nn.Conv2d(6, first, 4, stride=2, padding=1), 2.0)
        self.to_second = keep_scale(nn.Conv2d(first, second, 2, stride=2))
        self.second = ResidualBlock(second)
        self.to_third = keep_scale(nn.Conv2d(second, third, 2, stride=2))
        self.third = nn.Sequential(ResidualBlock(third), ResidualBlock(third))
        self.to_fourth = keep_scale(nn.Conv2d(third, fourth, 2, stride=2))
        self.fourth = nn.Sequential(ResidualBlock(fourth), ResidualBlock(fourth))
        self.sum_up = nn.Sequential(nn.Linear(fourth + 3 * len(LEVELS), fourth), nn.GELU(), nn.Linear(fourth, fourth))
        self.up = keep_scale(nn.ConvTranspose2d(fourth, third, 2, stride=2), 0.5)
        self.told = nn.Linear(fourth, third)
        self.last = ResidualBlock(third)
        self.gain = nn.Conv2d(third, 3, 1)
        self.rest = nn.Linear(fourth, 3 + 1 + 9)
        self.judge = nn.Sequential(
            nn.Linear(fourth + 3 * len(LEVELS) + DESCRIBED, 96), nn.GELU(), nn.Linear(96, 96), nn.GELU()
        )
        self.judged = nn.Linear(96, 4)
        for layer in (self.gain, self.rest, self.judged):
            nn.init.zeros_(layer.weight)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            self.judged.bias[-2:] = math.log(1e-3) / QUICK

    def forward(self, thumbnails: Tensor) -> Judged:
        """`thumbnails` [N, 4, S, S]: RGB in 0..1 and the share of missing pixels; S at least `SIDE`."""
        small = thumbnails.float()
        if small.shape[-1] != SIDE:
            small = F.interpolate(small, size=(SIDE, SIDE), mode="area")
        places = 2 * grid_positions(SIDE, SIDE, small.device).T.reshape(2, SIDE, SIDE) - 1
        colours = small[:, :3]
        planes = torch.cat([2 * colours - 1, small[:, 3:], places.expand(len(small), -1, -1, -1)], dim=1)
        levels = levels_of(F.avg_pool2d(colours, 2))
        features = self.second(self.to_second(activate(self.enter(planes))))
        middle = self.third(self.to_third(features))
        deep = self.fourth(self.to_fourth(middle))
        vector = self.sum_up(torch.cat([deep.mean((2, 3)), 4 * levels - 2], dim=1))
        field = self.last(middle + self.up(deep) + self.told(vector)[:, :, None, None])
        black, contrast, mix = self.rest(activate(vector.clone())).split([3, 1, 9], dim=1)
        matrix = contrast[..., None].exp() * (torch.eye(3, device=mix.device) + mix.unflatten(1, (3, 3)))
        affine = torch.cat([matrix, -matrix @ black[..., None]], dim=2)
        tone = Tone(self.gain(field), affine)
        known = [vector, levels, _described(colours, tone)]
        judged = QUICK * self.judged(self.judge(torch.cat([part.detach() for part in known], dim=1)))
        return Judged(tone, *judged.unbind(1))


def _described(small: Tensor, tone: Tone) -> Tensor:
    """What undoing a tone does to thumbnails [N, 3, S, S], in a few numbers about unit size: [N, DESCRIBED]."""
    rough = F.adaptive_avg_pool2d(small, CELLS)
    grey = torch.zeros(len(small), dtype=torch.bool, device=small.device)
    change = undone(rough, tone.gain, tone.affine, grey) - rough
    size = (change.square().mean((2, 3)) + SMALLEST).log() / 4 + 1
    return torch.cat(
        [
            size,
            4 * change.mean((2, 3)),
            4 * change.std((2, 3)),
            tone.gain.mean((2, 3)),
            4 * tone.gain.std((2, 3)),
            tone.affine.flatten(1),
        ],
        dim=1,
    )
