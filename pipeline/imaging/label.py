"""A visible mark on pictures that were made up."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

SHARE = 0.1
"""Height of the mark, as a share of the picture's shorter side."""
LEAST = 10
"""The same in pixels, at least."""


def labelled(pixels: npt.NDArray[Any], text: str = "AI generated") -> npt.NDArray[np.uint8]:
    """uint8 [H, W, 3] with a text in its lower left corner, white on black."""
    height, width = pixels.shape[:2]
    font = ImageFont.load_default(max(LEAST, round(SHARE * min(height, width))))
    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    edge = 2
    box = (0, height - (bottom - top) - 2 * edge, right - left + 2 * edge, height)
    draw.rectangle(box, fill=(0, 0, 0))
    draw.text((edge - left, box[1] + edge - top), text, fill=(255, 255, 255), font=font)
    return np.asarray(image)
