"""TIFF files, read with tifffile segment by segment: what is broken of one costs only that part of the picture."""

from __future__ import annotations

import dataclasses
import io
import struct
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.imaging.metadata import INCH, Metadata, exif_of_tiff
from pipeline.imaging.original import COLOURS, Original, Samples, Space, turned
from pipeline.imaging.pillow import white_of

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""How TIFF and BigTIFF files begin."""
LARGEST_SEGMENT = 1 << 29
"""Bytes of a decoded tile or strip; a header that claims more is absurd."""
_JPEG = (6, 7, 34892, 33007)

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, SEPARATED, YCBCR, CIELAB, ICCLAB = 0, 1, 2, 3, 5, 6, 8, 9
"""Photometric interpretations."""
_SPACES: dict[int, Space] = {
    WHITE_IS_ZERO: "grey",
    BLACK_IS_ZERO: "grey",
    RGB: "rgb",
    YCBCR: "rgb",
    SEPARATED: "cmyk",
    CIELAB: "lab",
    ICCLAB: "lab",
}


class Kind(NamedTuple):
    """What a page's samples mean."""

    space: Space
    white: float
    bits: int
    alpha: bool
    premultiplied: bool
    orientation: int


class Unsupported(ValueError):
    """A page of a sort that is not read here."""


