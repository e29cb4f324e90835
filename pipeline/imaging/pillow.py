"""What Pillow reads without loss, as an `Original`."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from PIL import Image, PngImagePlugin

from pipeline.imaging.metadata import metadata_of
from pipeline.imaging.original import Original, Samples, Space

Image.MAX_IMAGE_PIXELS = None  # the recipe's limit decides, before a pixel is decoded
PngImagePlugin.MAX_TEXT_CHUNK = 16 << 20  # profiles of printers may have some MB

FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "JPEG2000", "AVIF", "BMP", "GIF", "PPM")
"""What Pillow may take a file for. Some others of its formats run programs."""
COUNTED = 8_000_000
"""Bytes of a GIF file whose frames are counted."""
WHOLE = 16_000_000
"""Pixels of an image that is copied at once."""
FLOAT_WHITES = (1.0, 255.0, 65535.0)
"""What floats may mean by white: the least that is not below most of a picture's samples."""


class _Mode(NamedTuple):
    space: Space
    alpha: bool
    bits: int
    white: float


_MODES = {
    "1": _Mode("grey", False, 1, 1),
    "L": _Mode("grey", False, 8, 255),
    "LA": _Mode("grey", True, 8, 255),
    "RGB": _Mode("rgb", False, 8, 255),
    "RGBA": _Mode("rgb", True, 8, 255),
    "CMYK": _Mode("cmyk", False, 8, 255),
    "LAB": _Mode("lab", False, 8, 255),
    "I;16": _Mode("grey", False, 16, 65535),
    "F": _Mode("grey", False, 32, 1),
}
_OTHERWISE = {"La": "LA", "RGBa": "RGBA", "RGBX": "RGB", "YCbCr": "RGB", "HSV": "RGB", "I;16B": "I;16", "I;16L": "I;16"}
"""Modes that are others in another order or arithmetic."""


def from_pillow(image: Image.Image, data: bytes = b"") -> Original:
    """An opened image of any mode, as it lies in its file, which `data` is.

    Raises:
        Exception: whatever Pillow's decoders trip over.
    """
    notes: list[str] = []
    if image.format == "GIF" and len(data) > COUNTED:  # counting would read it all
        notes.append("the first frame, if it has several")
    elif (frames := getattr(image, "n_frames", 1)) > 1:
        notes.append(f"first of {frames} frames")
    if image.format == "PNG" and (bits := _few_bits(image)):
        notes.append(f"samples of {bits} bits are read as 8")
    image.load()
    metadata = metadata_of(image, data, notes)
    samples, mode = _samples(image, notes)
    return Original(
        samples=samples,
        space=mode.space,
        white=mode.white,
        bits=mode.bits,
        format=format_of(image),
        alpha=mode.alpha,
        metadata=metadata,
        notes=tuple(notes),
    )


def format_of(image: Image.Image) -> str:
    """The format of an opened file as rows tell it."""
    name = (image.format or "unknown").lower()
    return {"mpo": "jpeg"}.get(name, name)


def _samples(image: Image.Image, notes: list[str]) -> tuple[Samples, _Mode]:
    """[H, W, C], and what they mean."""
    if image.mode == "P" or image.mode == "PA":
        image = _opened_palette(image, notes)
    elif image.mode == "I":
        return _integers(image)
    elif image.mode in ("1", "L", "RGB") and image.has_transparency_data:
        image = image.convert("RGBA" if image.mode == "RGB" else "LA")
    if image.mode in _OTHERWISE:
        if image.mode in ("YCbCr", "HSV"):
            notes.append(f"converted from {image.mode} to RGB")
        image = image.convert(_OTHERWISE[image.mode])
    mode = _MODES[image.mode]
    samples = _array(image)
    if image.mode == "1":
        samples = samples.astype(np.uint8)
    if image.mode == "F":
        mode = mode._replace(white=white_of(samples, notes))
    return samples, mode


def _array(image: Image.Image) -> Samples:
    """[H, W, C]; large images strip by strip, since Pillow copies what it hands out once more."""
    width, height = image.size
    if width * height <= WHOLE:
        array = np.asarray(image)
        return array.reshape(height, width, -1)
    step = max(1, WHOLE // 8 // width)
    strips = (image.crop((0, top, width, min(height, top + step))) for top in range(0, height, step))
    first = next(strips)
    start = np.asarray(first).reshape(first.height, width, -1)
    out = np.empty((height, width, start.shape[2]), start.dtype)
    out[: first.height] = start
    for number, strip in enumerate(strips, start=1):
        out[number * step : number * step + strip.height] = np.asarray(strip).reshape(strip.height, width, -1)
    return out


def _opened_palette(image: Image.Image, notes: list[str]) -> Image.Image:
    notes.append("its palette is opened up")
    opened = image.convert("RGBA" if image.has_transparency_data else "RGB")
    red, green, blue = (np.asarray(opened.getchannel(place)) for place in range(3))
    if (red == green).all() and (red == blue).all():
        return opened.convert("LA" if opened.mode == "RGBA" else "L")
    return opened


def _integers(image: Image.Image) -> tuple[Samples, _Mode]:
    """Whole numbers of 32 bits: Pillow keeps those of 16 in them, too."""
    array = np.asarray(image)[..., None]
    if array.min(initial=0) < 0 or array.max(initial=0) > 65535:
        raise ValueError("samples of 32-bit integers are not supported")
    return array.astype(np.uint16), _MODES["I;16"]


def white_of(samples: Samples, notes: list[str]) -> float:
    """What floats mean by white, which no format says."""
    finite = samples[np.isfinite(samples)]
    most = float(np.percentile(finite, 99)) if finite.size else 0.0
    white = next((white for white in FLOAT_WHITES if most <= 1.1 * white), None)
    if white is None:
        raise ValueError(f"float samples of up to {most:g} have no known white; scale them to 0..1")
    if white != 1:
        notes.append(f"float samples are taken for 0 to {white:g}")
    return white


def _few_bits(image: Image.Image) -> int:
    """Of greys of 2 and 4 bits, that Pillow scales; else 0."""
    arguments = {tile[3] for tile in getattr(image, "tile", ()) if isinstance(tile[3], str)}
    return next((bits for bits in (2, 4) if f"L;{bits}" in arguments), 0) if image.mode == "L" else 0


def is_deep(image: Image.Image) -> bool:
    """Whether Pillow would make 8 bits of an opened file's 16."""
    if image.mode not in ("L", "LA", "RGB", "RGBA", "P"):
        return False
    return any(_is_deep_raw(tile[3]) for tile in getattr(image, "tile", ()))


def _is_deep_raw(arguments: Any) -> bool:
    """Whether the raw mode among a Pillow decoder's arguments is one of 16 bits, such as `RGB;16B`."""
    raw = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return isinstance(raw, str) and ";16" in raw
