"""Broken files made whole as far as they go, with a mask of what is missing.

PNG is compressed row by row, so the rows that are there are known. Of uncompressed formats the file is continued in two
different ways: what then differs is not in it.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.imaging import jpeg
from pipeline.imaging.containers import png_chunk
from pipeline.imaging.jpeg import CUT_SHORT, Repaired
from pipeline.imaging.pillow import FORMATS

PNG = b"\x89PNG\r\n\x1a\n"
MOST_PADDED = 50_000_000
"""Pixels of an uncompressed file that is continued."""
MOST_BYTES = 6
"""Of a pixel of such a file."""
PIECE = 4096
"""Bytes that are decompressed at a time."""
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Samples of a pixel in each of PNG's colour types."""


def mend(data: bytes, image: Image.Image) -> Repaired | None:
    """A whole file out of a broken one that could be opened; None if there is no way.

    Raises:
        Exception: whatever decoders trip over, if they cannot read what was mended either.
    """
    if data.startswith(PNG):
        return mend_png(data)
    if data.startswith(jpeg.MAGIC):
        return jpeg.repair(data)
    if image.format in ("BMP", "PPM"):
        return _padded(data, image)
    return None


def mend_png(data: bytes) -> Repaired | None:
    """Of a PNG file what can be decompressed, with such metadata as is sound; None: nothing of the picture is left."""
    chunks = list(_chunks(data))
    if not chunks or chunks[0].kind != b"IHDR" or not chunks[0].sound or len(chunks[0].body) != 13:
        return None
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", chunks[0].body)
    if interlaced or colour not in _SAMPLES:
        return None
    row = 1 + (width * depth * _SAMPLES[colour] + 7) // 8
    found = _decompressed((chunk for chunk in chunks if chunk.kind == b"IDAT"), height * row)
    rows = len(found) // row
    if not rows:
        return None
    pixels = found[: rows * row] + bytes((height - rows) * row)
    middle = b"".join(png_chunk(c.kind, c.body) for c in chunks if c.sound and c.kind not in (b"IDAT", b"IEND"))
    whole = PNG + middle + png_chunk(b"IDAT", zlib.compress(pixels, 1)) + png_chunk(b"IEND", b"")
    missing = np.zeros((height, width), np.bool_)
    missing[rows:] = True
    torn = sorted(
        {c.kind.decode("latin-1") for c in chunks if not (c.sound or c.cut) and c.kind not in (b"IDAT", b"IEND")}
    )
    note = CUT_SHORT.format(missing.mean()) if rows < height else "the file is damaged"
    note += f"; of its metadata, {', '.join(torn)} cannot be read and is left out" if torn else ""
    return Repaired(whole, missing if rows < height else None, note)


class _Chunk(NamedTuple):
    kind: bytes
    body: bytes
    sound: bool
    """Its checksum is right."""
    cut: bool
    """The file ends in it."""


def _chunks(data: bytes) -> Iterator[_Chunk]:
    place = len(PNG)
    while place + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        kind, body = data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        check = data[place + 8 + length : place + 12 + length]
        sound = check == struct.pack(">I", zlib.crc32(kind + body))
        yield _Chunk(kind, body, sound, cut=len(check) < 4)
        place += 12 + length


def _decompressed(chunks: Iterator[_Chunk], most: int) -> bytes:
    """Up to the first chunk that is wrong; of one that is merely cut off, what is there."""
    unpacker, found = zlib.decompressobj(), bytearray()
    for chunk in chunks:
        if not chunk.sound and not chunk.cut:
            break
        for start in range(0, len(chunk.body), PIECE):
            try:
                found += unpacker.decompress(chunk.body[start : start + PIECE], most - len(found) + 1)
            except zlib.error:
                return bytes(found)
            if len(found) >= most:
                return bytes(found[:most])
    return bytes(found)


def _padded(data: bytes, image: Image.Image) -> Repaired | None:
    width, height = image.size
    if width * height > min(MOST_PADDED, 100 * len(data)):
        return None
    most = max(0, MOST_BYTES * width * height + 65536 - len(data))
    dark = _read(data + bytes(most))
    missing: npt.NDArray[np.bool_] = (dark != _read(data + b"\xff" * most)).any(2)
    if missing.all():
        return None
    return Repaired(data + bytes(most), missing if missing.any() else None, CUT_SHORT.format(missing.mean()))


def _read(data: bytes) -> npt.NDArray[np.uint8]:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return np.asarray(image.convert("CMYK" if image.mode == "CMYK" else "RGB"))
