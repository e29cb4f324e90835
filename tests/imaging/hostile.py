"""Hostile files: cut short, altered, absurd, or something else altogether. The same ones every time.

`python -m tests.imaging.hostile` reads them all and tells how that went, one line of JSON a file.
"""

from __future__ import annotations

import io
import json
import struct
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from PIL import Image

from tests.conftest import encoded, noise
from tests.imaging.files import jp2, pnm, tiff

FLIPS = 8
"""Files with altered bytes, of each sound one."""
HEIGHT, WIDTH = 120, 160


def sound() -> dict[str, bytes]:
    """Files of every sort, of some size."""
    picture = noise(HEIGHT, WIDTH)
    grey = picture[..., 0]
    deep = picture.astype(np.uint16) * 257
    cmyk = io.BytesIO()
    Image.frombytes("CMYK", (WIDTH, HEIGHT), np.dstack([picture, grey]).tobytes()).save(cmyk, "JPEG")
    strips = {"photometric": "rgb", "rowsperstrip": 16}
    exif = Image.Exif()
    exif[0x0112], exif[0x013B] = 6, "someone"
    return {
        "jpeg": encoded(picture, "JPEG", quality=90, exif=exif),
        "jpeg-progressive": encoded(picture, "JPEG", quality=90, progressive=True),
        "jpeg-restarts": encoded(picture, "JPEG", quality=90, restart_marker_rows=1),
        "jpeg-grey": encoded(grey, "JPEG", quality=90),
        "jpeg-cmyk": cmyk.getvalue(),
        "png": encoded(picture, "PNG", exif=exif),
        "png-palette": encoded(picture, "GIF"),
        "png16": bytes(imagecodecs.png_encode(deep)),
        "tiff": tiff(picture, **strips),
        "tiff-lzw": tiff(picture, compression="lzw", predictor=True, **strips),
        "tiff-tiles": tiff(deep, photometric="rgb", compression="deflate", tile=(32, 32)),
        "tiff-jpeg": tiff(picture, photometric="rgb", compression="jpeg", tile=(32, 32)),
        "tiff-float": tiff(picture.astype(np.float32) / 255, **strips),
        "webp": encoded(picture, "WEBP", lossless=True),
        "webp-lossy": encoded(picture, "WEBP", quality=80),
        "gif": encoded(grey, "GIF"),
        "bmp": encoded(picture, "BMP"),
        "ppm": pnm(picture, 255),
        "ppm16": pnm(deep, 65535),
        "jpeg2000": jp2(picture),
        "jpeg2000-16": jp2(deep),
        "avif": encoded(picture, "AVIF", quality=80),
    }


