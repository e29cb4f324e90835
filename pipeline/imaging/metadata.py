"""What a file tells of its picture beside the pixels: profile, EXIF, IPTC, XMP, resolution."""

from __future__ import annotations

import dataclasses
import re
import struct
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from PIL import Image
from PIL.ExifTags import IFD

from pipeline.imaging.boxes import JP2_EXIF, JP2_IPTC, JP2_XMP, jp2_boxes
from pipeline.imaging.tags import Tag, exif_block, order_of, read_directory, read_exif

EXIF_HEAD = b"Exif\0\0"
INCH = 2.54
"""Centimetres."""
METRE = 39.3701
"""Inches."""
ORIENTATION = 0x0112
_SIDES = {0xA002: 0xA003, 0xA003: 0xA002}
"""EXIF's width and height of the picture."""

_JP2_BLOCKS = {JP2_EXIF: "exif", JP2_IPTC: "iptc", JP2_XMP: "xmp"}

STRUCTURAL = frozenset(
    {
        *(0x00FE, 0x00FF, 0x0100, 0x0101, 0x0102, 0x0103, 0x0106, 0x0107, 0x0108, 0x0109, 0x010A, 0x0111, 0x0112),
        *(0x0115, 0x0116, 0x0117, 0x0118, 0x0119, 0x011A, 0x011B, 0x011C, 0x0120, 0x0121, 0x0122, 0x0123, 0x0124),
        *(0x0125, 0x0128, 0x0129, 0x013D, 0x0140, 0x0141, 0x0142, 0x0143, 0x0144, 0x0145, 0x014A, 0x014C),
        *(0x014E, 0x0150, 0x0152, 0x0153, 0x0154, 0x0155, 0x0156, 0x015B, 0x0200, 0x0201, 0x0202, 0x0203, 0x0205),
        *(0x0206, 0x0207, 0x0208, 0x0209, 0x0211, 0x0212, 0x0213, 0x0214, 0x02BC, 0x83BB, 0x8773),
    }
)
"""Tags of a TIFF file that say how its picture is stored, or that are blocks of their own; all others are its EXIF."""
GEOGRAPHIC = frozenset({0x830E, 0x8480, 0x8482, 0x85D8, 0x87AF, 0x87B0, 0x87B1})
"""Tags of GeoTIFF."""
_XMP_ORIENTATION = re.compile(rb"(tiff:Orientation(?:\s*=\s*['\"]|>))[1-8]")
RAW = "Raw profile type "
"""How ImageMagick names texts of PNG that hold blocks of metadata."""
XMP_TEXT = "XML:com.adobe.xmp"
SRGB = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
"""White and primaries, as PNG's cHRM orders them."""
IPTC_RESOURCE = 0x0404
"""Where Photoshop's resources of a JPEG file hold IPTC."""


@dataclasses.dataclass(frozen=True)
class Metadata:
    """Blocks as the file holds them; None where it has none."""

    icc: bytes | None = None
    """Colour profile."""
    exif: bytes | None = None
    """A TIFF structure, beginning with its byte order; its orientation is 1, for the picture is upright."""
    iptc: bytes | None = None
    """IIM records."""
    xmp: bytes | None = None
    """An RDF/XML packet."""
    resolution: tuple[float, float] | None = None
    """Pixels an inch, across and down."""
    texts: tuple[tuple[str, str], ...] = ()
    """Names and texts, as PNG has them; a comment is called `Comment`."""
    boxes: tuple[tuple[bytes, bytes], ...] = ()
    """Other boxes of JPEG 2000, such as that of GeoJP2, by their kind."""

    def made_upright(self) -> Metadata:
        """As of the picture turned as EXIF's orientation says."""
        resolution = self.resolution
        if resolution is not None and orientation_of(self.exif) >= 5:
            resolution = resolution[1], resolution[0]
        xmp = self.xmp
        if xmp is not None and orientation_of(self.exif) != 1:
            xmp = _XMP_ORIENTATION.sub(rb"\g<1>1", xmp)
        return dataclasses.replace(self, exif=upright(self.exif), xmp=xmp, resolution=resolution)

    def enlarged(self, size: tuple[int, int], times: tuple[float, float], notes: list[str]) -> Metadata:
        """As of the picture at another size (height and width), `times` as high and as wide.

        Where it lies on a map cannot stay, for that is told by pixels: `notes` say so.
        """
        exif, boxes, resolution = self.exif, self.boxes, self.resolution
        if exif is not None:
            exif = _with_sides(exif, size)
            found = read_exif(exif)
            if GEOGRAPHIC & found.keys():
                kept = {tag: value for tag, value in found.items() if tag not in GEOGRAPHIC}
                exif = exif_block(kept, order_of(exif))
                notes.append("its place on a map (GeoTIFF) is left out, for the picture is larger")
        if boxes:
            boxes = ()
            notes.append("further boxes of JPEG 2000 are left out, for the picture is larger")
        if resolution is not None:
            resolution = resolution[0] * times[1], resolution[1] * times[0]
        return dataclasses.replace(self, exif=exif, boxes=boxes, resolution=resolution)


