"""Pixels to files."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.imaging.containers import jp2_with, png_with
from pipeline.imaging.decode import decode_image
from pipeline.imaging.metadata import EXIF_HEAD, Metadata, resources_of_iptc
from pipeline.imaging.original import COLOURS, Original, Samples
from pipeline.imaging.tags import Directory, Tag, exif_block
from pipeline.imaging.tiff_output import DEFLATE_LEVEL, TiffLayout, exif_tags, squeezed, write_tiff

Format = Literal["auto", "png", "tiff", "webp", "jpeg", "avif", "jpeg2000"]

PREVIEW_QUALITY = 82
QUALITY = {"jpeg": 95, "avif": 90, "webp": 90, "jpeg2000": 50}
"""Where a lossy file is asked for and no quality is named; of JPEG 2000 it is a PSNR in dB."""
FINEST = {"jpeg": 100, "avif": 100, "webp": 100, "jpeg2000": 90}
STEP = 5
"""By which quality is raised until a file is good enough."""
LOSSLESS = ("png", "tiff", "webp", "jpeg2000")
"""Formats that can hold samples to the last bit."""
LARGEST = {"webp": 16_383, "jpeg": 65_500, "avif": 65_536, "jpeg2000": 1 << 24, "png": 1 << 24, "tiff": 1 << 31}
"""Pixels a side that a format holds."""
LARGEST_SEGMENT = 65_500
"""Bytes of a block of metadata in JPEG, about."""


class Encoded(NamedTuple):
    """A file."""

    data: bytes
    format: str
    notes: tuple[str, ...]
    """What could not be done as it was wanted, or kept, in words."""
    psnr: float | None
    """dB, of the file against the samples that it holds; None: it holds them to the last bit."""


def encode_image(
    picture: Original, format: Format = "auto", quality: int | None = None, least_psnr: float = 0.0
) -> Encoded:
    """A picture as a file, with its metadata.

    Args:
        picture: what it holds.
        format: `auto` is the picture's own where that can be lossless, else PNG. What a format cannot hold goes
            into PNG, and what PNG cannot hold into TIFF.
        quality: of JPEG, AVIF and WebP, 1 to 100, or a PSNR in dB of JPEG 2000; None: lossless, if the format can be.
        least_psnr: dB; a lossy file that is worse is written at a higher quality, and lossless if that does not help.

    Raises:
        Exception: whatever encoders trip over.
    """
    notes: list[str] = []
    wanted = (picture.format if picture.format in LOSSLESS else "png") if format == "auto" else format
    chosen = wanted
    for fallback in ("png", "tiff"):
        reason = _cannot_hold(chosen, picture)
        if reason is None:
            break
        chosen = fallback
    if chosen != wanted:
        notes.append(f"written as {chosen.upper()}: {wanted.upper()} holds no {_cannot_hold(wanted, picture)}")
        quality = None
    texts = [name for name, _ in picture.metadata.texts if chosen != "png" and (name, chosen) != ("Comment", "jpeg")]
    if texts:
        notes.append(f"texts that {chosen.upper()} has no place for are left out: {', '.join(texts)[:200]}")
    if picture.metadata.boxes and chosen != "jpeg2000":
        notes.append("boxes of JPEG 2000 with other metadata are left out")
    if chosen in ("png", "tiff") or (chosen in LOSSLESS and quality is None):
        return Encoded(_ENCODERS[chosen](picture, None, notes), chosen, tuple(notes), None)
    asked = quality = QUALITY[chosen] if quality is None else quality
    while True:
        told: list[str] = []
        data = _ENCODERS[chosen](picture, quality, told)
        reached = _psnr(picture, data)
        if reached >= least_psnr:
            raised = [f"quality {quality} instead of {asked}, to stay within the loss allowed"] * (quality > asked)
            return Encoded(data, chosen, (*notes, *told, *raised), reached)
        if quality >= FINEST[chosen]:
            break
        quality = min(FINEST[chosen], quality + STEP)
    lossless = encode_image(picture, "png")
    note = f"written as {lossless.format.upper()}: {chosen.upper()} would lose more than is allowed"
    return lossless._replace(notes=(*notes, note, *lossless.notes))


def _cannot_hold(format: str, picture: Original) -> str | None:
    """What of a picture a format has no place for, in words; None: nothing."""
    further = picture.samples.shape[2] - COLOURS[picture.space] - picture.alpha
    side = max(picture.size)
    if side > LARGEST[format]:
        return f"more than {LARGEST[format]} pixels a side"
    if format == "tiff":
        return None
    if picture.space == "lab" or (picture.space == "cmyk" and format != "jpeg"):
        return {"lab": "Lab", "cmyk": "CMYK"}[picture.space]
    if picture.is_float:
        return "floats"
    if picture.space == "grey" and picture.metadata.icc is not None and format in ("webp", "avif"):
        return "greys with a profile"
    if further:
        return "further channels"
    if picture.alpha and (format == "jpeg" or picture.premultiplied):
        return "alpha" if format == "jpeg" else "colours multiplied by alpha"
    if picture.bits > 8 and format in ("jpeg", "webp", "avif"):
        return f"samples of {picture.bits} bits"
    return None


def _stored(picture: Original, depths: tuple[int, ...], notes: list[str]) -> tuple[Samples, int]:
    """Samples in the least of these depths (bits) that holds them, scaled to its white."""
    bits = next(depth for depth in depths if depth >= picture.bits)
    white = float((1 << bits) - 1)
    samples = picture.samples
    if white != picture.white:
        notes.append(f"samples of {picture.bits} bits are written as {bits}")
        kind = np.uint8 if bits <= 8 else np.uint16
        samples = np.rint(samples.astype(np.float32) * (white / picture.white)).astype(kind)
    return samples, bits


def _png(picture: Original, quality: int | None, notes: list[str]) -> bytes:
    import imagecodecs

    if picture.bits == 1 and not picture.alpha:
        file = io.BytesIO()
        Image.fromarray(picture.samples[..., 0] > 0).save(file, "PNG")
        return png_with(file.getvalue(), picture.metadata)
    samples, _ = _stored(picture, (8, 16), notes)
    return png_with(bytes(imagecodecs.png_encode(squeezed(samples), DEFLATE_LEVEL)), picture.metadata)


def _in_colour(picture: Original, notes: list[str]) -> Image.Image:
    """For formats that have no greys."""
    samples, _ = _stored(picture, (8,), notes)
    image = Image.fromarray(squeezed(samples))
    return image.convert("RGBA" if picture.alpha else "RGB") if picture.space == "grey" else image


def _webp(picture: Original, quality: int | None, notes: list[str]) -> bytes:
    image = _in_colour(picture, notes)
    lossless = {"lossless": True, "quality": 20, "method": 1, "exact": True}
    return _with_pillow(image, "WEBP", picture, notes, **(lossless if quality is None else {"quality": quality}))


def _jpeg(picture: Original, quality: int | None, notes: list[str]) -> bytes:
    samples, _ = _stored(picture, (8,), notes)
    mode = "CMYK" if picture.space == "cmyk" else None
    image = Image.frombytes(mode, picture.size[::-1], samples.tobytes()) if mode else Image.fromarray(squeezed(samples))
    metadata = picture.metadata
    extra = b""
    comment = dict(metadata.texts).get("Comment", "").encode()[:LARGEST_SEGMENT]
    if metadata.iptc is not None:
        block = b"Photoshop 3.0\0" + resources_of_iptc(metadata.iptc)
        if len(block) <= LARGEST_SEGMENT:
            extra = b"\xff\xed" + (len(block) + 2).to_bytes(2, "big") + block
        else:
            notes.append("its IPTC is too large for JPEG and left out")
    subsampling = "4:4:4" if quality is None or quality >= 90 else "4:2:0"
    return _with_pillow(
        image,
        "JPEG",
        picture,
        notes,
        quality=quality,
        subsampling=subsampling,
        extra=extra,
        comment=comment,
        limit=LARGEST_SEGMENT,
    )


def _avif(picture: Original, quality: int | None, notes: list[str]) -> bytes:
    image = _in_colour(picture, notes)
    return _with_pillow(image, "AVIF", picture, notes, quality=quality, subsampling="4:4:4", speed=8)


def _with_pillow(
    image: Image.Image, name: str, picture: Original, notes: list[str], limit: int = 1 << 30, **options: Any
) -> bytes:
    metadata, blocks = picture.metadata, {}
    if metadata.iptc is not None and name != "JPEG":
        notes.append(f"its IPTC has no place in {name} and is left out")
    for key, block in (("exif", _exif_with_resolution(metadata, name)), ("xmp", metadata.xmp)):
        if block is not None and len(block) > limit:
            notes.append(f"its {key.upper()} is too large for {name} and left out")
        elif block is not None:
            blocks[key] = EXIF_HEAD + block if key == "exif" else block
    if name == "JPEG" and metadata.resolution is not None:
        options["dpi"] = tuple(round(value) for value in metadata.resolution)
    file = io.BytesIO()
    image.save(file, format=name, icc_profile=metadata.icc, **blocks, **options)
    return file.getvalue()


def _exif_with_resolution(metadata: Metadata, name: str) -> bytes | None:
    """EXIF for a format that has no other place for the resolution."""
    if metadata.resolution is None or name == "JPEG":
        return metadata.exif
    tags, order = exif_tags(metadata, [])
    if 0x011A in tags and 0x011B in tags:
        return metadata.exif
    return exif_block(tags | _resolution_tags(metadata.resolution, order), order)


def _resolution_tags(resolution: tuple[float, float], order: str) -> Directory:

    across, down = (struct.pack(order + "II", round(value * 1000), 1000) for value in resolution)
    return {0x011A: Tag(5, 1, across), 0x011B: Tag(5, 1, down), 0x0128: Tag(3, 1, struct.pack(order + "H", 2))}


def _jpeg2000(picture: Original, quality: int | None, notes: list[str]) -> bytes:
    import imagecodecs

    bits = picture.bits if picture.white == (1 << picture.bits) - 1 and picture.bits >= 8 else 0
    samples = picture.samples
    if not bits:
        samples, bits = _stored(picture, (8, 16), notes)
    lossy: dict[str, Any] = {} if quality is None else {"level": quality}
    data = imagecodecs.jpeg2k_encode(
        squeezed(samples), codecformat="jp2", bitspersample=bits, reversible=quality is None, **lossy
    )
    return jp2_with(bytes(data), picture.metadata)


def _tiff(picture: Original, quality: int | None, notes: list[str]) -> bytes:
    file = io.BytesIO()
    height, width = picture.size
    layout = TiffLayout.of(picture, notes)
    write_tiff(file, layout, (height, width), layout.stored(picture.samples), picture.metadata, notes=notes)
    return file.getvalue()


_ENCODERS: dict[str, Callable[[Original, int | None, list[str]], bytes]] = {
    "png": _png,
    "tiff": _tiff,
    "webp": _webp,
    "jpeg": _jpeg,
    "avif": _avif,
    "jpeg2000": _jpeg2000,
}


def _psnr(picture: Original, data: bytes) -> float:
    """dB of the samples in a file against those that it should hold."""
    found = decode_image(data)
    samples = found.samples.astype(np.float32) / np.float32(found.white)
    if found.space == "rgb" and picture.space == "grey":  # in a format that has none
        samples = np.concatenate([samples[..., :1], samples[..., 3:]], axis=2)
    if samples.shape[2] < picture.samples.shape[2]:  # encoders drop alpha that hides nothing
        samples = np.concatenate([samples, np.ones_like(samples[..., :1])], axis=2)
    error = float(np.square(samples - picture.samples.astype(np.float32) / np.float32(picture.white)).mean())
    return 100.0 if error < 1e-10 else float(-10 * np.log10(error))


def ending(format: str) -> str:
    """What the names of a format's files end in."""
    return {"jpeg": "jpg", "tiff": "tif", "jpeg2000": "jp2"}.get(format, format)


def encode_preview(pixels: npt.NDArray[np.uint8], side: int) -> bytes | None:
    """A small JPEG of [H, W, 1 or 3] with its longest side at most `side` pixels; None for side 0."""
    if not side:
        return None
    image = Image.fromarray(squeezed(pixels))
    image.thumbnail((side, side), reducing_gap=2.0)
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=PREVIEW_QUALITY)
    return file.getvalue()
