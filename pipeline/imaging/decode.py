"""Files to pixels."""

from __future__ import annotations

import dataclasses
import io
import math
import re
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from pipeline.errors import ImageTooLarge, MissingImage, UnreadableImage, UnsupportedImage
from pipeline.imaging import jpeg, tiff
from pipeline.imaging.deep import from_deep
from pipeline.imaging.jpeg import Repaired
from pipeline.imaging.mend import PNG, mend, mend_png
from pipeline.imaging.original import Original, turned
from pipeline.imaging.pillow import FORMATS, from_pillow
from pipeline.imaging.working import rgb_of, to_working

Check = Callable[[tuple[int, int]], None]
"""Raises ImageTooLarge for a height and width."""

PNG_RATIO = 1100
"""How much smaller than its samples deflate can make a picture, at most."""


_OTHER_SORTS = re.compile(
    rb"....ftyp|\xff\x0a|\0\0\0\x0cJXL |8BPS|%PDF|%!PS|FUJIFILM|IIRO|IIU\0|\x59\xa6\x6a\x95|\x80\x2a\x5f\xd7"
    rb"|\s*<(\?xml|svg)",
    re.DOTALL,
)
"""How files begin that hold pictures which are not read here: HEIC, JPEG XL, Photoshop, PDF, raw files, SVG, …"""


def decode_image(data: bytes | None, max_megapixels: float = math.inf, max_mb: float = math.inf) -> Original:
    """Decode an image file, upright as its EXIF says. Of a broken file, what is left of the picture.

    Raises:
        MissingImage: null, or no bytes.
        ImageTooLarge: over a limit, or more than its bytes can hold; nothing was decoded then.
        UnreadableImage: not an image, of a sort that is not supported, or nothing of it is left.
    """
    if data is None:
        raise MissingImage("the image is null")
    if not data:
        raise MissingImage("the image has no bytes")
    if len(data) > max_mb * 1e6:
        raise ImageTooLarge(f"the file has {len(data) / 1e6:.1f} MB, more than limits.max_image_mb ({max_mb:g})")

    def check(size: tuple[int, int]) -> None:
        check_size(size, max_megapixels)

    try:
        original = _tiff(data, check) if data.startswith(tiff.MAGIC) else _other(data, check)
    except (ImageTooLarge, UnreadableImage, MemoryError):
        raise
    except UnidentifiedImageError as error:
        start = data[:8].hex(" ")
        sort = UnsupportedImage if _OTHER_SORTS.match(data) else UnreadableImage
        raise sort(f"not an image file of a known format ({len(data)} bytes, beginning with {start})") from error
    except tiff.Unsupported as error:
        raise UnsupportedImage(f"the image file cannot be read: {error}") from error
    except Exception as error:  # decoders raise whatever their parsing trips over
        raise UnreadableImage(f"the image file is broken ({type(error).__name__}: {str(error)[:300]})") from error
    return _without_numbers_missing(original.upright())


def check_size(size: tuple[int, int], max_megapixels: float, limit: str = "limits.max_megapixels") -> None:
    """Look at a height and width.

    Raises:
        ImageTooLarge: more than `max_megapixels`, which is the recipe's `limit`.
    """
    height, width = size
    if width * height > max_megapixels * 1e6:
        raise ImageTooLarge(
            f"the image claims {width} x {height} pixels ({width * height / 1e6:.0f} MP), "
            f"more than {limit} ({max_megapixels:g})"
        )


def rgb(original: Original) -> npt.NDArray[np.uint8]:
    """[H, W, 3] of 8 bits in the working space, without alpha."""
    return rgb_of(to_working(original).pixels)


def _tiff(data: bytes, check: Check) -> Original:
    try:
        return tiff.from_tiff(data, check)
    except (ImageTooLarge, MemoryError, tiff.Unsupported):
        raise
    except Exception as error:  # Pillow's libtiff knows some sorts that tifffile does not
        try:
            with Image.open(io.BytesIO(data), formats=["TIFF"]) as image:
                check((image.height, image.width))
                original = from_pillow(image)
            metadata, orientation, notes = tiff.metadata_in(data)
        except ImageTooLarge:
            raise
        except Exception:
            raise error from None
        metadata = dataclasses.replace(metadata, icc=metadata.icc or original.metadata.icc)
        turned_samples = turned(original.samples, orientation)
        return dataclasses.replace(original, samples=turned_samples, metadata=metadata, notes=(*original.notes, *notes))


def _other(data: bytes, check: Check) -> Original:
    try:
        opened = Image.open(io.BytesIO(data), formats=FORMATS)
    except (UnidentifiedImageError, ValueError, SyntaxError):
        repaired = mend_png(data) if data.startswith(PNG) else None
        if repaired is None:
            raise
        with Image.open(io.BytesIO(repaired.data), formats=["PNG"]) as image:
            check((image.height, image.width))
        return _mended(repaired)
    with opened as image:
        size = image.height, image.width
        check(size)
        if image.format == "PNG" and size[0] * size[1] > 8 * PNG_RATIO * len(data):
            raise ImageTooLarge(
                f"the image claims {size[1]} x {size[0]} pixels, more than its {len(data)} bytes can hold"
            )
        is_jpeg = image.format in ("JPEG", "MPO")
        if is_jpeg and data.count(b"\xff\xda") > jpeg.MOST_SCANS:
            raise UnsupportedImage(f"the image file has more than {jpeg.MOST_SCANS} scans, which no encoder makes")
        try:
            if not is_jpeg or jpeg.is_sound(data, image.mode == "CMYK"):
                return _read(image, data)
            failure: Exception | None = None
        except MemoryError:
            raise
        except Exception as error:
            failure = error
        try:
            repaired = mend(data, image)
        except MemoryError:
            raise
        except Exception as error:
            raise (failure or error) from None
    if repaired is None:
        raise failure or UnreadableImage("the image file is damaged: nothing of the picture is left")
    return _mended(repaired)


def _read(image: Image.Image, data: bytes) -> Original:
    return from_deep(image, data) or from_pillow(image, data)


def _mended(repaired: Repaired) -> Original:
    """What is left of a broken file."""
    with Image.open(io.BytesIO(repaired.data), formats=FORMATS) as image:
        original = _read(image, repaired.data)
    return dataclasses.replace(original, missing=repaired.missing, broken=repaired.note)


def _without_numbers_missing(original: Original) -> Original:
    """Floats that are no numbers are missing pixels."""
    lost = original.without_numbers()
    if lost is None:
        return original
    missing = lost if original.missing is None else lost | original.missing
    if missing.all():
        raise UnreadableImage("none of its samples is a number")
    note = f"{lost.mean():.1%} of its samples are no numbers: they are missing"
    return dataclasses.replace(original, missing=missing, broken=original.broken or note)