def _with_sides(exif: bytes, size: tuple[int, int]) -> bytes:
    block = bytearray(exif)
    for tag, length in zip(_SIDES, reversed(size), strict=True):
        for entry in _entries(exif, tag):
            if length < 1 << 16 or entry.kind != 3:
                entry.write(block, length)
    return bytes(block)


def orientation_of(exif: bytes | None) -> int:
    """EXIF's orientation, 1 to 8; 1 if there is none, or none that can be read."""
    entries = _entries(exif, ORIENTATION)
    value = entries[0].value if entries else 1
    return value if 1 <= value <= 8 else 1


def upright(exif: bytes | None) -> bytes | None:
    """The block with its orientation set to 1, and nothing else in it moved; turned sides change their names."""
    orientation = orientation_of(exif)
    if exif is None or orientation == 1:
        return exif
    block = bytearray(exif)
    for entry in _entries(exif, ORIENTATION):
        entry.write(block, 1)
    if orientation >= 5:
        sides = {tag: entry for tag in _SIDES for entry in _entries(exif, tag)[:1]}
        for tag, entry in sides.items():
            other = sides.get(_SIDES[tag])
            if other is not None:
                entry.write(block, other.value)
    return bytes(block)


class _Entry(NamedTuple):
    """A whole number of an image file directory, in its place."""

    order: str
    kind: int
    offset: int
    value: int

    def write(self, block: bytearray, value: int) -> None:
        struct.pack_into(self.order + ("H" if self.kind == 3 else "I"), block, self.offset, value)


def _entries(exif: bytes | None, tag: int) -> list[_Entry]:
    """Those of a tag in the first directory and in EXIF's own; a broken block has none."""
    if exif is None or exif[:4] not in (b"II*\0", b"MM\0*"):
        return []
    order = order_of(exif)
    try:
        (first,) = struct.unpack_from(order + "I", exif, 4)
        inner = [entry.value for found, entry in _directory(exif, first, order) if found == IFD.Exif]
        return [
            entry for start in (first, *inner[:1]) for found, entry in _directory(exif, start, order) if found == tag
        ]
    except struct.error:
        return []


def _directory(exif: bytes, start: int, order: str) -> Iterator[tuple[int, _Entry]]:
    (count,) = struct.unpack_from(order + "H", exif, start)
    for place in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind, number = struct.unpack_from(order + "HHI", exif, place)
        if number == 1 and kind in (3, 4, 13):
            (value,) = struct.unpack_from(order + ("H" if kind == 3 else "I"), exif, place + 8)
            yield tag, _Entry(order, kind, place + 8, value)


def bare_exif(block: bytes | None) -> bytes | None:
    """Without the head that JPEG puts before it; None if that leaves nothing."""
    return (block or b"").removeprefix(EXIF_HEAD) or None


