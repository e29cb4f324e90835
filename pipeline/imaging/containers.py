"""Metadata put into encoded files, where the encoders do not do it."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from pipeline.imaging.boxes import JP2_EXIF, JP2_IPTC, JP2_XMP, jp2_box, jp2_boxes
from pipeline.imaging.metadata import METRE, Metadata

PNG_HEAD = 33
"""Bytes of a PNG file's signature and first chunk."""


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_with(data: bytes, metadata: Metadata) -> bytes:
    """A PNG file with metadata behind its head."""
    chunks = []
    if metadata.icc is not None:
        chunks.append(png_chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(metadata.icc)))
    if metadata.resolution is not None:
        across, down = (round(value * METRE) for value in metadata.resolution)
        chunks.append(png_chunk(b"pHYs", struct.pack(">IIB", across, down, 1)))
    if metadata.exif is not None:
        chunks.append(png_chunk(b"eXIf", metadata.exif))
    if metadata.xmp is not None:
        chunks.append(png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + metadata.xmp))
    if metadata.iptc is not None:
        text = f"\niptc\n{len(metadata.iptc):8d}\n{metadata.iptc.hex()}\n"
        chunks.append(png_chunk(b"zTXt", b"Raw profile type iptc\0\0" + zlib.compress(text.encode())))
    for name, text in metadata.texts:
        keyword = name.encode("latin-1", "replace")[:79] or b"Comment"
        chunks.append(png_chunk(b"iTXt", keyword + b"\0\0\0\0\0" + text.replace("\0", " ").encode()))
    return data[:PNG_HEAD] + b"".join(chunks) + data[PNG_HEAD:]


def jp2_with(data: bytes, metadata: Metadata) -> bytes:
    """A JP2 file with metadata in boxes."""
    out = []
    for kind, body in jp2_boxes(data):
        if kind == b"jp2h":
            body = b"".join(jp2_box(*part) for part in _header(body, metadata))
        out.append(jp2_box(kind, body))
        if kind == b"jp2h":
            out += [jp2_box(*box) for box in metadata.boxes]
            named = ((JP2_XMP, metadata.xmp), (JP2_EXIF, metadata.exif), (JP2_IPTC, metadata.iptc))
            out += [jp2_box(b"uuid", name + block) for name, block in named if block is not None]
    return b"".join(out)


def _header(body: bytes, metadata: Metadata) -> Iterator[tuple[bytes, bytes]]:
    for kind, inner in jp2_boxes(body):
        if kind == b"colr" and metadata.icc is not None:
            inner = struct.pack(">BBB", 2, 0, 0) + metadata.icc
        if kind != b"res ":
            yield kind, inner
    if metadata.resolution is not None:  # down comes first
        across, down = (round(value * METRE * 100) for value in metadata.resolution)
        yield b"res ", jp2_box(b"resc", struct.pack(">HHHHbb", *_ratio(down), *_ratio(across), 0, 0))


def _ratio(hundredths: int) -> tuple[int, int]:
    """Of two numbers of 16 bits."""
    return (hundredths, 100) if hundredths < 1 << 16 else (min(0xFFFF, round(hundredths / 100)), 1)
