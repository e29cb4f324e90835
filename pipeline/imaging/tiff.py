"""TIFF files, read with tifffile segment by segment: what is broken of one costs only that part of the picture."""

from __future__ import annotations

import dataclasses
import io
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.imaging.metadata import INCH, Metadata, as_resolution, exif_of_tiff
from pipeline.imaging.original import COLOURS, Original, Samples, Space, broken_note, turned
from pipeline.imaging.pillow import white_of

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""How TIFF and BigTIFF files begin."""
COMPRESSIONS = frozenset(
    {1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946, 34712, 34892, 34925, 50000, 50001, 33003, 33004, 33005, 33007}
)
"""None, fax, LZW, JPEG, deflate, PackBits, LZMA, Zstandard, JPEG 2000, WebP."""
_HEADED = (6, 7, 34712, 34892, 50001, 33003, 33004, 33005, 33007)
"""Those whose tiles are image files with a header of their own."""
MOST_PAGES = 1000
"""That are counted."""
MOST_CHANNELS = 16
REMEMBERED = 192 << 20
"""Bytes of decoded tiles and strips."""
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
    extra: tuple[int, ...]
    orientation: int

    def original(self, samples: Samples, metadata: Metadata) -> Original:
        """Such samples, as `TiffPages.normalised` gives them, with what stands beside them."""
        return Original(
            samples=samples,
            space=self.space,
            white=self.white,
            bits=self.bits,
            format="tiff",
            alpha=self.alpha,
            premultiplied=self.premultiplied,
            extra=self.extra,
            metadata=metadata,
        )


class Unsupported(ValueError):
    """A page of a sort that is not read."""


class Unknown(ValueError):
    """A page of a sort that is not read here; libtiff may know it."""


class TiffPages:
    """An opened TIFF file."""

    def __init__(self, file: Any) -> None:
        """Open `file`, a binary file object.

        Raises:
            Exception: whatever tifffile trips over.
        """
        import tifffile

        self._tiff = tifffile.TiffFile(file)
        self._kept: OrderedDict[int, Samples | None] = OrderedDict()
        self._kept_bytes = 0
        self.notes: list[str] = []
        """What a person should know of which page is read."""
        try:
            self.page: Any = self._first_page()
        except BaseException:
            self._tiff.close()
            raise

    def _first_page(self) -> Any:
        """The first that is not a reduced copy of another."""
        pages: list[Any] = []
        for number in range(MOST_PAGES):
            try:
                pages.append(self._tiff.pages[number])
            except IndexError:
                break
        full = [page for page in pages if not page.subfiletype & 1]
        if not full:
            raise Unsupported("it holds reduced copies of a picture only; raw files are not read")
        if len(pages) > 1:
            self.notes.append(
                f"first of {len(pages)} pages" if len(pages) < MOST_PAGES else f"first of {MOST_PAGES} pages or more"
            )
        if 330 in full[0].tags:
            self.notes.append("pictures in sub-directories of the page are left out")
        return full[0]

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

    @property
    def _segment_size(self) -> tuple[int, int]:
        """Height and width of a tile or strip."""
        page = self.page
        return (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)

    def check(self) -> None:
        """Look at what the header claims.

        Raises:
            Unsupported: it is a volume, or absurd.
            Unknown: libtiff may read it.
        """
        page = self.page
        if page.samplesperpixel > MOST_CHANNELS:
            raise Unsupported(f"its header claims {page.samplesperpixel} channels")
        if page.compression not in COMPRESSIONS:
            raise Unsupported(f"compression {page.compression!r} is not supported")
        if page.photometric == YCBCR and page.compression not in _JPEG:
            raise Unknown("YCbCr without JPEG")
        if page.imagedepth != 1:
            raise Unsupported("it holds a volume, not a picture")
        tall, wide = self._segment_size
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
        tall, wide = self._segment_size
        across = -(-page.imagewidth // wide)
        down = -(-page.imagelength // tall)
        planes = page.samplesperpixel if page.planarconfig == 2 else 1
        channels = page.samplesperpixel // planes
        for plane in range(planes):
            for row in range(top // tall, min(down, -(-bottom // tall))):
                for column in range(across):
                    index = (plane * down + row) * across + column
                    place = (
                        slice(row * tall, (row + 1) * tall),
                        slice(column * wide, (column + 1) * wide),
                        slice(plane, plane + 1) if planes > 1 else slice(0, channels),
                    )
                    yield place, self._segment(index, place, arguments)

    def _segment(self, index: int, place: tuple[slice, slice, slice], arguments: dict[str, Any]) -> Samples | None:
        """A decoded tile or strip; those that were wanted last are remembered, since bands overlap."""
        if index in self._kept:
            self._kept.move_to_end(index)
            return self._kept[index]
        shape = tuple(part.stop - part.start for part in place)
        found = _segment(self.page, self._tiff.filehandle, index, (shape[0], shape[1], shape[2]), arguments)
        self._kept[index] = found
        self._kept_bytes += 0 if found is None else found.nbytes
        while self._kept_bytes > REMEMBERED and len(self._kept) > 1:
            _, old = self._kept.popitem(last=False)
            self._kept_bytes -= 0 if old is None else old.nbytes
        return found

    def rows(self, top: int, bottom: int) -> tuple[Samples, npt.NDArray[np.bool_] | None]:
        """[n, W, C] of these rows as stored, and [n, W] where they are missing, None if nowhere."""
        height, width, channels = self.shape
        bottom = min(bottom, height)
        if self.is_raw:
            return self._raw_rows(top, bottom)
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

    @property
    def is_raw(self) -> bool:
        """Whether the file holds rows one after the other as they are, so that single ones can be read."""
        page = self.page
        whole = page.bitspersample % 8 == 0 and page.fillorder == 1 and page.predictor == 1
        return bool(whole and page.compression == 1 and page.planarconfig == 1 and not page.is_tiled)

    def _raw_rows(self, top: int, bottom: int) -> tuple[Samples, npt.NDArray[np.bool_] | None]:
        page, handle = self.page, self._tiff.filehandle
        _, width, channels = self.shape
        stored = page.dtype.newbyteorder(self._tiff.byteorder)
        row, tall = width * channels * stored.itemsize, page.rowsperstrip
        samples = np.zeros((bottom - top, width, channels), page.dtype)
        missing = np.zeros((bottom - top, width), np.bool_)
        for strip in range(top // tall, -(-bottom // tall)):
            first, last = max(top, strip * tall), min(bottom, (strip + 1) * tall)
            here = slice(first - top, last - top)
            start = page.dataoffsets[strip] if strip < len(page.dataoffsets) else 0
            place = start + (first - strip * tall) * row
            data = b""
            if start > 0 and place < handle.size:
                handle.seek(place)
                data = handle.read(min((last - first) * row, handle.size - place))
            whole = len(data) // row
            found = np.frombuffer(data[: whole * row], stored).reshape(whole, width, channels)
            samples[here][:whole] = found
            missing[here][whole:] = True
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
        if page.photometric == ICCLAB and bits > 8:
            raise Unsupported("16-bit ICC Lab is not supported; convert it to CIE Lab")
        extra = [int(kind) for kind in page.extrasamples]
        white = 1.0 if page.dtype.kind == "f" else float((1 << bits) - 1)
        return Kind(
            space=space,
            white=white,
            bits=bits,
            alpha=bool(extra) and extra[0] in (1, 2),
            premultiplied=bool(extra) and extra[0] == 1,
            extra=tuple(extra),
            orientation=self.orientation,
        )

    def normalised(self, samples: Samples, kind: Kind) -> Samples:
        """Stored samples as an `Original` has them; palettes are opened up."""
        page = self.page
        if page.dtype.kind == "b":
            samples = samples.astype(np.uint8)
        if page.photometric == WHITE_IS_ZERO:
            samples = samples.copy()
            samples[..., 0] = samples.dtype.type(kind.white) - samples[..., 0]
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

    @property
    def orientation(self) -> int:
        """As EXIF has it."""
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


def _segment(
    page: Any, handle: Any, index: int, shape: tuple[int, int, int], arguments: dict[str, Any]
) -> Samples | None:
    """A decoded tile or strip, [h, w, c] of about this shape; None if it is not there or broken.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        offset, size = page.dataoffsets[index], page.databytecounts[index]
    except IndexError:
        return None
    if not offset and not size:  # a sparse file: nothing was ever written there
        return np.zeros(shape, page.dtype)
    if not size or not 0 < offset < handle.size:
        return None
    handle.seek(offset)
    data = handle.read(min(size, handle.size - offset))
    try:
        if page.compression in _HEADED and _claimed(data) > 2 * shape[0] * shape[1] + 65536:
            return None
        decoded = page.decode(data, index, **arguments)[0]
        return None if decoded is None else decoded[0]
    except MemoryError:
        raise
    except Exception:  # each codec has its own
        return None


def _claimed(data: bytes) -> int:
    """How many pixels a compressed tile says that it has: its own header may claim what the page does not."""
    with Image.open(io.BytesIO(data), formats=["JPEG", "JPEG2000", "WEBP"]) as image:
        return image.width * image.height


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
    try:
        return as_resolution([over / under * scale for over, under in (tags.valueof(tag) for tag in (282, 283))])
    except (TypeError, ValueError, ZeroDivisionError):
        return None


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
        notes += pages.notes
        metadata = pages.metadata(notes)
        if kind.orientation >= 5 and metadata.resolution:
            metadata = dataclasses.replace(metadata, resolution=metadata.resolution[::-1])
    return dataclasses.replace(
        kind.original(turned(samples, kind.orientation), metadata),
        missing=None if missing is None else turned(missing, kind.orientation),
        broken="" if missing is None else broken_note(float(missing.mean())),
        notes=tuple(notes),
    )


def metadata_in(data: bytes) -> tuple[Metadata, int, list[str]]:
    """What a file tells beside its pixels, its orientation, and notes."""
    notes: list[str] = []
    with TiffPages(io.BytesIO(data)) as pages:
        metadata = pages.metadata(notes)
        return metadata, pages.orientation, [*pages.notes, *notes]
