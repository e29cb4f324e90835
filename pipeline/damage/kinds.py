"""What each kind of damage does to one image: strengths are drawn, the image changed, the record kept."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from pipeline.damage import marks, noise, optics, tone
from pipeline.damage.halftone import halftone
from pipeline.damage.jpeg import jpeg
from pipeline.damage.record import Damage
from pipeline.damage.strengths import Strengths


class Chance(NamedTuple):
    """Where randomness comes from."""

    dice: random.Random
    generator: Generator
    strengths: Strengths

    def draw(self, name: str) -> float:
        """A strength from the range of this name."""
        low, high = getattr(self.strengths, name)
        return self.dice.uniform(low, high)

    def count(self, name: str) -> int:
        """A whole number, 1 or more, from the range of this name."""
        return max(1, round(self.draw(name)))


class Done(NamedTuple):
    """An image after one kind of damage."""

    image: Tensor  # [1, 3, H, W]
    record: Damage
    mask: Tensor | None = None  # [1, H, W], of a defect


Colour = tuple[float, float, float]
FOXED: Colour = (0.75, 0.55, 0.33)
STAINED: Colour = (0.7, 0.55, 0.35)
"""What foxing and dried puddles leave of red, green and blue where they are darkest."""

Action = Callable[[Tensor, Damage, Chance], Done]


def _noise(image: Tensor, record: Damage, chance: Chance) -> Done:
    sigma, dice = chance.draw("noise_sigma"), chance.dice
    kind = dice.random()
    if kind < 0.85:
        image = _independent(noise.gaussian if kind < 0.7 else noise.poisson, image, record, sigma, chance)
    else:
        sizes = image.new_tensor([chance.draw("grain_size")])
        image = noise.grain(image, image.new_tensor([sigma]), sizes, chance.generator)
    if dice.random() < 0.5:  # half as an 8-bit file holds it, half as a float measurement does
        image = quantise(image)
    return _noisy(image, record, sigma)


def _gaussian(image: Tensor, record: Damage, chance: Chance) -> Done:
    sigma = chance.draw("noise_sigma")
    return _noisy(_independent(noise.gaussian, image, record, sigma, chance), record, sigma)


def _independent(
    make: Callable[[Tensor, Tensor, Generator], Tensor], image: Tensor, record: Damage, sigma: float, chance: Chance
) -> Tensor:
    """With noise of each pixel's own; of a grey scan all channels have the same."""
    planes = image[:, :1] if record.grey else image
    return make(planes, image.new_tensor([sigma]), chance.generator).expand_as(image)


def _noisy(image: Tensor, record: Damage, sigma: float) -> Done:
    return Done(image, dataclasses.replace(record, noise_sigma=max(sigma, record.noise_sigma)))


def _jpeg(image: Tensor, record: Damage, chance: Chance) -> Done:
    quality, dice = chance.draw("jpeg_quality"), chance.dice
    image = jpeg(image, image.new_tensor([quality]))
    if dice.random() < 0.25:
        again = chance.draw("jpeg_quality")
        image = jpeg(image, image.new_tensor([again]), (dice.randrange(16), dice.randrange(16)))
        quality = min(quality, again)
    return Done(image, dataclasses.replace(record, jpeg_quality=min(quality, record.jpeg_quality)))


def _blur(image: Tensor, record: Damage, chance: Chance) -> Done:
    sigma = chance.draw("blur_sigma")
    blurred = optics.blur(image, image.new_tensor([sigma]))
    return Done(blurred, dataclasses.replace(record, blur_sigma=math.hypot(sigma, record.blur_sigma)))


def _motion(image: Tensor, record: Damage, chance: Chance) -> Done:
    length = chance.draw("motion")
    angle = image.new_tensor([chance.dice.uniform(0, 180)])
    sigma = length / math.sqrt(12)  # of a line that long
    blurred = optics.motion(image, image.new_tensor([length]), angle)
    return Done(blurred, dataclasses.replace(record, blur_sigma=math.hypot(sigma, record.blur_sigma)))


