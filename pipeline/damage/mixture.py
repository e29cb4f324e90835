"""Draws damage of given kinds at random strengths: for training, evaluation sets and samples."""

from __future__ import annotations

import dataclasses
import random
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from pipeline.damage import tone
from pipeline.damage.kinds import ACTIONS, MARKS, PLAIN, TONES, Chance, quantise
from pipeline.damage.record import Damage
from pipeline.damage.strengths import Strengths

MIXED = ("second_order", "worn")
"""Several kinds at once, drawn anew for each image."""
KINDS = ("clean", *ACTIONS, *MIXED)
KNOWN = ACTIONS | PLAIN
UNROUNDED = ("noise", *PLAIN)
"""What rounds by itself, or not at all."""


class Damaged(NamedTuple):
    """A batch with the record of what was done to each image."""

    images: Tensor  # [N, 3, H, W], float; noise may leave 0..1
    masks: Tensor  # [N, 1, H, W], 1 where the picture is lost, covered or stained
    records: list[Damage]


def second_order(dice: random.Random) -> list[str]:
    """Blur, reduction, noise and JPEG, and again, each left out at times (after Real-ESRGAN, arXiv:2107.10833)."""
    once = [("blur", 0.4), ("motion", 0.1), ("low_resolution", 0.5), ("noise", 0.6), ("jpeg", 0.7)]
    drawn = [kind for _ in range(2) for kind, share in once if dice.random() < share]
    return drawn if len(drawn) > 1 else ["noise", "jpeg"]


def worn(dice: random.Random) -> list[str]:
    """The scan of an old print: aged, marked, and often noisy and compressed."""
    drawn = {*dice.sample(TONES, dice.choice([0, 1, 1, 2])), *dice.sample(MARKS, dice.choice([1, 2, 2, 3]))}
    drawn |= {kind for kind, share in (("noise", 0.5), ("blur", 0.2), ("jpeg", 0.5)) if dice.random() < share}
    return [kind for kind in ACTIONS if kind in drawn]


def damage_one(
    image: Tensor, kinds: list[str], dice: random.Random, generator: Generator, strengths: Strengths | None = None
) -> tuple[Tensor, Tensor, Damage]:
    """Damage one image [1, 3, H, W] in 0..1 in the order of `kinds`.

    The strengths of kinds that draw several (`MIXED`) are half of what they would be alone.

    Returns:
        The damaged image [1, 3, H, W], its mask [1, 1, H, W], and the record.

    Raises:
        KeyError: a kind is not one of `KINDS` or `PLAIN`.
    """
    if set(kinds) & set(MIXED):
        strengths = (strengths or Strengths()).milder()
    chance = Chance(dice, generator, strengths or Strengths())
    grey = bool((image == image[:, :1]).all())
    record, mask = Damage(grey=grey), image.new_zeros(1, 1, *image.shape[-2:])
    drawn: list[str] = []
    for kind in kinds:
        if kind in MIXED:
            drawn += second_order(dice) if kind == "second_order" else worn(dice)
        elif kind != "clean":
            drawn.append(kind)
    for kind in drawn:
        image, record, marked = KNOWN[kind](image, record, chance)
        if marked is not None:
            mask = torch.maximum(mask, marked[None])
            record = dataclasses.replace(record, missing=float(mask.mean()))
    if not drawn or drawn[-1] not in UNROUNDED:
        image = quantise(image)
    if record.grey:  # JPEG rounds: a grey scan stays grey
        image = tone.luma(image).expand_as(image)
    return image, mask, record


def damage(
    images: Tensor,
    kinds: list[list[str]],
    dice: random.Random,
    generator: Generator,
    strengths: Strengths | None = None,
) -> Damaged:
    """Damage a batch [N, 3, H, W] in 0..1; `kinds` names what happens to each image, in order.

    `dice` draws kinds' strengths, `generator` (on the images' device) the noise: both seeded, both recorded by
    the caller, give the same damage again.
    """
    done = [
        damage_one(image[None], names, dice, generator, strengths) for image, names in zip(images, kinds, strict=True)
    ]
    return Damaged(torch.cat([d[0] for d in done]), torch.cat([d[1] for d in done]), [d[2] for d in done])
