"""Directories of tags, as TIFF and EXIF have them: read, built, and added to TIFF files."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import IO, NamedTuple, Union

import numpy as np

POINTERS = (0x8769, 0x8825, 0xA005)
"""Tags that lead to further directories: EXIF, GPS, interoperability."""
MOST = 64 << 20
"""Bytes of all tags' values; more is absurd."""
MOST_TAGS = 4096
"""Tags of one directory."""
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_WORDS = _SIZES | {5: 4, 10: 4}
"""Bytes of what is stored in a byte order."""
_LONG, _UNDEFINED, _IFD, _LONG8 = 4, 7, 13, 16


class Tag(NamedTuple):
    """A tag's values as they are stored."""

    kind: int
    number: int
    values: bytes


Directory = dict[int, Union[Tag, "Directory"]]
"""Tags by number; those of POINTERS hold directories."""


def bytes_tag(data: bytes) -> Tag:
    """Anything."""
    return Tag(_UNDEFINED, len(data), data)


def order_of(block: bytes) -> str:
    """`<` or `>`, by how a TIFF file or EXIF block begins."""
    return ">" if block[:2] == b"MM" else "<"


def is_big(head: bytes) -> bool:
    """Whether a file with this beginning is a BigTIFF."""
    return head[:4] in (b"II+\0", b"MM\0+")


def read_exif(block: bytes) -> Directory:
    """All of an EXIF block but its thumbnail; what is broken of it is left out.

    Raises:
        struct.error: its head or first directory is broken.
    """
    order = order_of(block)
    (start,) = struct.unpack_from(order + "I", block, 4)
    return read_directory(lambda at, size: block[at : at + size], start, order, big=False)


class _Budget:
    """Bytes that the tags of a file may have together: their places may overlap, and a small file tell very much."""

    def __init__(self) -> None:
        self._left = MOST

    def takes(self, size: int) -> bool:
        self._left -= size
        return self._left >= 0


def has_thumbnail(block: bytes) -> bool:
    """Whether an EXIF block has a second directory, which is that of its thumbnail."""
    order = order_of(block)
    try:
        (start,) = struct.unpack_from(order + "I", block, 4)
        (count,) = struct.unpack_from(order + "H", block, start)
        return bool(struct.unpack_from(order + "I", block, start + 2 + 12 * count)[0])
    except struct.error:
        return False


def read_directory(
    read: Callable[[int, int], bytes],
    start: int,
    order: str,
    big: bool,
    depth: int = 0,
    budget: _Budget | None = None,
) -> Directory:
    """A directory and those that it leads to; what is broken or absurd of it is left out.

    Args:
        read: gives so many bytes from a place on; fewer at the end.
        start: its place.
        order: `<` or `>`.
        big: as BigTIFF has them.
        depth: how many lead to it.
        budget: what is left for it.

    Raises:
        struct.error: it does not even begin.
    """
    budget = budget or _Budget()
    entry, inline, number = _flavour(big)
    size = 8 if big else 2
    (count,) = struct.unpack(order + ("Q" if big else "H"), read(start, size))
    table = read(start + size, entry * min(count, MOST_TAGS))
    found: Directory = {}
    for place in range(0, len(table) - entry + 1, entry):
        tag, kind, values = struct.unpack_from(order + "HH" + number, table, place)
        length = _SIZES.get(kind, 0) * values
        if not length or not budget.takes(length):
            continue
        here = table[place + entry - inline : place + entry]
        if tag in POINTERS and values == 1 and kind in (_LONG, _IFD, _LONG8):
            if depth < 2:
                (at,) = struct.unpack_from(order + ("Q" if kind == _LONG8 else "I"), here)
                try:
                    found[tag] = read_directory(read, at, order, big, depth + 1, budget)
                except struct.error:
                    continue
        else:
            data = here if length <= inline else read(struct.unpack(order + number, here)[0], length)
            if len(data) >= length:
                found[tag] = Tag(kind, values, data[:length])
    return found


def _flavour(big: bool) -> tuple[int, int, str]:
    """Bytes of an entry, and of what stands in it, and how offsets are stored."""
    return (20, 8, "Q") if big else (12, 4, "I")


def swapped(directory: Directory) -> Directory:
    """With values in the other byte order; what has none (text, undefined bytes) stays."""
    out: Directory = {}
    for code, value in directory.items():
        if isinstance(value, Tag):
            size = _WORDS.get(value.kind, 1)
            words = np.frombuffer(value.values, np.dtype(f"u{size}"))
            out[code] = value._replace(values=words.byteswap().tobytes())
        else:
            out[code] = swapped(value)
    return out


def exif_block(directory: Directory, order: str) -> bytes:
    """An EXIF block with these tags, whose values are in this byte order."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    return head + _written(directory, order, at=8, big=False)


def _written(directory: Mapping[int, Tag | Directory], order: str, at: int, big: bool) -> bytes:
    """A directory that begins at `at`, with what its tags lead to behind it."""
    entry, inline, number = _flavour(big)
    head = struct.pack(order + ("Q" if big else "H"), len(directory))
    tail_at = at + len(head) + entry * len(directory) + inline
    entries, tail = bytearray(), bytearray()
    for code in sorted(directory):
        value = directory[code]
        here = tail_at + len(tail)
        if not isinstance(value, Tag):
            tail += _written(value, order, here, big)
            value = Tag(_LONG8 if big else _LONG, 1, struct.pack(order + number, here))
        elif len(value.values) > inline:
            tail += value.values
            value = value._replace(values=struct.pack(order + number, here))
        tail += b"\0" * (len(tail) % 2)
        entries += struct.pack(order + "HH" + number, code, value.kind, value.number) + value.values.ljust(
            inline, b"\0"
        )
    return head + bytes(entries) + bytes(inline) + bytes(tail)


def add_tags(file: IO[bytes], tags: Directory) -> None:
    """Give the first directory of a TIFF file with one page more tags: it is written anew at the end.

    Args:
        file: readable, writable and seekable.
        tags: with values in the file's byte order; they take the place of those that are there.
    """
    file.seek(0)
    head = file.read(16)
    order, big = order_of(head), is_big(head)
    start_at, number = (8, "Q") if big else (4, "I")
    (start,) = struct.unpack_from(order + number, head, start_at)

    def read(at: int, size: int) -> bytes:
        file.seek(at)
        return file.read(size)

    there = read_directory(read, start, order, big)
    at = file.seek(0, 2)
    file.write(b"\0" * (at % 2))
    at += at % 2
    file.write(_written(there | tags, order, at, big))
    file.seek(start_at)
    file.write(struct.pack(order + number, at))
