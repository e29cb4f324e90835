"""Pictures of more than 8 bits a sample in formats of which Pillow reads 8."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from pipeline.imaging.boxes import jp2_boxes
from pipeline.imaging.metadata import metadata_of
from pipeline.imaging.original import Original, Samples, Space
from pipeline.imaging.pillow import format_of, is_deep

SYCC = (18).to_bytes(4, "big")
"""JPEG 2000's number of YCC colours."""


class _Deep(NamedTuple):
    white: int
    read: Callable[[], Samples]


def from_deep(image: Image.Image, data: bytes) -> Original | None:
    """An opened image with its full depth, as it lies in its file; None if Pillow reads all of it.

    Args:
        image: opened, not loaded.
        data: its file.

    Raises:
        Exception: whatever the decoders trip over.
    """
    deep = _deep(image, data)
    if deep is None:
        return None
    notes: list[str] = []
    samples = deep.read()
    samples = samples[..., None] if samples.ndim == 2 else samples
    if image.format == "PNG" and samples.shape[2] in (1, 3) and (hidden := image.info.get("transparency")) is not None:
        shown = (samples != np.asarray(hidden, np.uint16)).any(2, keepdims=True)
        samples = np.concatenate([samples, np.where(shown, 65535, 0).astype(np.uint16)], axis=2)
    spaces: dict[int, tuple[Space, bool]] = {1: ("grey", False), 2: ("grey", True), 3: ("rgb", False), 4: ("rgb", True)}
    if samples.shape[2] not in spaces:
        raise ValueError(f"{samples.shape[2]} channels are not supported")
    space, alpha = spaces[samples.shape[2]]
    image.load()  # EXIF and XMP may follow the pixels
    metadata = metadata_of(image, data, notes)
    return Original(
        samples=samples,
        space=space,
        white=float(deep.white),
        bits=deep.white.bit_length(),
        format=format_of(image),
        alpha=alpha,
        metadata=metadata,
        notes=tuple(notes),
    )


def _deep(image: Image.Image, data: bytes) -> _Deep | None:
    if image.format == "PNG" and (is_deep(image) or (image.mode == "I;16" and "transparency" in image.info)):
        return _Deep(65535, lambda: _codec("png")(data))
    if image.format == "PPM" and (white := _pnm_white(image)) > 255:
        return _Deep(white, lambda: _pnm(image, data))
    if image.format == "JPEG2000" and (bits := _jpeg2000_bits(data, image.size)) > 8:
        return _Deep((1 << bits) - 1, lambda: _codec("jpeg2k")(_code_stream(data)))
    if image.format == "AVIF" and (bits := _avif_bits(data)) > 8:
        return _Deep((1 << bits) - 1, lambda: _codec("avif")(data))
    return None


def _codec(name: str) -> Callable[[bytes], Samples]:
    """A decoder of imagecodecs, which is only loaded for pictures that need it."""
    import imagecodecs

    decode: Callable[[bytes], Samples] = getattr(imagecodecs, f"{name}_decode")
    return decode


def _pnm_white(image: Image.Image) -> int:
    arguments: Any = image.tile[0][3] if image.tile else None  # type: ignore[attr-defined]
    return arguments[1] if isinstance(arguments, tuple) and isinstance(arguments[1], int) else 255


def _pnm(image: Image.Image, data: bytes) -> Samples:
    tile = image.tile[0]  # type: ignore[attr-defined]
    if tile[0] != "ppm":
        raise ValueError("plain PNM of more than 8 bits is not supported; convert it to a binary one")
    channels = 3 if image.mode == "RGB" else 1
    count = image.width * image.height * channels
    samples = np.frombuffer(data, ">u2", count, tile[2]).astype(np.uint16)
    return samples.reshape(image.height, image.width, channels)


def _code_stream(data: bytes) -> bytes:
    """The pixels of a JP2 file without the profile, which the decoder would apply; of YCC colours the whole file."""
    stream = data
    for kind, body in jp2_boxes(data):
        if kind == b"jp2h" and any(part == (b"colr", b"\1\0\0" + SYCC) for part in jp2_boxes(body)):
            return data
        if kind == b"jp2c":
            stream = body
    return stream


def _jpeg2000_bits(data: bytes, size: tuple[int, int]) -> int:
    """Of the first component, as the SIZ marker right at the start of the code stream says.

    Raises:
        ValueError: the code stream says that it has another size than the file.
    """
    start = data.find(b"\xff\x4f\xff\x51")
    if not 0 <= start < len(data) - 42:
        return 8
    right, bottom, left, top = struct.unpack_from(">IIII", data, start + 8)
    if (right - left, bottom - top) != size:
        raise ValueError(f"its headers disagree: {size[0]} x {size[1]} and {right - left} x {bottom - top} pixels")
    return (data[start + 42] & 0x7F) + 1


def _avif_bits(data: bytes) -> int:
    start = data.find(b"av1C", 0, 1 << 16)
    if not 0 <= start < len(data) - 6:
        return 8
    flags = data[start + 6]
    return (12 if flags & 0x20 else 10) if flags & 0x40 else 8
