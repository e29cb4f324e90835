"""Pixels to files."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

_OPTIONS: dict[str, dict[str, Any]] = {
    "png": {"compress_level": 2},  # scans hardly get smaller above, and encoding three times slower
    "webp": {"lossless": True, "quality": 20, "method": 1},
}
PREVIEW_QUALITY = 82


def encode_image(
    pixels: npt.NDArray[np.uint8], format: str = "png", icc: bytes | None = None, exif: bytes | None = None
) -> bytes:
    """[H, W, C] uint8 with 1 to 4 channels, as `Decoded.pixels`, to a lossless file."""
    image = _picture(pixels)
    if format == "webp" and image.mode in ("L", "LA"):
        image = image.convert("RGB" if image.mode == "L" else "RGBA")
    file = io.BytesIO()
    options = _OPTIONS[format] | ({"exif": exif} if exif else {})
    image.save(file, format=format.upper(), icc_profile=icc, **options)
    return file.getvalue()


def encode_preview(pixels: npt.NDArray[np.uint8], side: int) -> bytes | None:
    """A small JPEG with its longest side at most `side` pixels; None for side 0."""
    if not side:
        return None
    image = _picture(pixels)
    image = image.convert("L" if image.mode in ("L", "LA") else "RGB")
    image.thumbnail((side, side), reducing_gap=2.0)
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=PREVIEW_QUALITY)
    return file.getvalue()


def _picture(pixels: npt.NDArray[np.uint8]) -> Image.Image:
    channels = pixels.shape[2]
    return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if channels == 1 else pixels))
