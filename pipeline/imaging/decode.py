"""Files to pixels."""

from __future__ import annotations

import dataclasses
import io
import math
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.errors import ImageTooLarge, MissingImage, UnreadableImage

Image.MAX_IMAGE_PIXELS = None  # the recipe's limit decides, before a pixel is decoded

_CHANNELS = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}


@dataclasses.dataclass(frozen=True)
class Decoded:
    """An image file's content, upright."""

    pixels: npt.NDArray[np.uint8]
    """[H, W, C]; C is 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha."""
    format: str
    """The file's format in lower case, such as `jpeg`."""
    icc: bytes | None
    """Its colour profile."""
    exif: bytes | None
    """Its EXIF block, without the orientation, which is applied."""
    notes: tuple[str, ...]
    """What could not be kept, in words."""

    @property
    def rgb(self) -> npt.NDArray[np.uint8]:
        """[H, W, 3], without alpha."""
        return without_alpha(self.pixels)


def without_alpha(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """[H, W, C] of grey, grey and alpha, RGB, or RGB and alpha -> [H, W, 3]."""
    return pixels[..., :3] if pixels.shape[2] >= 3 else np.repeat(pixels[..., :1], 3, axis=2)


def decode_image(data: bytes | None, max_megapixels: float = math.inf, max_mb: float = math.inf) -> Decoded:
    """Decode an image file; EXIF orientation is applied.

    Raises:
        MissingImage: null, or no bytes.
        ImageTooLarge: over a limit; nothing was decoded then.
        UnreadableImage: not an image, or a broken one.
    """
    if data is None:
        raise MissingImage("the image is null")
    if not data:
        raise MissingImage("the image has no bytes")
    if len(data) > max_mb * 1e6:
        raise ImageTooLarge(f"the file has {len(data) / 1e6:.1f} MB, more than limits.max_image_mb ({max_mb:g})")
    try:
        with Image.open(io.BytesIO(data)) as image:
            _check_size(image.size, max_megapixels)
            return _decode(image)
    except (ImageTooLarge, MemoryError):
        raise
    except UnidentifiedImageError as error:
        start = data[:8].hex(" ")
        raise UnreadableImage(
            f"not an image file of a known format ({len(data)} bytes, beginning with {start})"
        ) from error
    except Exception as error:  # Pillow's decoders raise whatever their parsing trips over
        raise UnreadableImage(f"the image file is broken ({type(error).__name__}: {error})") from error


def _check_size(size: tuple[int, int], max_megapixels: float) -> None:
    width, height = size
    if width * height > max_megapixels * 1e6:
        raise ImageTooLarge(
            f"the image claims {width} x {height} pixels ({width * height / 1e6:.0f} MP), "
            f"more than limits.max_megapixels ({max_megapixels:g})"
        )


def _decode(image: Image.Image) -> Decoded:
    notes = []
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        notes.append(f"first of {frames} frames")
    name, icc = (image.format or "unknown").lower(), image.info.get("icc_profile")
    if image.mode in _CHANNELS and any(_is_deep(tile[3]) for tile in getattr(image, "tile", ())):
        notes.append("depth of 16 bits reduced to 8")
    image.load()
    upright, exif = _upright(image, notes)
    pixels = eight_bit_pixels(upright, notes)
    if upright.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        icc = None  # it described the other colours
    return Decoded(pixels, name, icc, exif, tuple(notes))


def _is_deep(arguments: Any) -> bool:
    """Whether the raw mode among a Pillow decoder's arguments is one of 16 bits, such as `RGB;16B`."""
    raw = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return isinstance(raw, str) and ";16" in raw


def _upright(image: Image.Image, notes: list[str]) -> tuple[Image.Image, bytes | None]:
    """The image turned as its EXIF says, and what else the EXIF block holds; a broken block is left behind."""
    try:
        upright = ImageOps.exif_transpose(image)
        return upright, upright.getexif().tobytes() or None
    except MemoryError:
        raise
    except Exception as error:  # the block is parsed lazily, and its parser raises whatever it trips over
        notes.append(f"EXIF cannot be read and is dropped ({type(error).__name__})")
        return image, None


def upright_pixels(image: Image.Image) -> npt.NDArray[np.uint8]:
    """An opened image [H, W, C], as `Decoded.pixels`."""
    notes: list[str] = []
    return eight_bit_pixels(_upright(image, notes)[0], notes)


def eight_bit_pixels(image: Image.Image, notes: list[str]) -> npt.NDArray[np.uint8]:
    """A loaded image of any mode as [H, W, C], as `Decoded.pixels`; what is lost is told in `notes`."""
    mode = image.mode
    if mode in ("I", "F") or mode.startswith("I;16"):
        notes.append(f"depth of mode {mode} reduced to 8 bits")
        return _eight_bits(np.asarray(image), mode)[..., None]
    target = _target_mode(image)
    if target != mode and mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        notes.append(f"converted from {mode} to {target}")
    array = np.asarray(image.convert(target))
    return array.reshape(*array.shape[:2], _CHANNELS[target])


def _target_mode(image: Image.Image) -> str:
    if image.mode in ("1", "L", "LA"):
        return "LA" if image.has_transparency_data else "L"
    return "RGBA" if image.has_transparency_data else "RGB"


def _eight_bits(values: npt.NDArray[Any], mode: str) -> npt.NDArray[np.uint8]:
    scaled = np.nan_to_num(values.astype(np.float32), posinf=0, neginf=0)
    white = (1.0 if scaled.max(initial=0) <= 1 else 255.0) if mode == "F" else 65535.0
    eight: npt.NDArray[np.uint8] = np.rint(np.clip(scaled / white, 0, 1) * 255).astype(np.uint8)
    return eight