def metadata_of(image: Image.Image, data: bytes, notes: list[str]) -> Metadata:
    """What stands beside the pixels of an opened file of any format but TIFF.

    Some of it may follow the pixels: what Pillow has found is only complete when `image` is loaded. `data` is the file.
    """
    if image.format == "JPEG2000":
        return _jp2_metadata(data, image.info.get("dpi"))
    info, texts = image.info, dict(getattr(image, "text", {})) if image.format == "PNG" else {}
    raw = {
        name.removeprefix(RAW).lower(): _raw_profile(str(text)) for name, text in texts.items() if name.startswith(RAW)
    }
    exif = bare_exif(info.get("exif") or raw.get("exif") or raw.get("app1"))
    if exif is not None and exif[:4] not in (b"II*\0", b"MM\0*"):
        notes.append("EXIF cannot be read and is left out")
        exif = None
    xmp = info.get("xmp") or info.get("XML:com.adobe.xmp") or raw.get("xmp")
    if b"http://ns.adobe.com/xmp/extension/" in data and image.format in ("JPEG", "MPO"):
        notes.append("XMP beyond 64 kB (extended XMP) is left out")
    photoshop = info.get("photoshop")
    iptc = photoshop.get(IPTC_RESOURCE) if isinstance(photoshop, dict) else None
    icc = info.get("icc_profile")
    return Metadata(
        icc=icc or _profile_of_chunks(image, data, notes),
        exif=exif,
        iptc=iptc or raw.get("iptc") or raw.get("8bim") or None,
        xmp=(xmp.encode() if isinstance(xmp, str) else xmp) or None,
        resolution=_resolution_of(image) or _resolution_in(exif),
        texts=_texts(image, texts),
    )


def _resolution_of(image: Image.Image) -> tuple[float, float] | None:
    """What the file says; for JPEG not what Pillow assumes where it says nothing."""
    if image.format in ("JPEG", "MPO") and image.info.get("jfif_unit") not in (1, 2):
        return None
    return as_resolution(image.info.get("dpi"))


