"""Pixels to TIFF files."""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import numpy as np

from pipeline.imaging.metadata import STRUCTURAL, Metadata
from pipeline.imaging.original import COLOURS, Original, Samples
from pipeline.imaging.tags import Directory, Tag, add_tags, bytes_tag, has_thumbnail, order_of, read_exif, swapped

TILED_ABOVE = 64_000_000
"""Pixels of a TIFF file that is written in tiles, for those who read parts of it."""
TILE = 512
"""Pixels a side of the tiles that are written."""
STRIP_BYTES = 1 << 18
DEFLATE_LEVEL = 2
"""Scans hardly get smaller above, and encoding three times slower."""


class TiffLayout(NamedTuple):
    """How a picture's samples are stored in a TIFF file."""

    photometric: str
    channels: int
    bits: int
    white: float
    dtype: str
    extra: tuple[int, ...]

    @classmethod
    def of(cls, picture: Original, notes: list[str]) -> TiffLayout:
        """For an original, or for what is to have its layout."""
        photometric = {"grey": "minisblack", "rgb": "rgb", "cmyk": "separated", "lab": "cielab"}[picture.space]
        further = picture.samples.shape[2] - COLOURS[picture.space]
        alpha = (1 if picture.premultiplied else 2,) * picture.alpha
        extra = picture.extra if len(picture.extra) == further else (*alpha, *(0,) * (further - picture.alpha))
        bits, kind = picture.bits, picture.samples.dtype.str[1:]
        if not picture.is_float:
            bits = next(depth for depth in (1, 8, 16) if depth >= bits)
            bits = 8 if bits == 1 and extra else bits
            kind = {1: "b1", 8: "u1", 16: "u2"}[bits]
            if bits != picture.bits:
                notes.append(f"samples of {picture.bits} bits are written as {bits}")
        return cls(photometric, picture.samples.shape[2], bits, picture.white, kind, extra)

    def stored(self, samples: Samples) -> Samples:
        """Samples of an `Original` as they stand in the file, [H, W] or [H, W, C]."""
        if self.dtype == "b1":
            return samples[..., 0] > 0
        if self.dtype in ("u1", "u2"):
            white = (1 << self.bits) - 1
            if white != self.white:
                samples = np.rint(samples.astype(np.float32) * (white / self.white)).astype(self.dtype)
            if self.photometric == "cielab":
                samples = samples.copy()
                samples[..., 1:3] ^= samples.dtype.type(1 << (self.bits - 1))
        return squeezed(samples)


def write_tiff(
    file: Any,
    layout: TiffLayout,
    size: tuple[int, int],
    samples: Any,
    metadata: Metadata,
    tiled: bool = False,
    notes: list[str] | None = None,
) -> None:
    """Write a TIFF file with metadata.

    Args:
        file: binary, readable, writable and seekable.
        layout: how samples are stored.
        size: height and width.
        samples: all of them, or (with `tiled`) an iterator of tiles of TILE pixels a side, padded.
        metadata: of the picture; its profile, too.
        tiled: write tiles.
        notes: are told what is left out.
    """
    import tifffile

    height, width = size
    tags, order = exif_tags(metadata, [] if notes is None else notes)
    tags = {tag: value for tag, value in tags.items() if tag not in STRUCTURAL}
    tags = tags if order == "<" else swapped(tags)
    tiled = tiled or height * width > TILED_ABOVE
    row = max(1, width * layout.channels * np.dtype(layout.dtype).itemsize)
    shape = (height, width) if layout.channels == 1 else (height, width, layout.channels)
    bigtiff = height * row > (1 << 32) - (1 << 26)
    with tifffile.TiffWriter(file, bigtiff=bigtiff, byteorder="<") as writer:
        writer.write(
            samples,
            shape=shape,
            dtype=layout.dtype,
            photometric=layout.photometric,
            extrasamples=layout.extra or None,
            planarconfig="contig" if layout.channels > 1 else None,
            compression="deflate",
            compressionargs={"level": DEFLATE_LEVEL},
            predictor={"b1": 1, "u1": 2, "u2": 2}.get(layout.dtype, 3 if layout.dtype in ("f4", "f8") else 1),
            tile=(TILE, TILE) if tiled else None,
            rowsperstrip=None if tiled else max(1, STRIP_BYTES // row),
            resolution=metadata.resolution,
            resolutionunit=None if metadata.resolution is None else "inch",
            iccprofile=metadata.icc,
            metadata=None,
            software=False,
        )
    if metadata.xmp is not None:
        tags[0x02BC] = Tag(1, len(metadata.xmp), metadata.xmp)
    if metadata.iptc is not None:
        tags[0x83BB] = bytes_tag(metadata.iptc)
    if tags:
        add_tags(file, tags)


def exif_tags(metadata: Metadata, notes: list[str]) -> tuple[Directory, str]:
    """The tags of an EXIF block, to be laid out anew."""
    if metadata.exif is None:
        return {}, "<"
    try:
        tags = read_exif(metadata.exif)
    except struct.error:
        notes.append("EXIF cannot be read and is left out")
        return {}, "<"
    if has_thumbnail(metadata.exif):
        notes.append("the thumbnail of EXIF is left out")
    return tags, order_of(metadata.exif)


def squeezed(samples: Samples) -> Samples:
    """[H, W, C], or [H, W] of one channel."""
    return np.ascontiguousarray(samples[..., 0] if samples.shape[2] == 1 else samples)
