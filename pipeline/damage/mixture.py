"""Draws damage of given kinds at random strengths: for training, evaluation sets and samples."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from pipeline.damage import marks, noise, optics, tone
from pipeline.damage.halftone import halftone
from pipeline.damage.jpeg import jpeg
from pipeline.damage.record import Damage

Range = tuple[float, float]
"""From weak to strong."""


class Damaged(NamedTuple):
    """A batch with the record of what was done to each image."""

    images: Tensor  # [N, 3, H, W], float; noise may leave 0..1
    masks: Tensor  # [N, 1, H, W], 1 where the picture is lost, covered or stained
    records: list[Damage]


class Strengths(NamedTuple):
    """Ranges from which strengths are drawn, uniformly; each from weak to strong."""

    noise_sigma: Range = (2.0, 55.0)
    """Of 0..255."""
    grain_size: Range = (0.3, 1.2)
    """Pixels."""
    jpeg_quality: Range = (92.0, 8.0)
    blur_sigma: Range = (0.5, 2.5)
    """Pixels."""
    motion: Range = (3.0, 14.0)
    """Length in pixels."""
    downscale: Range = (1.5, 4.2)
    """Factor."""
    fading: Range = (0.1, 0.6)
    """Share of contrast lost."""
    cast: Range = (0.1, 0.5)
    """Largest share by which a channel is off."""
    sepia: Range = (0.2, 1.0)
    """Share of the colours replaced."""
    yellowing: Range = (0.08, 0.6)
    """Optical density gained in blue."""
    uneven: Range = (0.3, 2.0)
    """Stops from the brightest place to the darkest."""
    halftone: Range = (2.5, 7.0)
    """Pixels from dot to dot."""
    holes: Range = (0.03, 0.3)
    """Share of the area."""
    corners: Range = (0.01, 0.12)
    """Share of the area."""
    stains: Range = (0.02, 0.25)
    """Share of the area."""
    scratches: Range = (2, 12)
    """Lines an image."""
    dust: Range = (8, 90)
    """Specks an image."""
    hairs: Range = (1, 8)
    """Fibres an image."""
    foxing: Range = (6, 70)
    """Spots an image."""
    folds: Range = (1, 3)
    """Creases an image."""
    tears: Range = (1, 4)
    """Rips an image."""

    def at(self, level: float) -> Strengths:
        """Every range narrowed to one point, 0 its weak end, 1 its strong end."""
        return Strengths(*((weak + level * (strong - weak),) * 2 for weak, strong in self))

    def milder(self) -> Strengths:
        """Every range brought half way to the weakest that is usual."""
        usual = Strengths._field_defaults.values()
        halfway = ([(weakest + end) / 2 for end in ends] for ends, (weakest, _) in zip(self, usual, strict=True))
        return Strengths(*((weak, strong) for weak, strong in halfway))


class _Chance(NamedTuple):
    """Where randomness comes from."""

    dice: random.Random
    generator: Generator
    strengths: Strengths

    def draw(self, name: str) -> float:
        """A strength from the range of this name."""
        low, high = getattr(self.strengths, name)
        return self.dice.uniform(low, high)

    def count(self, name: str) -> int:
        return max(1, round(self.draw(name)))


class _Done(NamedTuple):
    image: Tensor  # [1, 3, H, W]
    record: Damage
    mask: Tensor | None = None  # [1, H, W], of a defect


def _noise(image: Tensor, record: Damage, chance: _Chance) -> _Done:
    sigma, dice = chance.draw("noise_sigma"), chance.dice
    strength = image.new_tensor([sigma])
    kind = dice.random()
    if kind < 0.85:
        make = noise.gaussian if kind < 0.7 else noise.poisson
        planes = image[:, :1] if record.grey else image  # of a grey scan all channels have the same noise
        image = make(planes, strength, chance.generator).expand_as(image)
    else:
        image = noise.grain(image, strength, image.new_tensor([chance.draw("grain_size")]), chance.generator)
    if dice.random() < 0.5:  # half as an 8-bit file holds it, half as a float measurement does
        image = _quantise(image)
    return _Done(image, dataclasses.replace(record, noise_sigma=max(sigma, record.noise_sigma)))


def _jpeg(image: Tensor, record: Damage, chance: _Chance) -> _Done:
    quality, dice = chance.draw("jpeg_quality"), chance.dice
    image = jpeg(image, image.new_tensor([quality]))
    if dice.random() < 0.25:
        again = chance.draw("jpeg_quality")
        image = jpeg(image, image.new_tensor([again]), (dice.randrange(16), dice.randrange(16)))
        quality = min(quality, again)
    return _Done(image, dataclasses.replace(record, jpeg_quality=min(quality, record.jpeg_quality)))


def _blur(image: Tensor, record: Damage, chance: _Chance) -> _Done:
    sigma = chance.draw("blur_sigma")
    blurred = optics.blur(image, image.new_tensor([sigma]))
    return _Done(blurred, dataclasses.replace(record, blur_sigma=math.hypot(sigma, record.blur_sigma)))


def _motion(image: Tensor, record: Damage, chance: _Chance) -> _Done:
    length = chance.draw("motion")
    angle = image.new_tensor([chance.dice.uniform(0, 180)])
    sigma = length / math.sqrt(12)  # of a line that long
    blurred = optics.motion(image, image.new_tensor([length]), angle)
    return _Done(blurred, dataclasses.replace(record, blur_sigma=math.hypot(sigma, record.blur_sigma)))


def _low_resolution(image: Tensor, record: Damage, chance: _Chance) -> _Done:
    low, high = sorted(chance.strengths.downscale)
    usual = [factor for factor in (2.0, 3.0, 4.0) if low <= factor <= high]
    factor = chance.dice.choice([*usual, chance.draw("downscale")])
    mode = chance.dice.choices(optics.FILTERS, (0.65, 0.2, 0.1, 0.05))[0]
    image = optics.low_resolution(image, factor, mode)
    return _Done(image, dataclasses.replace(record, downscale=max(factor, record.downscale)))


def _faded(record: Damage, share: float, tinted: bool = False) -> Damage:
    """`tinted`: what had no colours has one now."""
    return dataclasses.replace(record, fading=1 - (1 - share) * (1 - record.fading), grey=record.grey and not tinted)


def _fading(image: Tensor, record: Damage, chance: _Chance) -> _Done:
    strength = chance.draw("fading")
    return _Done(tone.fade(image, image.new_tensor([strength])), _faded(record, strength))


def _cast(image: Tensor, record: Damage, chance: _Chance) -> _Done:
    strength = chance.draw("cast")
    gains = [1 - strength * chance.dice.random() for _ in range(3)]
    gains[chance.dice.randrange(3)] = 1 - strength
    gains[chance.dice.randrange(3)] = 1 + 0.3 * strength
    spread = (max(gains) - min(gains)) / max(gains)
    return _Done(tone.cast(image, image.new_tensor([gains])).clamp(0, 1), _faded(record, spread, tinted=True))


def _sepia(image: Tensor, record: Damage, chance: _Chance) -> _Done:
    strength = chance.draw("sepia")
    return _Done(
        tone.sepia(image, image.new_tensor([strength])).clamp(0, 1), _faded(record, 0.6 * strength, tinted=True)
    )


def _yellowing(image: Tensor, record: Damage, chance: _Chance) -> _Done:
    density = chance.draw("yellowing")
    return _Done(tone.yellow(image, image.new_tensor([density])), _faded(record, 0.7 * (1 - 10**-density), tinted=True))


def _uneven(image: Tensor, record: Damage, chance: _Chance) -> _Done:
    stops, dice = chance.draw("uneven"), chance.dice
    height, width = _size(image)
    if dice.random() < 0.5:
        field = tone.vignette(height, width, (dice.uniform(0, 1), dice.uniform(0, 1)), image.device)
    else:
        field = marks.cloud(height, width, max(height, width) / 1.5, dice)[None, None].to(image.device)
    image = tone.uneven(image, field, image.new_tensor([stops]))
    return _Done(image, _faded(record, 0.5 * (1 - 2**-stops)))


def _grey(image: Tensor, record: Damage, chance: _Chance) -> _Done:
    return _Done(tone.black_and_white(image), dataclasses.replace(record, grey=True))


def _halftone(image: Tensor, record: Damage, chance: _Chance) -> _Done:
    period = chance.draw("halftone")
    softness = chance.dice.uniform(0.2, 0.4)
    black = record.grey or chance.dice.random() < 0.3
    image = halftone(image, image.new_tensor([period]), black, softness)
    return _Done(image, dataclasses.replace(record, screen=period, grey=black))


def _covered(image: Tensor, record: Damage, opacity: Tensor, colour: Iterable[float]) -> _Done:
    opacity = opacity.to(image.device)
    return _Done(marks.cover(image, opacity[None], image.new_tensor([list(colour)])), record, marks.defect(opacity))


def _stained(image: Tensor, record: Damage, opacity: Tensor, tint: tuple[float, float, float]) -> _Done:
    opacity = opacity.to(image.device)
    if record.grey:
        tint = (tint[1],) * 3
    return _Done(marks.stain(image, opacity[None], image.new_tensor([tint])), record, marks.defect(opacity, tint))


def _shade(record: Damage, dice: random.Random) -> list[float]:
    """The colour of what covers a picture: mostly a grey."""
    shade = dice.choice([0.0, 1.0, 0.5, dice.random()])
    return [shade] * 3 if record.grey or dice.random() < 0.7 else [dice.random() for _ in range(3)]


def _light_or_dark(dice: random.Random) -> list[float]:
    """Specks are white on a print from a dusty negative, and dark on a dusty print."""
    return [dice.uniform(0.85, 1.0) if dice.random() < 0.6 else dice.uniform(0.0, 0.2)] * 3


def _holes(image: Tensor, record: Damage, chance: _Chance) -> _Done:
    opacity = marks.holes(*_size(image), chance.draw("holes"), chance.dice)
    return _covered(image, record, opacity, _shade(record, chance.dice))


def _corners(image: Tensor, record: Damage, chance: _Chance) -> _Done:
    opacity = marks.corners(*_size(image), chance.draw("corners"), chance.dice)
    return _covered(image, record, opacity, _shade(record, chance.dice))


def _scratches(image: Tensor, record: Damage, chance: _Chance) -> _Done:
    opacity = marks.scratches(*_size(image), chance.count("scratches"), chance.dice)
    return _covered(image, record, opacity, _shade(record, chance.dice))


def _dust(image: Tensor, record: Damage, chance: _Chance) -> _Done:
    opacity = marks.dust(*_size(image), chance.count("dust"), chance.dice)
    return _covered(image, record, opacity, _light_or_dark(chance.dice))


def _hairs(image: Tensor, record: Damage, chance: _Chance) -> _Done:
    opacity = marks.hairs(*_size(image), chance.count("hairs"), chance.dice)
    return _covered(image, record, opacity, _light_or_dark(chance.dice))


def _tears(image: Tensor, record: Damage, chance: _Chance) -> _Done:
    opacity = marks.tears(*_size(image), chance.count("tears"), chance.dice)
    return _covered(image, record, opacity, [chance.dice.uniform(0.75, 1.0)] * 3)


def _folds(image: Tensor, record: Damage, chance: _Chance) -> _Done:
    mask = torch.zeros(1, *_size(image), device=image.device)
    for _ in range(chance.count("folds")):
        crease = marks.fold(*_size(image), chance.dice)
        image = (image * crease.relief.to(image.device)).clamp(max=1)
        done = _covered(image, record, crease.cracks, [chance.dice.uniform(0.8, 1.0)] * 3)
        assert done.mask is not None
        image, mask = done.image, torch.maximum(mask, done.mask)
    return _Done(image, record, mask)


def _foxing(image: Tensor, record: Damage, chance: _Chance) -> _Done:
    opacity = marks.foxing(*_size(image), chance.count("foxing"), chance.dice)
    return _stained(image, record, opacity, (0.75, 0.55, 0.33))


def _stains(image: Tensor, record: Damage, chance: _Chance) -> _Done:
    opacity = marks.stains(*_size(image), chance.draw("stains"), chance.dice)
    return _stained(image, record, opacity, (0.7, 0.55, 0.35))


_ACTIONS: dict[str, Callable[[Tensor, Damage, _Chance], _Done]] = {
    # in the order in which they befall a picture: the print ages, is worn, printed, scanned, compressed
    "grey": _grey,
    "fading": _fading,
    "sepia": _sepia,
    "yellowing": _yellowing,
    "foxing": _foxing,
    "stains": _stains,
    "folds": _folds,
    "tears": _tears,
    "corners": _corners,
    "holes": _holes,
    "scratches": _scratches,
    "halftone": _halftone,
    "dust": _dust,
    "hairs": _hairs,
    "uneven": _uneven,
    "cast": _cast,
    "blur": _blur,
    "motion": _motion,
    "low_resolution": _low_resolution,
    "noise": _noise,
    "jpeg": _jpeg,
}
MARKS = ("scratches", "dust", "hairs", "folds", "tears", "corners", "holes", "foxing", "stains")
"""Kinds that have a mask."""
TONES = ("fading", "sepia", "yellowing", "cast", "uneven")
MIXED = ("second_order", "worn")
"""Several kinds at once, drawn anew for each image."""
KINDS = ("clean", *_ACTIONS, *MIXED)


def second_order(dice: random.Random) -> list[str]:
    """Blur, reduction, noise and JPEG, and again, each left out at times (after Real-ESRGAN, arXiv:2107.10833)."""
    once = [("blur", 0.4), ("motion", 0.1), ("low_resolution", 0.5), ("noise", 0.6), ("jpeg", 0.7)]
    drawn = [kind for _ in range(2) for kind, share in once if dice.random() < share]
    return drawn if len(drawn) > 1 else ["noise", "jpeg"]


def worn(dice: random.Random) -> list[str]:
    """The scan of an old print: aged, marked, and often noisy and compressed."""
    drawn = {*dice.sample(TONES, dice.choice([0, 1, 1, 2])), *dice.sample(MARKS, dice.choice([1, 2, 2, 3]))}
    drawn |= {kind for kind, share in (("noise", 0.5), ("blur", 0.2), ("jpeg", 0.5)) if dice.random() < share}
    return [kind for kind in _ACTIONS if kind in drawn]


def damage_one(
    image: Tensor, kinds: list[str], dice: random.Random, generator: Generator, strengths: Strengths | None = None
) -> tuple[Tensor, Tensor, Damage]:
    """Damage one image [1, 3, H, W] in 0..1 in the order of `kinds`.

    The strengths of kinds that draw several (`MIXED`) are half of what they would be alone.

    Returns:
        The damaged image [1, 3, H, W], its mask [1, 1, H, W], and the record.

    Raises:
        KeyError: a kind is not one of `KINDS`.
    """
    if set(kinds) & set(MIXED):
        strengths = (strengths or Strengths()).milder()
    chance = _Chance(dice, generator, strengths or Strengths())
    grey = bool((image == image[:, :1]).all())
    record, mask = Damage(grey=grey), image.new_zeros(1, 1, *_size(image))
    drawn: list[str] = []
    for kind in kinds:
        if kind in MIXED:
            drawn += second_order(dice) if kind == "second_order" else worn(dice)
        elif kind != "clean":
            drawn.append(kind)
    for kind in drawn:
        image, record, marked = _ACTIONS[kind](image, record, chance)
        if marked is not None:
            mask = torch.maximum(mask, marked[None])
            record = dataclasses.replace(record, missing=float(mask.mean()))
    if drawn[-1:] != ["noise"]:
        image = _quantise(image)
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


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[-2], image.shape[-1]


def _quantise(images: Tensor) -> Tensor:
    return torch.round(images.clamp(0, 1) * 255) / 255
