"""A picture of every kind of damage at three strengths, to be looked at."""

from __future__ import annotations

import random

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from pipeline.damage.mixture import KINDS, damage_one
from pipeline.damage.planes import Pixels, as_pixels, as_planes
from pipeline.damage.strengths import LEVELS, Strengths

SIDE = 192
"""Pixels of one sample."""
BESIDE = 2
"""Kinds in one row of the sheet."""
_LABEL, _GAP = 18, 6


def sheet(pixels: Pixels, seed: int = 1) -> Image.Image:
    """Draw the sheet from one image [H, W, 3]; its middle is shown, weak, medium and strong, kind by kind."""
    middle = as_planes(_middle(pixels))
    kinds = [kind for kind in KINDS if kind != "clean"]
    wide = len(LEVELS) * (SIDE + _GAP) + _GAP
    tall = SIDE + _LABEL + _GAP
    rows = -(-len(kinds) // BESIDE)
    page = Image.new("RGB", (BESIDE * wide, rows * tall + _GAP), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    for number, kind in enumerate(kinds):
        left, top = number // rows * wide + _GAP, number % rows * tall + _GAP
        pen.text((left, top), kind.replace("_", " "), "black", font)
        for column, level in enumerate(LEVELS.values()):
            dice = random.Random(f"{seed}/{kind}")  # the same for all strengths
            generator = torch.Generator().manual_seed(seed)
            image, _, _ = damage_one(middle, [kind], dice, generator, Strengths().at(level))
            page.paste(Image.fromarray(as_pixels(image)), (left + column * (SIDE + _GAP), top + _LABEL))
    return page


def _middle(pixels: Pixels) -> Pixels:
    """The central square, two samples wide, shrunk by half: more of the picture, and clean."""
    height, width = pixels.shape[:2]
    side = min(height, width, 2 * SIDE)
    top, left = (height - side) // 2, (width - side) // 2
    square = Image.fromarray(np.ascontiguousarray(pixels[top : top + side, left : left + side]))
    return np.array(square.resize((SIDE, SIDE), Image.Resampling.LANCZOS))
