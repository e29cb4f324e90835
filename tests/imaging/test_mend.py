from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import UnreadableImage
from pipeline.imaging.decode import decode_image
from pipeline.imaging.jpeg import is_sound
from tests.conftest import encoded, noise
from tests.imaging.files import srgb, tiff
from tests.imaging.hostile import corpus, sound

PICTURE = noise(240, 320)


def restarts(**options: object) -> bytes:
    """A JPEG with a restart marker after each row of blocks."""
    return encoded(PICTURE, "JPEG", quality=90, restart_marker_rows=1, **options)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("jpeg", encoded(PICTURE, "JPEG", quality=90)),
        ("jpeg with restarts", restarts()),
        ("png", encoded(PICTURE, "PNG")),
        ("bmp", encoded(PICTURE, "BMP")),
        ("tiff in strips", tiff(PICTURE, photometric="rgb", rowsperstrip=8, compression="lzw")),
        ("tiff in tiles", tiff(PICTURE, photometric="rgb", tile=(32, 32), compression="deflate")),
        ("uncompressed tiff", tiff(PICTURE, photometric="rgb", rowsperstrip=240)),
    ],
)
def test_of_a_file_cut_short_the_rest_is_known_to_be_missing(name: str, data: bytes, share: float) -> None:
    whole, cut = decode_image(data), decode_image(data[: int(len(data) * share)])
    assert cut.missing is not None and "missing" in cut.broken
    assert abs(cut.missing.mean() - (1 - share)) < 0.2
    there = ~cut.missing
    # colours of a JPEG's last blocks are smoothed into what is missing
    assert (cut.samples[there] == whole.samples[there]).all(1).mean() > (0.99 if "jpeg" in name else 0.9999)


def test_a_thumbnail_in_a_jpeg_is_not_its_end() -> None:
    exif = Image.Exif()
    exif[0x013B] = "someone"
    data = encoded(PICTURE, "JPEG", quality=90, exif=exif.tobytes() + encoded(noise(60, 80), "JPEG"))
    cut = decode_image(data[: int(len(data) * 0.6)])
    assert cut.missing is not None and 0.2 < cut.missing.mean() < 0.6
    first_scan = encoded(
        PICTURE, "JPEG", quality=90, progressive=True, exif=exif.tobytes() + encoded(noise(60, 80), "JPEG")
    )
    place = first_scan.rindex(b"\xff\xc2") + 400
    early = decode_image(first_scan[:place])
    assert early.missing is not None and early.missing.mean() > 0.3


def test_damage_in_a_cmyk_jpeg_is_found() -> None:
    data = sound()["jpeg-cmyk"]
    half = len(data) // 2
    assert decode_image(data[:half] + bytes(400) + data[half + 400 :]).broken
    assert not decode_image(data).broken


def test_a_bad_checksum_of_metadata_costs_only_that() -> None:
    data = encoded(PICTURE, "PNG", icc_profile=srgb())
    at = data.index(b"iCCP") + 40
    broken = decode_image(data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :])
    assert np.array_equal(broken.samples, PICTURE) and broken.missing is None
    assert "iCCP" in broken.broken and broken.metadata.icc is None


def test_a_bitmap_of_one_bit_cut_short_is_half_there() -> None:
    data = encoded(np.asarray(Image.fromarray(PICTURE).convert("1")), "BMP")
    cut = decode_image(data[: len(data) // 2])
    assert cut.missing is not None and abs(cut.missing.mean() - 0.5) < 0.05


def test_a_progressive_jpeg_cut_short_has_less_detail_everywhere() -> None:
    data = encoded(PICTURE, "JPEG", quality=90, progressive=True)
    cut = decode_image(data[: int(len(data) * 0.7)])
    assert cut.missing is None and "detail" in cut.broken
    assert np.abs(cut.samples.astype(int) - PICTURE).mean() < 12


def test_damage_between_restart_markers_is_found() -> None:
    data = restarts()
    damaged = bytearray(data)
    place = data.index(b"\xff\xd4") + 40
    damaged[place : place + 300] = b"\xaa" * 300
    assert is_sound(data) and not is_sound(bytes(damaged))
    whole, broken = decode_image(data), decode_image(bytes(damaged))
    assert broken.missing is not None and 0.02 < broken.missing.mean() < 0.4
    there = ~broken.missing
    assert (broken.samples[there] == whole.samples[there]).all()
    assert (broken.samples != whole.samples).any()


def test_lost_restart_markers_do_not_shift_what_follows() -> None:
    data = restarts()
    start, end = data.index(b"\xff\xd2") - 50, data.index(b"\xff\xd5") + 20
    broken = decode_image(data[:start] + bytes(end - start) + data[end:])
    whole = decode_image(data)
    assert broken.missing is not None and broken.missing.mean() < 0.6
    there = ~broken.missing
    assert (broken.samples[there] == whole.samples[there]).all()


def test_a_bad_checksum_in_a_png_ends_the_picture_there() -> None:
    data = encoded(PICTURE, "PNG")
    at = data.rindex(b"IDAT")  # Pillow writes several
    assert data.index(b"IDAT") != at
    damaged = data[: at + 100] + bytes([data[at + 100] ^ 255]) + data[at + 101 :]
    broken = decode_image(damaged)
    assert broken.missing is not None and not broken.missing[0].any() and broken.missing[-1].all()
    assert np.array_equal(broken.samples[~broken.missing], PICTURE[~broken.missing])


def test_the_mask_is_turned_with_the_picture() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(PICTURE, "PNG", exif=exif)
    broken = decode_image(data[: len(data) // 2])
    assert broken.missing is not None and broken.missing.shape == broken.size == (320, 240)
    assert broken.missing[:, 0].all() and not broken.missing[:, -1].any()


@pytest.mark.parametrize("format", ["WEBP", "GIF", "AVIF", "JPEG2000"])
def test_formats_of_one_piece_are_unreadable_when_cut(format: str) -> None:
    data = encoded(PICTURE, format)
    with pytest.raises(UnreadableImage):
        decode_image(data[: len(data) // 2])


def test_a_damaged_file_without_a_place_is_said_to_be_damaged() -> None:
    data = encoded(PICTURE, "JPEG", quality=90)
    half = len(data) // 2
    broken = decode_image(data[:half] + b"\xff\x00" * 300 + data[half + 600 :])
    assert "damaged" in broken.broken


@pytest.mark.slow
def test_hostile_files_are_read_in_part_or_refused_in_time_and_memory() -> None:
    """Each in one process: none may crash it, take 10 s, or 1 GB."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.imaging.hostile"], capture_output=True, text=True, timeout=300
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    names = [name for name, _ in corpus()]
    assert done.returncode == 0, done.stderr[-2000:]
    assert [row["name"] for row in found] == names and len(names) >= 300
    assert max(row["seconds"] for row in found) < 10
    assert max(row["peak_mb"] for row in found) < 1000
    told = {row["told"].partition(":")[0] for row in found}
    assert not [row for row in found if row["told"].startswith(("MissingImage", "UnsupportedColumn"))]
    assert {"read", "UnreadableImage", "ImageTooLarge"} <= told
    unclear = [row for row in found if "Unreadable" in row["told"] and len(row["told"]) < 40]
    assert not unclear


def test_every_sort_of_file_of_the_corpus_is_sound_to_begin_with() -> None:
    for name, data in sound().items():
        original = decode_image(data)
        assert not original.broken, name