def _low_resolution(image: Tensor, record: Damage, chance: Chance) -> Done:
    low, high = sorted(chance.strengths.downscale)
    usual = [factor for factor in (2.0, 3.0, 4.0) if low <= factor <= high]
    factor = chance.dice.choice([*usual, chance.draw("downscale")])
    mode = chance.dice.choices(optics.FILTERS, (0.65, 0.2, 0.1, 0.05))[0]
    image = optics.low_resolution(image, factor, mode)
    return Done(image, dataclasses.replace(record, downscale=max(factor, record.downscale)))


def _faded(record: Damage, share: float, tinted: bool = False) -> Damage:
    """`tinted`: what had no colours has one now."""
    return dataclasses.replace(record, fading=1 - (1 - share) * (1 - record.fading), grey=record.grey and not tinted)


def _fading(image: Tensor, record: Damage, chance: Chance) -> Done:
    strength = chance.draw("fading")
    return Done(tone.fade(image, image.new_tensor([strength])), _faded(record, strength))


def _cast(image: Tensor, record: Damage, chance: Chance) -> Done:
    strength = chance.draw("cast")
    gains = [1 - strength * chance.dice.random() for _ in range(3)]
    gains[chance.dice.randrange(3)] = 1 - strength
    gains[chance.dice.randrange(3)] = 1 + 0.3 * strength
    spread = (max(gains) - min(gains)) / max(gains)
    return Done(tone.cast(image, image.new_tensor([gains])).clamp(0, 1), _faded(record, spread, tinted=True))


def _sepia(image: Tensor, record: Damage, chance: Chance) -> Done:
    strength = chance.draw("sepia")
    return Done(
        tone.sepia(image, image.new_tensor([strength])).clamp(0, 1), _faded(record, 0.6 * strength, tinted=True)
    )


def _yellowing(image: Tensor, record: Damage, chance: Chance) -> Done:
    density = chance.draw("yellowing")
    return Done(tone.yellow(image, image.new_tensor([density])), _faded(record, 0.7 * (1 - 10**-density), tinted=True))


def _uneven(image: Tensor, record: Damage, chance: Chance) -> Done:
    stops, dice = chance.draw("uneven"), chance.dice
    height, width = _size(image)
    if dice.random() < 0.5:
        field = tone.vignette(height, width, (dice.uniform(0, 1), dice.uniform(0, 1)), image.device)
    else:
        field = marks.cloud(height, width, max(height, width) / 1.5, dice)[None, None].to(image.device)
    image = tone.uneven(image, field, image.new_tensor([stops]))
    return Done(image, _faded(record, 0.5 * (1 - 2**-stops)))


def _grey(image: Tensor, record: Damage, chance: Chance) -> Done:
    return Done(tone.black_and_white(image), dataclasses.replace(record, grey=True))


def _halftone(image: Tensor, record: Damage, chance: Chance) -> Done:
    period = chance.draw("halftone")
    softness = chance.dice.uniform(0.2, 0.4)
    black = record.grey or chance.dice.random() < 0.3
    image = halftone(image, image.new_tensor([period]), black, softness)
    return Done(image, dataclasses.replace(record, screen=period, grey=black))


def _covered(image: Tensor, record: Damage, opacity: Tensor, colour: Iterable[float]) -> Done:
    opacity = opacity.to(image.device)
    return Done(marks.cover(image, opacity[None], image.new_tensor([list(colour)])), record, marks.defect(opacity))


def _stained(image: Tensor, record: Damage, opacity: Tensor, tint: Colour) -> Done:
    opacity = opacity.to(image.device)
    if record.grey:
        tint = (tint[1],) * 3
    return Done(marks.stain(image, opacity[None], image.new_tensor([tint])), record, marks.defect(opacity, tint))


