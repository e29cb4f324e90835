"""Draws damage of given kinds at random strengths: for training, evaluation sets and samples."""

from __future__ import annotations

import dataclasses
import random
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from pipeline.damage import marks, noise, optics, tone
from pipeline.damage.jpeg import jpeg
from pipeline.damage.record import Damage

KINDS = ("clean", "noise", "jpeg", "blur", "low_resolution", "fading", "grey", "holes", "scratches")


class Damaged(NamedTuple):
    """A batch with the record of what was done to each image."""

    images: Tensor  # [N, 3, H, W], float; noise may leave 0..1
    masks: Tensor  # [N, 1, H, W], 1 where the picture is lost
    records: list[Damage]


class Strengths(NamedTuple):
    """Ranges from which strengths are drawn, uniformly."""

    noise_sigma: tuple[float, float] = (2.0, 55.0)
    jpeg_quality: tuple[float, float] = (8.0, 92.0)
    blur_sigma: tuple[float, float] = (0.5, 2.5)
    downscale: tuple[float, float] = (1.5, 4.2)
    fading: tuple[float, float] = (0.1, 0.6)
    missing: tuple[float, float] = (0.03, 0.3)
    scratches: tuple[float, float] = (2, 12)


def _quantise(images: Tensor) -> Tensor:
    return torch.round(images.clamp(0, 1) * 255) / 255


def _noise(
    images: Tensor, record: Damage, dice: random.Random, generator: Generator, s: Strengths
) -> tuple[Tensor, Damage]:
    sigma = dice.uniform(*s.noise_sigma)
    strength = images.new_tensor([sigma])
    kind = dice.random()
    if kind < 0.7:
        images = noise.gaussian(images, strength, generator)
    elif kind < 0.85:
        images = noise.poisson(images, strength, generator)
    else:
        images = noise.grain(images, strength, images.new_tensor([dice.uniform(0.3, 1.2)]), generator)
    if dice.random() < 0.5:  # half as an 8-bit file holds it, half as a float measurement does
        images = _quantise(images)
    return images, dataclasses.replace(record, noise_sigma=sigma)


def _jpeg(
    images: Tensor, record: Damage, dice: random.Random, generator: Generator, s: Strengths
) -> tuple[Tensor, Damage]:
    quality = dice.uniform(*s.jpeg_quality)
    images = jpeg(images, images.new_tensor([quality]))
    if dice.random() < 0.25:
        again = dice.uniform(*s.jpeg_quality)
        images = jpeg(images, images.new_tensor([again]), (dice.randrange(16), dice.randrange(16)))
        quality = min(quality, again)
    return images, dataclasses.replace(record, jpeg_quality=min(quality, record.jpeg_quality))


def _blur(
    images: Tensor, record: Damage, dice: random.Random, generator: Generator, s: Strengths
) -> tuple[Tensor, Damage]:
    sigma = dice.uniform(*s.blur_sigma)
    return optics.blur(images, images.new_tensor([sigma])), dataclasses.replace(record, blur_sigma=sigma)


def _low(
    images: Tensor, record: Damage, dice: random.Random, generator: Generator, s: Strengths
) -> tuple[Tensor, Damage]:
    factor = dice.choice([2.0, 3.0, 4.0, dice.uniform(*s.downscale)])
    mode = "bicubic" if dice.random() < 0.7 else "bilinear"
    return optics.low_resolution(images, factor, mode), dataclasses.replace(record, downscale=factor)


def _fading(
    images: Tensor, record: Damage, dice: random.Random, generator: Generator, s: Strengths
) -> tuple[Tensor, Damage]:
    strength = dice.uniform(*s.fading)
    images = tone.fade(images, images.new_tensor([strength]))
    kind = dice.random()
    if kind < 0.5:
        gains = [1 + dice.uniform(-0.5, 0.2) * strength for _ in range(3)]
        images = tone.cast(images, images.new_tensor([gains]))
    elif kind < 0.75:
        images = tone.sepia(images, images.new_tensor([strength]))
    return images.clamp(0, 1), dataclasses.replace(record, fading=strength)


def _grey(
    images: Tensor, record: Damage, dice: random.Random, generator: Generator, s: Strengths
) -> tuple[Tensor, Damage]:
    return tone.black_and_white(images), dataclasses.replace(record, grey=True)


_ACTIONS = {"noise": _noise, "jpeg": _jpeg, "blur": _blur, "low_resolution": _low, "fading": _fading, "grey": _grey}


def damage_one(
    image: Tensor, kinds: list[str], dice: random.Random, generator: Generator, strengths: Strengths | None = None
) -> tuple[Tensor, Tensor, Damage]:
    """Damage one image [1, 3, H, W] in 0..1 in the order of `kinds`.

    Returns:
        The damaged image [1, 3, H, W], its mask [1, 1, H, W], and the record.

    Raises:
        KeyError: a kind is not one of `KINDS`.
    """
    s = strengths or Strengths()
    height, width = image.shape[-2:]
    record, mask = Damage(), torch.zeros(1, 1, height, width, device=image.device)
    for kind in kinds:
        if kind == "clean":
            continue
        if kind in ("holes", "scratches"):
            if kind == "holes":
                drawn = marks.holes(height, width, dice.uniform(*s.missing), dice)
            else:
                drawn = marks.scratches(height, width, round(dice.uniform(*s.scratches)), dice)
            shade = dice.choice([0.0, 1.0, 0.5, dice.random()])
            colour = [[shade] * 3 if record.grey or dice.random() < 0.7 else [dice.random() for _ in range(3)]]
            image = marks.cover(image, drawn[None].to(image.device), image.new_tensor(colour))
            mask = torch.maximum(mask, drawn[None].to(image.device))
            record = dataclasses.replace(record, missing=float(mask.mean()))
        else:
            image, record = _ACTIONS[kind](image, record, dice, generator, s)
    if not record.noise_sigma:
        image = _quantise(image)
    if record.grey:  # noise and JPEG came after the colours were lost: a grey scan stays grey
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
