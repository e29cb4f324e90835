"""Image files of all sorts, made with other libraries than those that read them where there is a choice."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from PIL import Image, ImageCms

SIZE = (40, 56)
"""Height and width of them all."""
EXIFTOOL = shutil.which("exiftool")
TAGS = {
    "EXIF": ("Artist", "Jane Doe", "DateTimeOriginal", "1931:05:04 03:02:01"),
    "IPTC": ("Caption-Abstract", "A harbour", "Keywords", "harbour"),
    "XMP": ("XMP-dc:Title", "Harbour", "XMP-dc:Rights", "CC0"),
}
"""Two tags of each kind, with what they say."""
NO_METADATA = {"bmp", "gif", "ppm", "pgm", "pbm", "pfm"}


def samples(channels: int, white: int = 255, seed: int = 0) -> np.ndarray:
    """Smooth blots with noise, [H, W] or [H, W, C] of 8 or 16 bits."""
    dice = np.random.default_rng(seed)
    small = dice.random((5, 6, channels))
    planes = [
        Image.fromarray(small[..., c].astype(np.float32)).resize(SIZE[::-1], Image.Resampling.BICUBIC)
        for c in range(channels)
    ]
    values = np.stack([np.asarray(plane) for plane in planes], -1) + dice.normal(0, 0.02, (*SIZE, channels))
    out = np.rint(values.clip(0, 1) * white).astype(np.uint8 if white < 256 else np.uint16)
    return out[..., 0] if channels == 1 else out


def pillow(mode: str, format: str, **options: Any) -> bytes:
    """A file written by Pillow."""
    channels = {"1": 1, "L": 1, "P": 3, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}[mode]
    values = samples(channels)
    image = Image.frombytes("CMYK", SIZE[::-1], values.tobytes()) if mode == "CMYK" else Image.fromarray(values)
    if mode in ("1", "P"):
        image = image.convert(mode) if mode == "1" else image.quantize(64)
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def tiff(values: np.ndarray, **options: Any) -> bytes:
    """A file written by tifffile."""
    file = io.BytesIO()
    byteorder = options.pop("byteorder", "<")
    bigtiff = options.pop("bigtiff", False)
    tifffile.imwrite(file, values, byteorder=byteorder, bigtiff=bigtiff, metadata=None, **options)
    return file.getvalue()


def pnm(values: np.ndarray, white: int) -> bytes:
    """A binary PGM or PPM file."""
    kind = b"P5" if values.ndim == 2 else b"P6"
    stored = values.astype(">u2" if white > 255 else "u1").tobytes()
    return kind + f"\n{values.shape[1]} {values.shape[0]}\n{white}\n".encode() + stored


def lab(white: int) -> np.ndarray:
    """Samples of a CIELab TIFF: a and b are signed."""
    out = samples(3, white)
    out[..., 1:] ^= out.dtype.type((white + 1) // 2)
    return out


def floats(channels: int) -> np.ndarray:
    """Samples in 0..1."""
    return samples(channels, 65535).astype(np.float32) / 65535


def jp2(values: np.ndarray) -> bytes:
    """A lossless JP2 file."""
    return bytes(imagecodecs.jpeg2k_encode(values, codecformat="jp2", reversible=True))


FILES: dict[str, Callable[[], bytes]] = {
    "jpeg grey": lambda: pillow("L", "JPEG", quality=92),
    "jpeg rgb": lambda: pillow("RGB", "JPEG", quality=92),
    "jpeg rgb, progressive": lambda: pillow("RGB", "JPEG", quality=92, progressive=True),
    "jpeg cmyk": lambda: pillow("CMYK", "JPEG", quality=92),
    "png grey 1": lambda: pillow("1", "PNG"),
    "png grey 8": lambda: pillow("L", "PNG"),
    "png grey+alpha 8": lambda: pillow("LA", "PNG"),
    "png grey 16": lambda: bytes(imagecodecs.png_encode(samples(1, 65535))),
    "png grey+alpha 16": lambda: bytes(imagecodecs.png_encode(samples(2, 65535))),
    "png palette": lambda: pillow("P", "PNG"),
    "png palette, transparent": lambda: pillow("P", "PNG", transparency=3),
    "png rgb 8": lambda: pillow("RGB", "PNG"),
    "png rgb+alpha 8": lambda: pillow("RGBA", "PNG"),
    "png rgb 16": lambda: bytes(imagecodecs.png_encode(samples(3, 65535))),
    "png rgb+alpha 16": lambda: bytes(imagecodecs.png_encode(samples(4, 65535))),
    "tiff grey 1": lambda: tiff(samples(1) > 127, photometric="minisblack"),
    "tiff grey 1, fax": lambda: pillow("1", "TIFF", compression="group4"),
    "tiff grey 8, white is 0": lambda: tiff(samples(1), photometric="miniswhite"),
    "tiff grey 16": lambda: tiff(samples(1, 65535), photometric="minisblack", compression="lzw", predictor=True),
    "tiff grey+alpha 16": lambda: tiff(
        samples(2, 65535), photometric="minisblack", extrasamples=["unassalpha"], planarconfig="contig"
    ),
    "tiff grey 32 float": lambda: tiff(floats(1), photometric="minisblack"),
    "tiff palette": lambda: pillow("P", "TIFF"),
    "tiff rgb 8": lambda: tiff(samples(3), photometric="rgb"),
    "tiff rgb 8, lzw": lambda: tiff(samples(3), photometric="rgb", compression="lzw"),
    "tiff rgb 8, tiles": lambda: tiff(samples(3), photometric="rgb", compression="deflate", tile=(16, 16)),
    "tiff rgb 8, planes": lambda: tiff(
        np.moveaxis(samples(3), 2, 0), photometric="rgb", planarconfig="separate", rowsperstrip=8
    ),
    "tiff rgb 8, jpeg": lambda: tiff(samples(3), photometric="rgb", compression="jpeg", tile=(16, 16)),
    "tiff rgb 8, big-endian": lambda: tiff(samples(3), photometric="rgb", byteorder=">", rowsperstrip=8),
    "tiff rgb 8, BigTIFF": lambda: tiff(
        samples(3), photometric="rgb", bigtiff=True, resolution=(300, 300), resolutionunit="inch"
    ),
    "tiff rgb 16": lambda: tiff(samples(3, 65535), photometric="rgb", compression="deflate", predictor=True),
    "tiff rgb 16, big-endian": lambda: tiff(samples(3, 65535), photometric="rgb", byteorder=">"),
    "tiff rgb+alpha 8": lambda: tiff(samples(4), photometric="rgb", extrasamples=["unassalpha"]),
    "tiff rgb+alpha 16": lambda: tiff(samples(4, 65535), photometric="rgb", extrasamples=["unassalpha"]),
    "tiff rgb+1 more 8": lambda: tiff(samples(4), photometric="rgb", extrasamples=["unspecified"]),
    "tiff rgb 32 float": lambda: tiff(floats(3), photometric="rgb", compression="deflate", predictor=3),
    "tiff cmyk 8": lambda: tiff(samples(4), photometric="separated"),
    "tiff cmyk 16": lambda: tiff(samples(4, 65535), photometric="separated", compression="lzw"),
    "tiff lab 8": lambda: tiff(lab(255), photometric="cielab"),
    "tiff lab 16": lambda: tiff(lab(65535), photometric="cielab"),
    "webp rgb, lossy": lambda: pillow("RGB", "WEBP", quality=90),
    "webp rgb, lossless": lambda: pillow("RGB", "WEBP", lossless=True),
    "webp rgb+alpha": lambda: pillow("RGBA", "WEBP", lossless=True, exact=True),
    "jpeg2000 grey 8": lambda: jp2(samples(1)),
    "jpeg2000 rgb 8": lambda: jp2(samples(3)),
    "jpeg2000 grey 16": lambda: jp2(samples(1, 65535)),
    "jpeg2000 rgb 16": lambda: jp2(samples(3, 65535)),
    "avif rgb 8": lambda: pillow("RGB", "AVIF", quality=90),
    "avif rgb 10": lambda: bytes(imagecodecs.avif_encode(samples(3, 1023), level=90, bitspersample=10)),
    "bmp rgb 8": lambda: pillow("RGB", "BMP"),
    "gif palette": lambda: pillow("P", "GIF"),
    "ppm rgb 8": lambda: pnm(samples(3), 255),
    "ppm rgb 16": lambda: pnm(samples(3, 65535), 65535),
    "pgm grey 12": lambda: pnm(samples(1, 4095), 4095),
}
"""By name: format, channels, and bits where it has several."""


def profile_for(name: str) -> bytes | None:
    """A colour profile that is not sRGB, for files that can have one; there is none for CMYK here."""
    if name.split()[0] in NO_METADATA or "lab" in name or "cmyk" in name:
        return None
    if "grey" in name:
        return bytes(imagecodecs.cms_profile("gray", gamma=1.8))
    wide = {"whitepoint": [0.3127, 0.329], "primaries": [0.64, 0.33, 0.21, 0.71, 0.15, 0.06], "gamma": 2.19921875}
    return bytes(imagecodecs.cms_profile("rgb", **wide))


def suffix(format: str) -> str:
    """What names of files of a format end in."""
    return {"jpeg": "jpg", "tiff": "tif", "jpeg2000": "jp2"}.get(format, format)


def write_all(folder: Path) -> dict[str, Path]:
    """All of FILES with metadata, which exiftool puts in where it can; by name."""
    paths = {}
    for name, make in FILES.items():
        paths[name] = folder / f"{name.replace(' ', '_').replace(',', '')}.{suffix(name.split()[0])}"
        paths[name].write_bytes(make())
    for kind in ("rgb", "grey"):
        named = [path for name, path in paths.items() if profile_for(name) == profile_for(f"png {kind}")]
        profile = folder / f"{kind}.icc"
        profile.write_bytes(profile_for(f"png {kind}") or b"")
        _exiftool(f"-ICC_Profile<={profile}", *map(str, named))
        profile.unlink()
    told = [path for name, path in paths.items() if name.split()[0] not in NO_METADATA]
    tags = [f"-{tags[place]}={tags[place + 1]}" for tags in TAGS.values() for place in (0, 2)]
    tags += ["-XResolution=300", "-YResolution=300", "-ResolutionUnit=inches"]
    _exiftool(*tags, *map(str, told))
    found = read_tags(folder)
    bare = [path for path in told if "EXIF:Artist" not in found.get(path.name, {}) and "BigTIFF" not in path.name]
    if bare:  # seen once in some hundred runs
        _exiftool(*tags, *map(str, bare))
    return paths


def _exiftool(*arguments: str) -> None:
    subprocess.run([EXIFTOOL or "exiftool", "-overwrite_original", "-q", "-m", *arguments], capture_output=True)


def read_tags(folder: Path) -> dict[str, dict[str, Any]]:
    """What exiftool finds in the files of a folder, by file name."""
    wanted = [f"-{tags[place]}" for tags in TAGS.values() for place in (0, 2)]
    more = ("-XResolution", "-YResolution", "-ICC_Profile:all", "-Warning", "-Error", "-Orientation", "-n")
    done = subprocess.run(
        [EXIFTOOL or "exiftool", "-j", "-G", "-a", *wanted, *more, str(folder)], capture_output=True, text=True
    )
    return {Path(found.pop("SourceFile")).name: found for found in json.loads(done.stdout or "[]")}


def srgb() -> bytes:
    """sRGB's own profile."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
