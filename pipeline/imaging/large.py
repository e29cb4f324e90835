"""TIFF files too large to be in memory: read band by band, written tile by tile."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from pipeline.imaging.original import Original, Samples, hash_head
from pipeline.imaging.pillow import white_of
from pipeline.imaging.tags import Tag, add_tags
from pipeline.imaging.tiff import PALETTE, TiffPages, Unsupported
from pipeline.imaging.tiff_output import TILE, TiffLayout, write_tiff
from pipeline.imaging.working import from_working, to_working

ENDINGS = (".tif", ".tiff", ".btf", ".tf8")
"""What names of TIFF files end in."""
COPIED = 8 << 20
"""Bytes of a file that are read at a time."""
WIDEST, NARROWEST = 100_000, 640
"""Pixels: bands are as wide as the picture, and a picture that is no wider than its thumbnail needs none."""
LARGEST_STRIP = 128 << 20
"""Bytes of a strip, which is decoded whole."""
SAMPLED = 16
"""Bands of so many rows, so many times, by which it is judged what floats mean by white."""


def file_sha256(file: IO[bytes]) -> tuple[str, int]:
    """SHA-256 of an opened file from its beginning on, and its size in bytes."""
    digest = hashlib.sha256()
    file.seek(0)
    while piece := file.read(COPIED):
        digest.update(piece)
    return digest.hexdigest(), file.tell()


class LargeTiff:
    """The first page of an opened TIFF file, in bands of rows as they are stored.

    It is not turned: its orientation is left to its tag.
    """

    def __init__(self, pages: TiffPages) -> None:
        """Look at the header, and at some rows of floats.

        Raises:
            Unsupported: a page of a sort that is not read.
        """
        pages.check()
        self._pages = pages
        self._kind = kind = pages.kind()
        if pages.page.photometric == PALETTE:
            raise Unsupported("large pictures with a palette are not supported; convert it to RGB")
        height, width = pages.size
        if width > WIDEST or min(height, width) < NARROWEST:
            raise Unsupported(f"{width} x {height} pixels cannot be restored band by band; cut it into parts")
        page = pages.page
        strip = (
            0
            if page.is_tiled or pages.is_raw
            else min(page.rowsperstrip, height) * width * page.samplesperpixel * page.dtype.itemsize
        )
        if strip > LARGEST_STRIP:
            raise Unsupported(
                f"its strips have {page.rowsperstrip} rows, too many to be read in parts; write it in tiles"
            )
        notes = list(pages.notes)
        metadata = pages.metadata(notes)
        self._proto = kind.original(pages.normalised(pages.rows(0, 1)[0], kind), metadata)
        if self._proto.is_float:
            tops = range(0, height, max(1, height // SAMPLED))
            some = np.concatenate([self.band(top, min(height, top + SAMPLED)).colours.ravel() for top in tops])
            self._proto = dataclasses.replace(self._proto, white=white_of(some, notes))
        converted = to_working(self._proto).notes
        TiffLayout.of(self._proto, notes)
        self.proto = dataclasses.replace(self._proto, notes=(*notes, *converted))
        """Its first row, with all that holds for the others too."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, as it is stored."""
        return self._pages.size

    def band(self, top: int, bottom: int) -> Original:
        """These rows; samples that are no numbers are missing."""
        stored, missing = self._pages.rows(top, bottom)
        samples = self._pages.normalised(stored, self._kind)
        band = dataclasses.replace(self._proto, samples=samples, missing=missing)
        lost = band.without_numbers()
        if lost is not None:
            band = dataclasses.replace(band, missing=lost if missing is None else lost | missing)
        return band

    def rows(self, top: int, bottom: int) -> tuple[Samples, npt.NDArray[np.bool_] | None]:
        """These rows in the working space, [n, W, 3], and where they are missing."""
        band = self.band(top, bottom)
        pixels = to_working(band).pixels
        return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels, band.missing

    def pixels_sha256(self) -> str:
        """As `pixels_sha256` has it, of the samples as they are stored."""
        digest, height = None, self.size[0]
        for top in range(0, height, TILE):
            samples = self.band(top, min(height, top + TILE)).samples
            digest = digest or hashlib.sha256(hash_head(self._proto, (height, *samples.shape[1:])))
            digest.update(np.ascontiguousarray(samples).data.cast("B"))
        assert digest is not None
        return digest.hexdigest()

    def write(self, file: Any, bands: Iterable[Original], coloured: bool) -> tuple[str, str]:
        """Write a TIFF file with the picture's metadata, from bands of its rows in their order.

        Args:
            file: binary, readable, writable and seekable.
            bands: all rows.
            coloured: they have colours, where this picture has none.

        Returns:
            SHA-256 of the samples, as `pixels_sha256` has it, and their layout.
        """
        height, width = self.size
        proto = self._proto
        if coloured:
            pixels = to_working(proto).pixels
            proto = from_working(proto, pixels, np.repeat(pixels, 3, axis=2))
        layout = TiffLayout.of(proto, [])
        digest = hashlib.sha256(hash_head(proto, (height, width, proto.samples.shape[2])))

        def told() -> Iterator[Samples]:
            for band in bands:
                digest.update(np.ascontiguousarray(band.samples).data.cast("B"))
                yield layout.stored(band.samples)

        write_tiff(file, layout, (height, width), _tiles(told(), width), proto.metadata, tiled=True)
        if self._kind.orientation != 1:
            add_tags(file, {0x0112: Tag(3, 1, self._kind.orientation.to_bytes(2, "little"))})
        return digest.hexdigest(), proto.layout


def _tiles(bands: Iterator[Samples], width: int) -> Iterator[Samples]:
    """Bands of any heights as tiles of TILE pixels a side, row by row; those at the edges are filled up with zeros."""
    waiting: list[Samples] = []
    rows = 0
    for band in bands:
        waiting.append(band)
        rows += len(band)
        while rows >= TILE:
            joined = np.concatenate(waiting)
            yield from _cut(joined[:TILE], width)
            waiting, rows = [joined[TILE:]], rows - TILE
    if rows:
        yield from _cut(np.concatenate(waiting), width)


def _cut(row: Samples, width: int) -> Iterator[Samples]:
    for left in range(0, width, TILE):
        part = row[:, left : left + TILE]
        tile = np.zeros((TILE, TILE, *part.shape[2:]), part.dtype)
        tile[: part.shape[0], : part.shape[1]] = part
        yield tile
