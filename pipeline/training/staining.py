"""Pictures of which stains are to be taken away, and what is to be learned of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.damage import marks
from pipeline.damage.kinds import ACTIONS, COVERS, FOXED, STAINED, TONES, Chance
from pipeline.damage.mixture import damage_one
from pipeline.damage.strengths import LEVELS, Strengths
from pipeline.restoration.precision import autocast
from pipeline.restoration.stains import DARKEST, LIKELY, StainHead
from pipeline.training.data import Photo, resized
from pipeline.training.marking import ABOVE, IMAGES, RARE, SIDES, scenes
from pipeline.training.team import ALONE, Team

KINDS: tuple[tuple[tuple[str, ...], float], ...] = (
    ((), 0.35),
    (("foxing",), 0.3),
    (("stains",), 0.3),
    (("foxing", "stains"), 0.05),
)
"""How often which stains there are."""
USUAL = 0.4
"""Share of stains as `pipeline.damage` makes them; the others are of other sizes, colours and strengths."""
SIZES = (3.0, 16.0)
"""Pixels of the largest spots of those."""
FAINTEST = 0.35
"""What is left of the strength of those, at least."""
COVERED = 0.25
"""Share of pictures with something that covers them, too."""
BELOW, AFTER = 0.35, 0.35
"""Shares of pictures with another tone below the stains, and with other damage above them."""
SHOWN = 0.08
"""A stain that takes less light than this share is not to be found."""
UNSTAINED = 0.2
"""What a picture without counts in learning how much is to be taken away: such are to be left alone."""
EASY = 2e-5
"""Mean squared error of what is good enough: 47 dB."""


class Stained(NamedTuple):
    """A batch of views."""

    views: Tensor  # [N, 3, S, S]
    density: Tensor  # [N, 3, S, S], what stains have added
    present: Tensor  # [N, 1, S, S], the share of each pixel that nothing covers


def draw(photos: Sequence[Photo], seed: str, size: int, device: torch.device, team: Team = ALONE) -> Stained:
    """This worker's share of a batch of `size` pictures: the same seed and place give the same picture."""
    return _batch([_picture(*one) for one in scenes(photos, seed, size, device, team)])


def _batch(drawn: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Stained:
    views, density, present = zip(*drawn, strict=True)
    return Stained(torch.cat(views), torch.cat(density), torch.cat(present))


def _picture(image: Tensor, side: int, dice: random.Random) -> tuple[Tensor, Tensor, Tensor]:
    """A view, its density and what of it is present."""
    generator = torch.Generator(image.device).manual_seed(dice.getrandbits(62))
    if dice.random() < BELOW:
        image, _, _ = damage_one(image, [dice.choice(TONES)], dice, generator)
    (kinds,) = dice.choices([kinds for kinds, _ in KINDS], [share for _, share in KINDS])
    density = torch.zeros_like(image)
    for kind in kinds:
        density = density + _density(image, kind, dice)
    stained = image * (-density).exp()
    above = {dice.choice(COVERS)} if dice.random() < COVERED else set()
    above |= {dice.choice(ABOVE)} if dice.random() < AFTER else set()
    view, mask, _ = damage_one(stained, [kind for kind in ACTIONS if kind in above], dice, generator)
    return resized(view, side).clamp(0, 1), resized(density, side), 1 - resized(mask, side)


def _density(image: Tensor, kind: str, dice: random.Random, strengths: Strengths | None = None) -> Tensor:
    """What stains of a kind add to the density of an image [1, 3, D, D], as `strengths` says; None: at times unlike any
    that `pipeline.damage` makes."""
    usual = strengths is not None or dice.random() < USUAL
    chance = Chance(dice, torch.Generator(), strengths or Strengths())
    side, tint = image.shape[-1], FOXED if kind == "foxing" else STAINED
    if kind == "foxing":
        radius = marks.FOXING if usual else dice.uniform(*SIZES)
        opacity = marks.foxing(side, side, chance.count("foxing"), dice, radius)
    else:
        opacity = marks.stains(side, side, chance.draw("stains"), dice)
    if not usual:
        opacity = opacity * dice.uniform(FAINTEST, 1.0)
        red = dice.uniform(0.5, 0.95)
        green = red * dice.uniform(0.65, 1.0)
        tint = red, green, green * dice.uniform(0.45, 1.0)
    grey = bool((image == image[:, :1]).all())
    if grey and dice.random() < 0.5:  # else it is a scan in colours of a print without
        tint = (tint[1],) * 3
    one = torch.ones_like(image)
    return -marks.stain(one, opacity[None].to(image.device), image.new_tensor([tint])).log()


def stain_losses(head: StainHead, batch: Stained) -> dict[str, Tensor]:
    """Each term, unweighted.

    stains: the logarithm of each view's mean squared error once it is undone, what is covered left out, for PSNR is one
    too. stains_found: cross-entropy of the stained pixels.
    """
    with autocast(batch.views.device):
        said = head(batch.views)
    logits = said[:, :1]
    error = squared_error(batch, said)
    stained = is_stained(batch)
    weight = torch.where(stained.amax((1, 2, 3)) > 0, 1.0, UNSTAINED)
    found = F.binary_cross_entropy_with_logits(
        logits, stained, weight=batch.present, pos_weight=logits.new_tensor(RARE)
    )
    return {"stains": (weight * (error + EASY).log()).mean(), "stains_found": found}


def is_stained(batch: Stained) -> Tensor:
    """[N, 1, S, S], 1 where a stain shows."""
    return (1 - (-batch.density.amax(1, keepdim=True)).exp() > SHOWN).float()


def squared_error(batch: Stained, said: Tensor) -> Tensor:
    """The mean squared error of each view with what is `said` taken away, wherever it is: [N]."""
    result = batch.views * said[:, 1:].clamp(max=DARKEST).exp()
    squared = (result - batch.views * batch.density.exp()).square().mean(1, keepdim=True) * batch.present
    return squared.sum((1, 2, 3)) / batch.present.sum((1, 2, 3)).clamp_min(1)


class StainValidation:
    """The same views, stained the same way, at every interval."""

    def __init__(self, photos: Sequence[Photo], device: torch.device) -> None:
        self._cases: dict[str, Stained] = {}
        side = max(SIDES)
        views = [resized(photo.pixels[None].float().to(device), side) / 255 for photo in photos[:IMAGES]]
        present = torch.ones_like(views[0][:, :1])
        nothing = [(view, torch.zeros_like(view), present) for view in views]
        self._cases["stains_clean"] = _batch(nothing)
        for kind in ("foxing", "stains"):
            for level in ("medium", "strong"):
                strengths = Strengths().at(LEVELS[level])
                drawn = []
                for index, view in enumerate(views):
                    density = _density(view, kind, random.Random(f"{kind}/{index}"), strengths)
                    drawn.append((view * (-density).exp(), density, present))
                self._cases[f"stains_{kind}_{level}"] = _batch(drawn)

    @torch.no_grad()
    def __call__(self, head: StainHead) -> dict[str, float]:
        """Mean PSNR in dB of each case, once it is undone; of clean views the share that seems to be stained."""
        values = {}
        for name, batch in self._cases.items():
            with autocast(batch.views.device):
                said = head(batch.views)
            clean = name == "stains_clean"
            values[name] = float(
                (said[:, :1] > LIKELY).float().mean() if clean else -10 * squared_error(batch, said).log10().mean()
            )
        return values
