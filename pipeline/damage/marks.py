"""What lies on a picture or is gone from it, as opacity maps [1, H, W] in 0..1; lengths in pixels.

Two ways of using them: `cover` paints something opaque over the picture, which is lost there; `stain` lets it show
through, darkened and tinted. `defect` is the true mask of either.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

FOXING = 6.0
"""Pixels of the radius of the largest spots of foxing."""
VISIBLE = 0.12
"""A stain that takes less light than this share is not called a defect."""


class Fold(NamedTuple):
    """A crease: where the coating has cracked off, and the relief beside it."""

    cracks: Tensor  # [1, H, W], opacity
    relief: Tensor  # [1, H, W], factor of the light, about 1: lit on one side, shaded on the other


def scratches(height: int, width: int, count: int, dice: random.Random) -> Tensor:
    """Thin, nearly straight lines across the picture, 1 to 3 pixels wide."""
    y, x = _grid(height, width)
    mask = torch.zeros(height, width)
    for _ in range(count):
        angle = dice.uniform(0, math.pi)
        centre_y, centre_x = dice.uniform(0, height), dice.uniform(0, width)
        along = (x - centre_x) * math.cos(angle) + (y - centre_y) * math.sin(angle)
        across = (y - centre_y) * math.cos(angle) - (x - centre_x) * math.sin(angle)
        bend = dice.uniform(-6, 6) * torch.sin(along / dice.uniform(20, 90))
        length = dice.uniform(0.15, 0.9) * max(height, width)
        near = (across - bend).abs() <= dice.uniform(0.5, 1.6)
        mask[near & (along.abs() < length / 2)] = 1
    return mask[None]


def dust(height: int, width: int, count: int, dice: random.Random, largest: float = 3.0) -> Tensor:
    """Specks, oblong at any angle, with a half axis of 0.6 to `largest` pixels; most are small."""
    opacity = torch.zeros(height, width)
    for _ in range(count):
        long = 0.6 + (largest - 0.6) * dice.random() ** 2
        _blob(opacity, (dice.uniform(0, height), dice.uniform(0, width)), long, dice.uniform(0.4, 1.0), dice)
    return opacity[None]


def hairs(height: int, width: int, count: int, dice: random.Random, thickness: float = 1.2) -> Tensor:
    """Curled fibres, a tenth to a half of the shorter side long, about `thickness` pixels thick."""
    opacity = torch.zeros(height, width)
    for _ in range(count):
        length = dice.uniform(0.1, 0.5) * min(height, width)
        steps = 16
        y, x, heading = dice.uniform(0, height), dice.uniform(0, width), dice.uniform(0, 2 * math.pi)
        turn = dice.uniform(-2.5, 2.5) / steps
        points = [(y, x)]
        for _ in range(steps):
            heading += turn + dice.gauss(0, 0.12)
            y, x = y + math.sin(heading) * length / steps, x + math.cos(heading) * length / steps
            points.append((y, x))
        _stroke(opacity, points, [thickness * dice.uniform(0.7, 1.3)] * len(points))
    return opacity[None]


def foxing(height: int, width: int, count: int, dice: random.Random, radius: float = FOXING) -> Tensor:
    """Round, soft spots of mould or rust in old paper, up to `radius` pixels, in loose groups."""
    opacity = torch.zeros(height, width)
    y, x = dice.uniform(0, height), dice.uniform(0, width)
    for _ in range(count):
        if dice.random() < 0.3:
            y, x = dice.uniform(0, height), dice.uniform(0, width)
        size = radius * (0.2 + 0.8 * dice.random() ** 2)
        place = (y + dice.gauss(0, height / 8), x + dice.gauss(0, width / 8))
        _blob(opacity, place, size, dice.uniform(0.7, 1.0), dice, dice.uniform(0.4, 0.95), soft=True)
    return opacity[None]


def stains(height: int, width: int, share: float, dice: random.Random) -> Tensor:
    """Dried puddles over about `share` of the area: a faint inside, a dark tide line of a few pixels at the edge."""
    y, x = _grid(height, width)
    opacity = torch.zeros(height, width)
    count = dice.choice([1, 1, 2])
    for _ in range(count):
        size = max(4.0, math.sqrt(share * height * width / count / math.pi))
        dy, dx = y - dice.uniform(0, height), x - dice.uniform(0, width)
        wobble = 1 + 0.5 * (cloud(height, width, dice.uniform(0.5, 1.0) * size, dice) - 0.5)
        outside = torch.hypot(dy, dx) * wobble - size
        inside = torch.sigmoid(-outside / 1.2) * dice.uniform(0.25, 0.5)
        rim = torch.exp(-((outside / dice.uniform(1.5, 4)) ** 2)) * dice.uniform(0.4, 0.9)
        opacity = torch.maximum(opacity, torch.maximum(inside, rim))
    return opacity[None]


def fold(height: int, width: int, dice: random.Random, crack: float = 2.5) -> Fold:
    """A crease from side to side, cracked open by up to `crack` pixels here and there."""
    y, x = _grid(height, width)
    angle = dice.choice([0.0, math.pi / 2]) + dice.gauss(0, 0.12)
    across = (y - dice.uniform(0.2, 0.8) * height) * math.cos(angle) - (x - dice.uniform(0.2, 0.8) * width) * math.sin(
        angle
    )
    across = across + 3 * (cloud(height, width, 40, dice) - 0.5)
    worn = cloud(height, width, 8, dice)
    open_by = crack * (worn - dice.uniform(0.1, 0.5)).clamp_min(0) * 2
    cracks = (open_by + 0.5 - across.abs()).clamp(0, 1) * (open_by > 0.15)
    reach = dice.uniform(3, 10)
    relief = 1 + dice.choice([-1, 1]) * dice.uniform(0.06, 0.2) * torch.tanh(across) * torch.exp(-across.abs() / reach)
    return Fold(cracks[None], relief[None])


def tears(height: int, width: int, count: int, dice: random.Random, gap: float = 5.0) -> Tensor:
    """Rips from an edge inwards, `gap` pixels wide at the edge and closing towards their end."""
    opacity = torch.zeros(height, width)
    for _ in range(count):
        side = dice.randrange(4)
        along = dice.uniform(0.1, 0.9)
        y, x = [(0.0, along * width), (height, along * width), (along * height, 0.0), (along * height, width)][side]
        heading = [math.pi / 2, -math.pi / 2, 0.0, math.pi][side] + dice.gauss(0, 0.4)
        steps = 14
        length = dice.uniform(0.15, 0.6) * (height if side < 2 else width)
        points, widths = [(y, x)], [gap]
        for step in range(1, steps + 1):
            jag = heading + dice.gauss(0, 0.5)
            y, x = y + math.sin(jag) * length / steps, x + math.cos(jag) * length / steps
            points.append((y, x))
            widths.append(max(1.0, gap * (1 - step / steps) * dice.uniform(0.6, 1.3)))
        _stroke(opacity, points, widths)
    return opacity[None]


def corners(height: int, width: int, share: float, dice: random.Random) -> Tensor:
    """One or two corners broken off along a ragged line, together about `share` of the area."""
    y, x = _grid(height, width)
    opacity = torch.zeros(height, width)
    chosen = dice.sample(range(4), dice.choice([1, 1, 2]))
    for corner in chosen:
        across = (x if corner % 2 == 0 else width - 1 - x) / width
        down = (y if corner < 2 else height - 1 - y) / height
        slant = dice.uniform(0.5, 2.0)
        reach = math.sqrt(2 * share / len(chosen))  # a triangle of sides reach * slant and reach / slant
        ragged = 0.3 * (cloud(height, width, min(height, width) / 12, dice) - 0.5)
        line = across / slant + down * slant - reach * (1 + ragged)
        opacity = torch.maximum(opacity, (0.5 - line * min(height, width)).clamp(0, 1))
    return opacity[None]


def holes(height: int, width: int, share: float, dice: random.Random) -> Tensor:
    """Blots of irregular outline that cover about `share` of the area."""
    y, x = _grid(height, width)
    mask = torch.zeros(height, width, dtype=torch.bool)
    for _ in range(40):
        if float(mask.float().mean()) >= share:
            break
        radius = dice.uniform(0.25, 0.6) * math.sqrt(share * height * width)
        radius = max(2.0, radius)
        dy, dx = y - dice.uniform(0, height), x - dice.uniform(0, width)
        turn = torch.atan2(dy, dx)
        outline = 1 + 0.25 * torch.sin(3 * turn + dice.uniform(0, 6.3))
        outline += 0.15 * torch.sin(7 * turn + dice.uniform(0, 6.3))
        mask |= torch.hypot(dy, dx) < radius * outline
    return mask.float()[None]


def cover(images: Tensor, opacity: Tensor, colours: Tensor) -> Tensor:
    """Paint `colours` [N, 3] over images [N, 3, H, W] with `opacity` [N, 1, H, W]."""
    return torch.lerp(images, colours[:, :, None, None].expand_as(images), opacity)


def stain(images: Tensor, opacity: Tensor, tints: Tensor) -> Tensor:
    """Multiply images [N, 3, H, W] by `tints` [N, 3], as far as `opacity` [N, 1, H, W] says."""
    return images * torch.lerp(torch.ones_like(images), tints[:, :, None, None].expand_as(images), opacity)


def defect(opacity: Tensor, tint: Sequence[float] | None = None) -> Tensor:
    """The true mask of something opaque, or of a stain of this tint: 1 where it shows."""
    return (opacity >= 0.5).float() if tint is None else (opacity * (1 - min(tint)) > VISIBLE).float()


def cloud(height: int, width: int, cell: float, dice: random.Random) -> Tensor:
    """A smooth random field [H, W] in 0..1 that varies over about `cell` pixels."""
    generator = torch.Generator().manual_seed(dice.getrandbits(62))
    rows, columns = (max(2, math.ceil(length / max(1.0, cell)) + 1) for length in (height, width))
    coarse = torch.rand(1, 1, rows, columns, generator=generator)
    return F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True)[0, 0].clamp(0, 1)


def _grid(height: int, width: int, top: int = 0, left: int = 0) -> tuple[Tensor, Tensor]:
    y, x = torch.arange(top, top + height).float(), torch.arange(left, left + width).float()
    return y[:, None], x[None]


def _window(shape: torch.Size, lows: tuple[float, float], highs: tuple[float, float]) -> tuple[slice, slice]:
    """The part of an image between two corners: drawing there alone keeps large images cheap."""
    parts = [
        slice(min(max(0, math.floor(low)), length), max(0, min(length, math.ceil(high) + 1)))
        for low, high, length in zip(lows, highs, shape, strict=True)
    ]
    return parts[0], parts[1]


def _blob(
    opacity: Tensor,
    centre: tuple[float, float],
    long: float,
    roundness: float,
    dice: random.Random,
    peak: float = 1.0,
    soft: bool = False,
) -> None:
    """Draw an ellipse of half axes `long` and `long * roundness` into a map [H, W]."""
    reach = 2.5 * long + 1
    rows, columns = _window(
        opacity.shape, (centre[0] - reach, centre[1] - reach), (centre[0] + reach, centre[1] + reach)
    )
    if rows.stop <= rows.start or columns.stop <= columns.start:
        return
    y, x = _grid(rows.stop - rows.start, columns.stop - columns.start, rows.start, columns.start)
    angle = dice.uniform(0, math.pi)
    along = (x - centre[1]) * math.cos(angle) + (y - centre[0]) * math.sin(angle)
    across = (y - centre[0]) * math.cos(angle) - (x - centre[1]) * math.sin(angle)
    distance = torch.hypot(along, across / roundness)
    drawn = peak * torch.exp(-((distance / long) ** 2)) if soft else peak * (long + 0.5 - distance).clamp(0, 1)
    opacity[rows, columns] = torch.maximum(opacity[rows, columns], drawn)


def _stroke(opacity: Tensor, points: Sequence[tuple[float, float]], widths: Sequence[float]) -> None:
    """Draw a line through points (y, x), of the given width at each, into a map [H, W]."""
    for (start, end), (broad, narrow) in zip(itertools.pairwise(points), itertools.pairwise(widths), strict=True):
        reach = max(broad, narrow)
        rows, columns = _window(
            opacity.shape,
            (min(start[0], end[0]) - reach, min(start[1], end[1]) - reach),
            (max(start[0], end[0]) + reach, max(start[1], end[1]) + reach),
        )
        if rows.stop <= rows.start or columns.stop <= columns.start:
            continue
        y, x = _grid(rows.stop - rows.start, columns.stop - columns.start, rows.start, columns.start)
        dy, dx = end[0] - start[0], end[1] - start[1]
        share = (((y - start[0]) * dy + (x - start[1]) * dx) / max(1e-6, dy * dy + dx * dx)).clamp(0, 1)
        distance = torch.hypot(y - start[0] - share * dy, x - start[1] - share * dx)
        half = (broad + (narrow - broad) * share) / 2
        opacity[rows, columns] = torch.maximum(opacity[rows, columns], (half + 0.5 - distance).clamp(0, 1))
