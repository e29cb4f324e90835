"""Broken JPEG files: what is left of the picture, and where.

Huffman codes fall back into step after an error, so damage inside a file can only be found where restart markers divide
it, or where libjpeg warns. The end of a file that is cut short is found by continuing it in two different ways.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

MAGIC = b"\xff\xd8\xff"
END = b"\xff\xd9"
CUT_SHORT = "the file is cut short: {:.0%} of the picture is missing"
DAMAGED = "the file is damaged: {:.0%} of the picture is missing"
AND_MORE = "the file is damaged: {:.0%} of the picture is missing, and more of it may be wrong"
UNCLEAR = "the file is damaged, where is not known: parts of the picture may be wrong"
NO_DETAIL = "the file is cut short: its finest detail is missing"
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
SHRUNK = 8
"""Pixels a side of a block of JPEG."""
TRIES = 4
"""Continuations of a file that is cut short: with one of them some blocks may look as they did without."""
MOST_SCANS = 100
"""Of a file: each costs as much as decoding the picture. Encoders make some ten."""
MOST_INTERVALS = 50_000
"""Between restart markers, that are looked at one by one."""
_MOST = 65_000
"""Pixels a side that JPEG can hold, about."""


class Repaired(NamedTuple):
    """A file that decodes."""

    data: bytes
    missing: npt.NDArray[np.bool_] | None
    """[H, W], as it is stored; None: nowhere altogether, or it cannot be told."""
    note: str


class _Frame(NamedTuple):
    """What the headers of a file with one scan say."""

    head: bytes
    """All before the coded picture."""
    lean: bytes
    """The same without comments and metadata."""
    lean_size_at: int
    """Where in `lean` height and width stand."""
    coded: bytes
    height: int
    width: int
    block: tuple[int, int]
    """Height and width of a minimum coded unit, in pixels."""
    interval: int
    """Units between restart markers; 0: there are none."""
    progressive: bool


def is_sound(data: bytes, inks: bool = False) -> bool:
    """Whether libjpeg has nothing to warn of. Files that it cannot read at all, or not here, count as sound.

    `inks`: it is in CMYK.
    """
    try:
        import simplejpeg
    except ImportError:  # training needs none
        return True
    try:
        colours = "CMYK" if inks else "GRAY"
        simplejpeg.decode_jpeg(data, colorspace=colours, min_height=1, min_width=1, min_factor=1, strict=True)
    except ValueError as error:
        return "Corrupt JPEG data" not in str(error) and "Premature end" not in str(error)
    return True


def repair(data: bytes) -> Repaired | None:
    """A file that decodes out of one that is broken; None if nothing of the picture is left.

    Raises:
        Exception: whatever decoders trip over.
    """
    data = _without_torn_header(data)
    frame = _frame(data)
    if frame is None:
        return None
    end = frame.coded.rfind(END)
    body = frame.head + (frame.coded[:end] if end >= 0 else frame.coded.removesuffix(b"\xff"))
    if frame.progressive and b"\xff\xda" in frame.coded:
        return Repaired(body + END, None, NO_DETAIL if end < 0 else UNCLEAR)
    if end >= 0 and (damaged := _damaged(data, frame)) is not None:
        return damaged
    ended = _read(body + END)
    continued = (_read(body + _continuation(frame, seed) + END) for seed in range(TRIES))
    missing = _grown(np.logical_or.reduce([_differing(ended, other, frame) for other in continued]), frame)
    if end < 0:
        return _marked(body + END, missing, CUT_SHORT)
    return _marked(data, missing, AND_MORE) if missing.any() else Repaired(data, None, UNCLEAR)


def _marked(data: bytes, missing: npt.NDArray[np.bool_], note: str) -> Repaired | None:
    if missing.all():
        return None
    share = float(missing.mean())
    return Repaired(data, missing if share else None, note.format(share))


def _damaged(data: bytes, frame: _Frame) -> Repaired | None:
    """A file with a beginning and an end: restart intervals that do not decode are missing. None: there are none."""
    across = -(-frame.width // frame.block[1])
    down = -(-frame.height // frame.block[0])
    units = across * down
    last = -(-units // frame.interval) - 1 if frame.interval else 0
    bodies = [b""] * (last + 1)
    number = 0
    for interval, marker in _intervals(frame):
        # the marker that ends an interval counts modulo 8: a gap says how many were lost
        ends = last if marker is None else min(last, number + (marker - number) % 8)
        if ends == number and _decodes(frame, interval, min(frame.interval, units - number * frame.interval)):
            bodies[number] = interval
        number = ends + 1
        if number > last:
            break
    lost = np.array([not body for body in bodies]).repeat(max(1, frame.interval))[:units]
    if not number or not lost.any():
        return None
    coded = b"".join(body + bytes([0xFF, 0xD0 + place % 8]) for place, body in enumerate(bodies[:-1]))
    return _marked(frame.head + coded + bodies[-1] + END, _grown(lost.reshape(down, across), frame), DAMAGED)


def _intervals(frame: _Frame) -> Iterator[tuple[bytes, int | None]]:
    """What lies between restart markers, with the number of the one that follows."""
    if not frame.interval or frame.progressive or frame.interval * frame.block[1] > _MOST:
        return
    if frame.height * frame.width > MOST_INTERVALS * frame.interval * frame.block[0] * frame.block[1]:
        return
    end = _MARKER.search(frame.coded)
    place, stop = 0, end.start() if end else len(frame.coded)
    for found in _RESTART.finditer(frame.coded, 0, stop):
        yield frame.coded[place : found.start()], found.group()[1] - 0xD0
        place = found.end()
    yield frame.coded[place:stop], None


def _decodes(frame: _Frame, interval: bytes, units: int) -> bool:
    """Whether an interval alone is a sound picture, of one row of units."""
    head = bytearray(frame.lean)
    struct.pack_into(">HH", head, frame.lean_size_at, frame.block[0], units * frame.block[1])
    return is_sound(bytes(head) + interval + END)


def _continuation(frame: _Frame, seed: int) -> bytes:
    """Noise for all of the picture, without a marker but those of restarts that would follow."""
    dice = np.random.default_rng(seed)
    units = -(-frame.width // frame.block[1]) * -(-frame.height // frame.block[0])
    noise = dice.integers(0, 255, min(units, frame.interval or units) * 64 + 64, dtype=np.uint8).tobytes()
    if not frame.interval:
        return noise
    done = len(_RESTART.findall(frame.coded))
    left = -(-units // frame.interval) - done
    return b"".join(noise + bytes([0xFF, 0xD0 + (done + number) % 8]) for number in range(max(0, left))) + noise


def _differing(first: npt.NDArray[np.uint8], second: npt.NDArray[np.uint8], frame: _Frame) -> npt.NDArray[np.bool_]:
    """Units in which two pictures, shrunk to `SHRUNK`, differ."""
    marked = (first != second).reshape(*first.shape[:2], -1).any(2)
    tall, wide = (side // SHRUNK for side in frame.block)
    padded = np.zeros((-(-marked.shape[0] // tall) * tall, -(-marked.shape[1] // wide) * wide), np.bool_)
    padded[: marked.shape[0], : marked.shape[1]] = marked
    parts = padded.reshape(padded.shape[0] // tall, tall, padded.shape[1] // wide, wide)
    return np.asarray(parts.any((1, 3)))


def _grown(units: npt.NDArray[np.bool_], frame: _Frame) -> npt.NDArray[np.bool_]:
    """Units as pixels [H, W], one pixel larger: colours are smoothed over the edges of blocks."""
    cells = units.repeat(frame.block[0], 0).repeat(frame.block[1], 1)
    missing = cells[: frame.height, : frame.width].copy()
    for axis in (0, 1):
        grown = np.moveaxis(missing, axis, 0)
        spread = grown[1:] | grown[:-1]
        grown[1:] |= spread
        grown[:-1] |= spread
    return missing


def _read(data: bytes) -> npt.NDArray[np.uint8]:
    """Shrunk to an eighth: one pixel a block, which costs little."""
    with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
        image.draft("L", (max(1, image.width // SHRUNK), max(1, image.height // SHRUNK)))
        return np.asarray(image)


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Each header's marker, start of its body, and end; the first that the file's end cuts off is the last."""
    place = 2
    while place + 4 <= len(data):
        if data[place] != 0xFF:
            return
        kind = data[place + 1]
        if kind == 0xFF:
            place += 1
            continue
        (length,) = struct.unpack_from(">H", data, place + 2)
        end = place + 2 + length
        yield kind, place + 4, end
        if end > len(data):
            return
        place = end
        if kind == 0xDA:
            following = _MARKER.search(data, end)
            if following is None:
                return
            place = following.start()