def _texts(image: Image.Image, texts: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    found = {name: str(text) for name, text in texts.items() if name != XMP_TEXT and not name.startswith(RAW)}
    comment = image.info.get("comment")
    if comment and image.format != "PNG":
        found["Comment"] = comment.decode("utf-8", "replace") if isinstance(comment, bytes) else str(comment)
    return tuple(found.items())


def _profile_of_chunks(image: Image.Image, data: bytes, notes: list[str]) -> bytes | None:
    """A profile that says what PNG's gamma and primaries say, where they are not those of sRGB."""
    if image.format == "AVIF":
        place = data.find(b"colrnclx", 0, 1 << 16)
        if place >= 0 and data[place + 10 : place + 12] in (b"\0\x10", b"\0\x12"):  # PQ, HLG
            notes.append("its transfer curve (HDR) is taken for that of sRGB")
        return None
    if image.format != "PNG" or "srgb" in image.info:
        return None
    if b"cICP" in data[: data.find(b"IDAT") if b"IDAT" in data else 0]:
        notes.append("its cICP chunk is left out, and its colours are taken for sRGB")
    gamma, primaries = image.info.get("gamma"), image.info.get("chromaticity")
    if not isinstance(gamma, float) or not 0.01 < gamma < 10:
        return None
    usual = not primaries or max(abs(a - b) for a, b in zip(primaries, SRGB, strict=False)) < 0.005
    if usual and abs(gamma - 0.45455) < 0.005:
        return None
    import imagecodecs

    try:
        if image.mode in ("1", "L", "LA", "I;16", "I"):
            profile = imagecodecs.cms_profile("gray", gamma=1 / gamma)
        else:
            white, *others = ((primaries or SRGB)[place : place + 2] for place in (0, 2, 4, 6))
            profile = imagecodecs.cms_profile(
                "rgb", whitepoint=list(white), primaries=[v for pair in others for v in pair], gamma=1 / gamma
            )
    except Exception as error:
        notes.append(f"its gamma and primaries cannot be used and are left out ({error})")
        return None
    notes.append("its gamma and primaries are kept as a profile")
    return bytes(profile)


def _resolution_in(exif: bytes | None) -> tuple[float, float] | None:
    """What EXIF says of it, where the format says nothing."""
    if exif is None:
        return None
    try:
        tags, order = read_exif(exif), order_of(exif)
        unit, *sides = (tags[code] for code in (0x0128, 0x011A, 0x011B))
        values = [struct.unpack(order + "II", side.values) for side in sides if isinstance(side, Tag)]
        scale = {2: 1.0, 3: INCH}[struct.unpack(order + "H", unit.values)[0]] if isinstance(unit, Tag) else 1.0
        return as_resolution([over / under * scale for over, under in values])
    except (KeyError, struct.error, ZeroDivisionError):
        return None


def _raw_profile(text: Any) -> bytes | None:
    """What ImageMagick writes into PNG files: a name, a length, and hexadecimal digits.

    A block of Photoshop's resources may be in it.
    """
    if not isinstance(text, str):
        return None
    try:
        data = bytes.fromhex("".join(text.strip().splitlines()[2:]))
    except ValueError:
        return None
    if data.startswith(b"8BIM"):
        return iptc_of_resources(data)
    return data


def iptc_of_resources(data: bytes) -> bytes | None:
    """IPTC among Photoshop's image resources, if it is there."""
    place = 0
    while data[place : place + 4] == b"8BIM" and place + 12 <= len(data):
        (kind,) = struct.unpack_from(">H", data, place + 4)
        name = data[place + 6] + 1
        start = place + 6 + name + name % 2
        if start + 4 > len(data):
            return None
        (size,) = struct.unpack_from(">I", data, start)
        if kind == IPTC_RESOURCE:
            return data[start + 4 : start + 4 + size] or None
        place = start + 4 + size + size % 2
    return None


def resources_of_iptc(iptc: bytes) -> bytes:
    """Photoshop's image resources with IPTC alone, as JPEG's APP13 holds them."""
    block = b"8BIM" + struct.pack(">HHI", IPTC_RESOURCE, 0, len(iptc)) + iptc
    return block + b"\0" * (len(iptc) % 2)


def _jp2_metadata(data: bytes, dpi: Any) -> Metadata:
    """What the boxes of a JP2 file tell, which Pillow passes over; `dpi` as Pillow gives it."""
    found: dict[str, bytes] = {}
    others: list[tuple[bytes, bytes]] = []
    for kind, body in jp2_boxes(data):
        if kind == b"uuid":
            name = _JP2_BLOCKS.get(body[:16])
            if name is not None:
                found.setdefault(name, body[16:])
            else:
                others.append((kind, body))
        elif kind in (b"xml ", b"uinf"):
            others.append((kind, body))
        elif kind == b"jp2h":
            for inner, data in jp2_boxes(body):
                if inner == b"colr" and data[:1] == b"\2":
                    found.setdefault("icc", data[3:])
    exif = bare_exif(found.get("exif"))
    return Metadata(
        icc=found.get("icc"),
        exif=exif if exif is not None and exif[:4] in (b"II*\0", b"MM\0*") else None,
        iptc=found.get("iptc"),
        xmp=found.get("xmp"),
        resolution=as_resolution(dpi),
        boxes=tuple(others),
    )


def as_resolution(dpi: Any) -> tuple[float, float] | None:
    """Two numbers as pixels an inch, if they can be that."""
    try:
        across, down = (float(value) for value in dpi)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return (across, down) if 0 < across < 1e6 and 0 < down < 1e6 else None


def exif_of_tiff(read: Callable[[int, int], bytes], start: int, order: str, big: bool) -> bytes | None:
    """The tags of a TIFF file's directory that tell of its picture, as an EXIF block; orientation is left out.

    Args:
        read: gives bytes of the file from a place on.
        start: where the directory is.
        order: of its bytes, `<` or `>`.
        big: whether it is a BigTIFF.

    Raises:
        struct.error: the directory is broken.
    """
    found = read_directory(read, start, order, big)
    kept = {tag: value for tag, value in found.items() if tag not in STRUCTURAL}
    return exif_block(kept, order) if kept else None