class TiffPages:
    """An opened TIFF file."""

    def __init__(self, file: Any) -> None:
        """Open `file`, a binary file object.

        Raises:
            Exception: whatever tifffile trips over.
        """
        import tifffile

        self._tiff = tifffile.TiffFile(file)
        try:
            self.page: Any = self._tiff.pages[0]
            self.count = len(self._tiff.pages)
        except BaseException:
            self._tiff.close()
            raise

    def __enter__(self) -> TiffPages:
        return self

    def __exit__(self, *_: object) -> None:
        self._tiff.close()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the first page, as it is stored."""
        return self.page.imagelength, self.page.imagewidth

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels as stored."""
        return *self.size, self.page.samplesperpixel

    def check(self) -> None:
        """Look at what the header claims.

        Raises:
            Unsupported: it is a volume, or absurd.
        """
        page = self.page
        if page.imagedepth != 1:
            raise Unsupported("it holds a volume, not a picture")
        tall, wide = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
        if page.dtype is None:
            raise Unsupported(f"samples of {page.bitspersample} bits (format {page.sampleformat}) are not supported")
        segment = tall * wide * page.samplesperpixel * page.dtype.itemsize
        if page.is_tiled and segment > LARGEST_SEGMENT:
            raise Unsupported(f"its header claims tiles of {wide} x {tall} pixels")

    def segments(self, top: int, bottom: int) -> Iterator[tuple[tuple[slice, slice, slice], Samples | None]]:
        """Tiles or strips that touch these rows: their place in [H, W, C], and their samples [h, w, c], if whole.

        They may reach beyond the picture.
        """
        page = self.page
        arguments = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader} if page.compression in _JPEG else {}
        tall, wide = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
        across = -(-page.imagewidth // wide)
        down = -(-page.imagelength // tall)
        planes = page.samplesperpixel if page.planarconfig == 2 else 1
        channels = page.samplesperpixel // planes
        handle = self._tiff.filehandle
        for plane in range(planes):
            for row in range(top // tall, min(down, -(-bottom // tall))):
                for column in range(across):
                    index = (plane * down + row) * across + column
                    place = (
                        slice(row * tall, (row + 1) * tall),
                        slice(column * wide, (column + 1) * wide),
                        slice(plane, plane + 1) if planes > 1 else slice(0, channels),
                    )
                    yield place, _segment(page, handle, index, arguments)

    def rows(self, top: int, bottom: int) -> tuple[Samples, npt.NDArray[np.bool_] | None]:
        """[n, W, C] of these rows as stored, and [n, W] where they are missing, None if nowhere."""
        height, width, channels = self.shape
        bottom = min(bottom, height)
        samples = np.zeros((bottom - top, width, channels), self.page.dtype)
        missing = np.zeros((bottom - top, width), np.bool_)
        for (down, across, channel), part in self.segments(top, bottom):
            first, last = max(top, down.start), min(bottom, down.stop)
            here = (slice(first - top, last - top), across)
            if part is None:
                missing[here] = True
                continue
            part = part[first - down.start : last - down.start]
            target = samples[*here, channel]
            whole = part[: target.shape[0], : target.shape[1]]
            target[: whole.shape[0], : whole.shape[1]] = whole
            missing[here][whole.shape[0] :] = True
        return samples, missing if missing.any() else None

    def kind(self) -> Kind:
        """What the samples mean.

        Raises:
            Unsupported: nothing that is known.
        """
        page = self.page
        space = "rgb" if page.photometric == PALETTE else _SPACES.get(int(page.photometric))
        if space is None:
            raise Unsupported(f"colours of the kind {page.photometric!r} are not supported")
        channels = 1 if page.photometric == PALETTE else COLOURS[space]
        if page.samplesperpixel < channels:
            raise Unsupported(f"{page.samplesperpixel} channels are too few for {space}")
        bits = page.bitspersample
        if (
            page.dtype.kind not in "buif"
            or (page.dtype.kind == "i" and space != "lab")
            or (page.dtype.kind == "u" and bits > 16)
        ):
            raise Unsupported(f"samples of the type {page.dtype} are not supported")
        extra = [int(kind) for kind in page.extrasamples]
        white = 1.0 if page.dtype.kind == "f" else float((1 << bits) - 1)
        return Kind(
            space=space,
            white=white,
            bits=bits,
            alpha=bool(extra) and extra[0] in (1, 2),
            premultiplied=bool(extra) and extra[0] == 1,
            orientation=self._orientation(),
        )

    def normalised(self, samples: Samples, kind: Kind) -> Samples:
        """Stored samples as an `Original` has them; palettes are opened up."""
        page = self.page
        if page.dtype.kind == "b":
            samples = samples.astype(np.uint8)
        if page.photometric == WHITE_IS_ZERO:
            samples = (samples.dtype.type(kind.white) - samples).astype(samples.dtype)
        elif page.photometric == PALETTE:
            colours = _palette(page)
            opened = colours[samples[..., 0].clip(0, len(colours) - 1)]
            samples = np.concatenate([opened, samples[..., 1:].astype(opened.dtype)], axis=2)
        elif kind.space == "lab":
            unsigned = samples.view(samples.dtype.str.replace("i", "u"))
            if page.photometric == CIELAB:
                unsigned = unsigned.copy()
                unsigned[..., 1:3] ^= unsigned.dtype.type(1 << (kind.bits - 1))
            samples = unsigned
        return samples

    def _orientation(self) -> int:
        value = self.page.tags.valueof(274, 1)
        return value if isinstance(value, int) and 1 <= value <= 8 else 1

    def metadata(self, notes: list[str]) -> Metadata:
        """What the first page tells beside its pixels."""
        tags = self.page.tags
        handle = self._tiff.filehandle

        def read(at: int, size: int) -> bytes:
            handle.seek(at)
            data: bytes = handle.read(size)
            return data

        try:
            exif = exif_of_tiff(read, self.page.offset, self._tiff.byteorder, self._tiff.is_bigtiff)
        except struct.error as error:
            notes.append(f"EXIF cannot be read and is left out ({error})")
            exif = None
        return Metadata(
            icc=_block(tags.valueof(34675)),
            exif=exif,
            iptc=_block(tags.valueof(33723), self._tiff.byteorder),
            xmp=_block(tags.valueof(700)),
            resolution=_resolution(tags),
        )


def _palette(page: Any) -> Samples:
    """[entries, 3], of 8 bits if they are all that its 16 hold."""
    colours = np.asarray(page.colormap).T
    if (colours % 257 == 0).all() or (colours % 256 == 0).all():
        return (colours >> 8).astype(np.uint8)
    return colours


def _segment(page: Any, handle: Any, index: int, arguments: dict[str, Any]) -> Samples | None:
    """A decoded tile or strip, [h, w, c]; None if it is not there or broken."""
    try:
        offset, size = page.dataoffsets[index], page.databytecounts[index]
        if not offset or not size:
            return None
        handle.seek(offset)
        data = handle.read(size)
        if len(data) < size and page.compression == 1:
            return _cut_short(page, data, index)
        decoded = page.decode(data, index, **arguments)[0]
        return None if decoded is None else decoded[0]
    except MemoryError:
        raise
    except Exception:  # each codec has its own
        return None


def _cut_short(page: Any, data: bytes, index: int) -> Samples | None:
    """The whole rows of an uncompressed strip that the file's end has cut."""
    if page.is_tiled or page.bitspersample % 8:
        return None
    channels = page.samplesperpixel if page.planarconfig == 1 else 1
    row = page.imagewidth * channels * page.dtype.itemsize
    whole = len(data) // row
    if not whole:
        return None
    samples = np.frombuffer(data[: whole * row], page.dtype.newbyteorder(page.parent.byteorder))
    return samples.reshape(whole, page.imagewidth, channels).astype(page.dtype)


def _block(value: Any, order: str = "<") -> bytes | None:
    if isinstance(value, str):
        value = value.encode()
    if isinstance(value, tuple):  # IPTC is often said to hold numbers of 32 bits
        try:
            value = np.asarray(value, order + "u4").tobytes()
        except (ValueError, OverflowError):
            return None
    return bytes(value) if isinstance(value, bytes | bytearray | np.ndarray) and len(value) else None


def _resolution(tags: Any) -> tuple[float, float] | None:
    unit = tags.valueof(296, 2)
    scale = {2: 1.0, 3: INCH}.get(int(unit) if isinstance(unit, int) else 0)
    found = []
    for tag in (282, 283):
        value = tags.valueof(tag)
        try:
            found.append(value[0] / value[1] * scale)
        except (TypeError, IndexError, ZeroDivisionError):
            return None
    return (found[0], found[1]) if min(found) > 0 and max(found) < 1e6 else None


def from_tiff(data: bytes, check: Callable[[tuple[int, int]], None]) -> Original:
    """The first page of a TIFF file.

    Args:
        data: the file.
        check: raises if height and width are too much.

    Raises:
        Unsupported: a page of a sort that is not read here.
        Exception: whatever tifffile trips over.
    """
    notes: list[str] = []
    with TiffPages(io.BytesIO(data)) as pages:
        check(pages.size)
        pages.check()
        kind = pages.kind()
        samples, missing = pages.rows(0, pages.size[0])
        if missing is not None and missing.all():
            raise ValueError("none of its strips or tiles can be decoded")
        samples = pages.normalised(samples, kind)
        if pages.page.photometric == PALETTE:
            bits = 8 * samples.dtype.itemsize
            kind = kind._replace(bits=bits, white=float((1 << bits) - 1))
            notes.append("its palette is opened up")
        if samples.dtype.kind == "f":
            kind = kind._replace(white=white_of(samples, notes))
        if pages.count > 1:
            notes.append(f"first of {pages.count} pages")
        metadata = pages.metadata(notes)
        if kind.orientation >= 5 and metadata.resolution:
            metadata = dataclasses.replace(metadata, resolution=metadata.resolution[::-1])
    return Original(
        samples=turned(samples, kind.orientation),
        space=kind.space,
        white=kind.white,
        bits=kind.bits,
        format="tiff",
        alpha=kind.alpha,
        premultiplied=kind.premultiplied,
        metadata=metadata,
        missing=None if missing is None else turned(missing, kind.orientation),
        broken="" if missing is None else f"the file is broken: {missing.mean():.0%} of the picture is missing",
        notes=tuple(notes),
    )