def corpus() -> Iterator[tuple[str, bytes]]:
    """All hostile files by name."""
    dice = np.random.default_rng(1)
    for name, data in sound().items():
        for percent in range(5, 100, 5):
            yield f"{name}, {percent} % of it", data[: len(data) * percent // 100]
        for number in range(FLIPS):
            altered = bytearray(data)
            for place in dice.integers(0, len(data), 1 + 4 * number):
                altered[place] ^= 1 << dice.integers(8)
            yield f"{name}, {1 + 4 * number} bits flipped, {number}", bytes(altered)
        hole = len(data) // 3
        yield f"{name}, zeros in the middle", data[:hole] + bytes(hole // 2) + data[hole + hole // 2 :]
        yield f"{name}, a part twice", data[:hole] + data[hole // 2 :]
        yield f"{name}, with rubbish behind", data + bytes(dice.integers(0, 256, 5000, dtype=np.uint8))
    yield from absurd()
    yield from others()


def absurd() -> Iterator[tuple[str, bytes]]:
    """Headers that claim too much or too little, bombs, and metadata without end."""
    good = sound()
    for width, height in ((0, 0), (0, 100), (60_000, 60_000), (2**31 - 1, 2**31 - 1), (2**32 - 1, 1), (9_000, 9_000)):
        yield f"png of {width} x {height}", png(width, height)
        yield f"tiff of {width} x {height}", _tiff_claiming(good["tiff"], width, height)
    for width, height in ((0, 0), (65_535, 65_535), (65_500, 1), (9_000, 9_000)):
        yield f"jpeg of {width} x {height}", _jpeg_claiming(good["jpeg"], width, height)
        yield f"gif of {width} x {height}", good["gif"][:6] + struct.pack("<HH", width, height) + good["gif"][10:]
    for width in (0, -1, 2**31 - 1, -(2**31)):
        yield f"bmp {width} wide", good["bmp"][:18] + struct.pack("<i", width) + good["bmp"][22:]
    for white in (b"0", b"65536", b"99999999999", b"-1"):
        yield f"ppm with white {white!r}", b"P6\n10 10\n" + white + b"\n" + bytes(600)
    yield "ppm of 10^9 x 10^9", b"P6\n1000000000 1000000000\n255\n" + bytes(1000)
    yield "ppm in text without end", b"P3\n4000 4000\n255\n" + b"1 " * 100_000
    yield (
        "text chunk that unpacks to 200 MB",
        png(10, 10, (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(200_000_000)))),
    )
    yield "profile that unpacks to 200 MB", png(10, 10, (b"iCCP", b"icc\0\0" + zlib.compress(bytes(200_000_000))))
    yield "profile of rubbish", encoded(noise(20, 20), "PNG", icc_profile=b"\xff" * 10_000)
    profile = bytes(imagecodecs.cms_profile("srgb"))
    for length in (100, 128, 200, 400):
        yield f"profile cut at {length}", encoded(noise(20, 20), "JPEG", icc_profile=profile[:length])
    yield "exif that leads to itself", encoded(noise(20, 20), "JPEG", exif=b"Exif\0\0" + looping_exif())
    yield "exif of 4000 tags", encoded(noise(20, 20), "JPEG", exif=b"Exif\0\0" + long_exif(4000))
    yield "exif that claims 65535 tags", encoded(noise(20, 20), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff")
    yield "xmp 5000 deep", encoded(noise(20, 20), "PNG", xmp=b"<a>" * 5000 + b"</a>" * 5000)
    bomb = b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">' + b"".join(
        b'<!ENTITY %c "%s">' % (98 + n, b"&%c;" % (97 + n) * 10) for n in range(9)
    )
    yield "xmp with a billion laughs", encoded(noise(20, 20), "JPEG", xmp=bomb + b"]><x>&j;</x>")
    for tag, value in (
        (258, 7),
        (259, 12345),
        (262, 77),
        (277, 0),
        (277, 60_000),
        (278, 0),
        (284, 9),
        (317, 99),
        (339, 9),
    ):
        yield f"tiff with {value} as tag {tag}", _tiff_with(good["tiff"], tag, value)
    for tag, value in ((322, 0), (322, 2**31), (323, 2**31), (322, 17)):
        yield f"tiled tiff with {value} as tag {tag}", _tiff_with(good["tiff-tiles"], tag, value)
    yield from mismatched(good)
    yield "tiff whose pages lead to each other", _tiff_loop(good["tiff"])
    yield "tiff of 3000 pages", _many_pages(3000)
    yield "tiff of one pixel", tiff(np.zeros((1, 1), np.uint8), photometric="minisblack")
    yield "floats that are no numbers", tiff(np.full((20, 20), np.nan, np.float32), photometric="minisblack")
    yield "floats beyond all measure", tiff(np.full((20, 20), 1e38, np.float32), photometric="minisblack")
    half = np.full((20, 20), 0.5, np.float32)
    half[:9], half[3, 3] = np.nan, np.inf
    yield "floats of which some are no numbers", tiff(half, photometric="minisblack")
    yield "whole numbers of 32 bits", tiff(np.arange(400, dtype=np.uint32).reshape(20, 20) * 10**7)
    yield "complex numbers", tiff(np.ones((20, 20), np.complex64))
    yield "a volume", tiff(np.ones((5, 20, 20), np.uint8), volumetric=True, photometric="minisblack")
    yield "gif of 2000 frames", _many_frames()


def mismatched(good: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """Files of which one part claims what another does not, and what costs time for nothing."""
    exif = Image.Exif()
    exif[0x013B] = "someone"
    thumbnail = encoded(noise(60, 80), "JPEG")
    block = exif.tobytes() + thumbnail
    for progressive in (False, True):
        whole = encoded(noise(HEIGHT, WIDTH), "JPEG", quality=90, progressive=progressive, exif=block)
        for percent in (40, 80):
            yield (
                f"jpeg with a thumbnail, progressive {progressive}, {percent} % of it",
                whole[: len(whole) * percent // 100],
            )
    plain = good["jpeg-progressive"]
    scan = plain.rindex(b"\xff\xda")
    yield "jpeg of 5000 scans", plain[:-2] + plain[scan:-2] * 5000 + plain[-2:]
    restarts = encoded(noise(2000, 2000), "JPEG", quality=20, restart_marker_blocks=1, icc_profile=bytes(60_000) * 8)
    yield (
        "jpeg of 15,000 intervals, with a large profile and damage",
        restarts[:-40_000] + bytes(20_000) + restarts[-20_000:],
    )
    stream = jp2(np.zeros((2000, 2000, 3), np.uint16))
    small = jp2(np.zeros((10, 10, 3), np.uint16))
    yield (
        "jp2 that holds another picture than it says",
        small[: small.index(b"\xff\x4f")] + stream[stream.index(b"\xff\x4f") :],
    )
    for head in (b"P6\n10000 9999\n255\n", b"P5\n10000 9999\n65535\n"):
        yield f"pnm {head!r} and no more", head + bytes(1000)
    header = struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 54, 0, 0, 54, 40, 10_000, 9_999, 1, 24, 0, 0, 0, 0, 0, 0)
    yield "bmp of 100 MP and no more", header
    black = tiff(np.zeros((9000, 11_000), np.uint8), photometric="minisblack", compression="deflate", rowsperstrip=9000)
    yield "tiff of 99 MP in one strip", black
    inner = encoded(np.zeros((9000, 9000, 3), np.uint8), "JPEG", quality=20)
    yield "tiff with a tile that is a larger jpeg", tiff_of_tile(inner)
    entries = b"".join(struct.pack("<HHII", 0xC000 + number, 7, 60_000, 8) for number in range(2000))
    yield (
        "exif whose tags lie over each other",
        encoded(
            noise(20, 20), "PNG", exif=b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2000) + entries + bytes(60_000)
        ),
    )


def tiff_of_tile(data: bytes) -> bytes:
    """A TIFF of 16 x 16 pixels whose only tile is this JPEG file."""
    tags = [
        (256, 16),
        (257, 16),
        (258, 8),
        (259, 7),
        (262, 6),
        (277, 3),
        (322, 16),
        (323, 16),
        (324, 200),
        (325, len(data)),
    ]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return (b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4)).ljust(200, b"\0") + data


def others() -> Iterator[tuple[str, bytes]]:
    """What is no image, or looks like another."""
    good = sound()
    dice = np.random.default_rng(2)
    yield "one byte", b"\0"
    for length in (2, 16, 1000, 100_000):
        yield f"{length} zeros", bytes(length)
        yield f"{length} random bytes", bytes(dice.integers(0, 256, length, dtype=np.uint8))
    for name, head in (("png", 8), ("jpeg", 3), ("tiff", 4), ("gif", 6), ("bmp", 2), ("webp", 12), ("jpeg2000", 12)):
        yield f"the head of {name} and no more", good[name][:head]
        yield (
            f"the head of {name} before random bytes",
            good[name][:head] + bytes(dice.integers(0, 256, 3000, dtype=np.uint8)),
        )
    yield "the head of png before a jpeg", good["png"][:8] + good["jpeg"]
    yield "the head of jpeg before a png", good["jpeg"][:3] + good["png"]
    yield "html", b"<!DOCTYPE html><html><body>404 Not Found</body></html>"
    yield "json", b'{"error": "throttled"}'
    yield (
        "svg",
        b'<svg xmlns="http://www.w3.org/2000/svg" width="10" height="10"><image href="file:///etc/passwd"/></svg>',
    )
    yield "postscript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n(%pipe%id) (r) file\n"
    yield "pdf", b"%PDF-1.7\n1 0 obj << /Type /Catalog >> endobj\ntrailer << /Root 1 0 R >>\n%%EOF"
    yield "zip", b"PK\x03\x04" + bytes(100)
    yield "gzip of a bomb", zlib.compress(bytes(10_000_000), wbits=31)
    yield "an elf", b"\x7fELF\x02\x01\x01" + bytes(200)
    yield "a png in base64", b"data:image/png;base64,iVBORw0KGgo="
    for name in ("psd", "icns", "fli", "dcx", "wmf", "fits"):
        heads = {
            "psd": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 56, 10**6, 10**6, 32, 3),
            "icns": b"icns" + struct.pack(">I", 2**31) + b"ic10" + struct.pack(">I", 2**31),
            "fli": struct.pack("<IHHHHH", 10**9, 0xAF12, 65_535, 65_535, 65_535, 8) + bytes(120),
            "dcx": struct.pack("<I", 987654321) + struct.pack("<1024I", *range(1024)),
            "wmf": b"\xd7\xcd\xc6\x9a" + bytes(60),
            "fits": b"SIMPLE  =                    T".ljust(80) + b"NAXIS   =                    2".ljust(80) * 40,
        }
        yield f"an absurd {name}", heads[name]


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of little data that claims so many pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    middle = b"".join(chunk(*part) for part in chunks)
    pixels = zlib.compress(bytes(1_000_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + middle + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def looping_exif() -> bytes:
    """Directories that lead to each other for ever."""
    entry = struct.pack("<HHII", 0x8769, 4, 1, 8)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", 1) + entry + struct.pack("<I", 8)


def long_exif(count: int) -> bytes:
    """So many tags of one letter each."""
    entries = b"".join(struct.pack("<HHI4s", 0xC000 + number, 2, 2, b"a\0\0\0") for number in range(count))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", count) + entries + bytes(4)


def _jpeg_claiming(data: bytes, width: int, height: int) -> bytes:
    place = data.index(b"\xff\xc0")
    return data[: place + 5] + struct.pack(">HH", height, width) + data[place + 9 :]


def _tiff_with(data: bytes, tag: int, value: int) -> bytes:
    """With another value in a tag of the first directory."""
    out = bytearray(data)
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    for place in range(start + 2, start + 2 + 12 * count, 12):
        if struct.unpack_from("<H", data, place)[0] == tag:
            struct.pack_into("<HII", out, place + 2, 4, 1, value & 0xFFFFFFFF)
    return bytes(out)


def _tiff_claiming(data: bytes, width: int, height: int) -> bytes:
    return _tiff_with(_tiff_with(data, 256, width), 257, height)


def _tiff_loop(data: bytes) -> bytes:
    out = bytearray(data)
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    struct.pack_into("<I", out, start + 2 + 12 * count, start)
    return bytes(out)


def _many_pages(count: int) -> bytes:
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for _ in range(count):
            writer.write(np.zeros((4, 4), np.uint8), photometric="minisblack", metadata=None)
    return file.getvalue()


def _many_frames() -> bytes:
    frames = [Image.new("L", (8, 8), number % 256) for number in range(2000)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    return file.getvalue()


def main() -> None:
    """Read all files as a run does, and tell of each how long it took and what became of it."""
    from pipeline.errors import RowError
    from pipeline.imaging.decode import decode_image
    from pipeline.imaging.encode import encode_image
    from pipeline.imaging.working import from_working, to_working

    for name, data in corpus():
        started, told = time.perf_counter(), "read"
        try:
            original = decode_image(data, max_megapixels=100, max_mb=500)
            told = original.broken or "read"
            if original.samples.size < 10_000_000:
                pixels = to_working(original).pixels
                encode_image(from_working(original, pixels, pixels // 2))
        except RowError as error:
            told = f"{type(error).__name__}: {error.message}"
        seconds = time.perf_counter() - started
        sys.stdout.write(json.dumps({"name": name, "told": told, "seconds": seconds, "peak_mb": _peak()}) + "\n")
        sys.stdout.flush()


def _peak() -> float:
    """MB of memory at most so far; `getrusage` would count what the parent had when it started this process."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


if __name__ == "__main__":
    main()