def _shade(record: Damage, dice: random.Random) -> list[float]:
    """The colour of what covers a picture: mostly a grey."""
    shade = dice.choice([0.0, 1.0, 0.5, dice.random()])
    return [shade] * 3 if record.grey or dice.random() < 0.7 else [dice.random() for _ in range(3)]


def _light_or_dark(record: Damage, dice: random.Random) -> list[float]:
    """Specks are white on a print from a dusty negative, and dark on a dusty print."""
    return [dice.uniform(0.85, 1.0) if dice.random() < 0.6 else dice.uniform(0.0, 0.2)] * 3


def _paper(record: Damage, dice: random.Random) -> list[float]:
    """Torn paper is white inside."""
    return [dice.uniform(0.75, 1.0)] * 3


def _covering(
    draw: Callable[[int, int, Any, random.Random], Tensor],
    name: str,
    colour: Callable[[Damage, random.Random], list[float]],
    counted: bool = False,
) -> Action:
    """The action of an opaque mark: as much or as many of it as the range `name` says, drawn by one of `marks`."""

    def act(image: Tensor, record: Damage, chance: Chance) -> Done:
        opacity = draw(*_size(image), chance.count(name) if counted else chance.draw(name), chance.dice)
        return _covered(image, record, opacity, colour(record, chance.dice))

    return act


def _folds(image: Tensor, record: Damage, chance: Chance) -> Done:
    mask = torch.zeros(1, *_size(image), device=image.device)
    for _ in range(chance.count("folds")):
        crease = marks.fold(*_size(image), chance.dice)
        image = (image * crease.relief.to(image.device)).clamp(max=1)
        done = _covered(image, record, crease.cracks, [chance.dice.uniform(0.8, 1.0)] * 3)
        assert done.mask is not None
        image, mask = done.image, torch.maximum(mask, done.mask)
    return Done(image, record, mask)


def _foxing(image: Tensor, record: Damage, chance: Chance) -> Done:
    opacity = marks.foxing(*_size(image), chance.count("foxing"), chance.dice)
    return _stained(image, record, opacity, FOXED)


def _stains(image: Tensor, record: Damage, chance: Chance) -> Done:
    opacity = marks.stains(*_size(image), chance.draw("stains"), chance.dice)
    return _stained(image, record, opacity, STAINED)


ACTIONS: dict[str, Action] = {
    # in the order in which they befall a picture: the print ages, is worn, printed, scanned, compressed
    "grey": _grey,
    "fading": _fading,
    "sepia": _sepia,
    "yellowing": _yellowing,
    "foxing": _foxing,
    "stains": _stains,
    "folds": _folds,
    "tears": _covering(marks.tears, "tears", _paper, counted=True),
    "corners": _covering(marks.corners, "corners", _shade),
    "holes": _covering(marks.holes, "holes", _shade),
    "scratches": _covering(marks.scratches, "scratches", _shade, counted=True),
    "halftone": _halftone,
    "dust": _covering(marks.dust, "dust", _light_or_dark, counted=True),
    "hairs": _covering(marks.hairs, "hairs", _light_or_dark, counted=True),
    "uneven": _uneven,
    "cast": _cast,
    "blur": _blur,
    "motion": _motion,
    "low_resolution": _low_resolution,
    "noise": _noise,
    "jpeg": _jpeg,
}
PLAIN: dict[str, Action] = {"gaussian": _gaussian}
"""What denoisers are compared by, to train on: white noise as a float holds it, never clipped or rounded."""
COVERS = ("scratches", "dust", "hairs", "folds", "tears", "corners", "holes")
"""Kinds below which nothing is left of the picture."""
MARKS = (*COVERS, "foxing", "stains")
"""Kinds that have a mask."""
TONES = ("fading", "sepia", "yellowing", "cast", "uneven")


def quantise(images: Tensor) -> Tensor:
    """As an 8-bit file holds them: clipped to 0..1 and rounded."""
    return torch.round(images.clamp(0, 1) * 255) / 255


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[-2], image.shape[-1]
