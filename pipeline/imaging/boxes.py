"""The boxes of JPEG 2000 files."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterator

JP2_EXIF = b"JpgTiffExif->JP2"
JP2_IPTC = uuid.UUID("33c7a4d2-b81d-4723-a0ba-f1a3e097ad38").bytes
JP2_XMP = uuid.UUID("be7acfcb-97a9-42e8-9c71-999491e3afac").bytes
"""Boxes of JPEG 2000 files are named by these."""


def jp2_boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The kinds and bodies of the boxes of which JP2 files consist."""
    place = 0
    while place + 8 <= len(data):
        (size,) = struct.unpack_from(">I", data, place)
        head = 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, place + 8)
            head = 16
        end = place + size if size else len(data)
        if size and size < head:
            return
        yield data[place + 4 : place + 8], data[place + head : end]
        place = max(end, place + head)


def jp2_box(kind: bytes, body: bytes) -> bytes:
    """A box."""
    if len(body) + 8 < 1 << 32:
        return struct.pack(">I", len(body) + 8) + kind + body
    return struct.pack(">I", 1) + kind + struct.pack(">Q", len(body) + 16) + body