def _without_torn_header(data: bytes) -> bytes:
    """Without a header at its end, between two scans, that is not all there."""
    for kind, start, end in _segments(data):
        if end > len(data):
            return data[: start - 4]
        if kind == 0xD9:
            break
    return data


def _frame(data: bytes) -> _Frame | None:
    interval, frame = 0, None
    lean = bytearray(data[:2])
    for kind, start, end in _segments(data):
        body = data[start:end]
        if not (0xE0 <= kind <= 0xEF or kind == 0xFE):
            lean += data[start - 4 : end]
        if kind == 0xDD and len(body) == 2:
            (interval,) = struct.unpack(">H", body)
        elif kind in (0xC0, 0xC1, 0xC2) and len(body) >= 6 and len(body) == 6 + 3 * body[5]:
            _, height, width, count = struct.unpack_from(">BHHB", body)
            factors = [divmod(body[7 + 3 * number], 16) for number in range(count)]
            if not factors or 0 in (across * down for across, down in factors) or not height or not width:
                return None
            block = (8 * max(down for _, down in factors), 8 * max(across for across, _ in factors))
            if count == 1:
                block = (8, 8)
            frame = (len(lean) - len(body) + 1, height, width, block, kind == 0xC2)
        elif kind == 0xDA and frame is not None:
            size_at, height, width, block, progressive = frame
            return _Frame(data[:end], bytes(lean), size_at, data[end:], height, width, block, interval, progressive)
    return None
