from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from PIL import Image, ImageCms

from pipeline.imaging.decode import decode_image
from pipeline.imaging.metadata import Metadata
from pipeline.imaging.original import COLOURS, Original, Space
from pipeline.imaging.working import eight_bits, from_working, to_working
from tests.conftest import encoded, noise
from tests.imaging.files import profile_for, samples, srgb

CMYK = Path("/usr/share/color/icc/ghostscript/default_cmyk.icc")
CASES: list[tuple[Space, int, bytes | None]] = [
    ("grey", 8, None),
    ("grey", 16, None),
    ("grey", 12, None),
    ("grey", 8, profile_for("png grey")),
    ("grey", 16, profile_for("png grey")),
    ("rgb", 8, None),
    ("rgb", 16, None),
    ("rgb", 32, None),
    ("rgb", 8, profile_for("png rgb")),
    ("rgb", 16, profile_for("png rgb")),
    ("cmyk", 8, None),
    ("cmyk", 16, None),
    ("cmyk", 8, CMYK.read_bytes() if CMYK.exists() else None),
    ("lab", 8, None),
    ("lab", 16, None),
]


def original(space: Space, bits: int, icc: bytes | None, seed: int = 0) -> Original:
    """A picture with alpha behind its colours."""
    white = (1 << min(bits, 16)) - 1
    values = samples(COLOURS[space] + 1, white, seed)
    if bits == 32:
        values = (values / np.float32(white)).astype(np.float32)
    return Original(values, space, 1.0 if bits == 32 else float(white), bits, "tiff", True, metadata=Metadata(icc=icc))


@pytest.mark.parametrize(("space", "bits", "icc"), CASES)
def test_what_is_not_changed_keeps_its_samples_to_the_last_bit(space: Space, bits: int, icc: bytes | None) -> None:
    picture = original(space, bits, icc)
    before = to_working(picture).pixels
    after = before.copy()
    after[10:20, 10:20] = np.iinfo(after.dtype).max // 3
    back = from_working(picture, before, after)
    untouched = np.ones(picture.size, bool)
    untouched[10:20, 10:20] = False
    assert np.array_equal(back.samples[untouched], picture.samples[untouched])
    assert np.array_equal(back.samples[..., -1], picture.samples[..., -1])
    assert back.samples.dtype == picture.samples.dtype and back.white == picture.white
    again = to_working(back).pixels[10:20, 10:20] / np.iinfo(after.dtype).max
    assert np.abs(again - 1 / 3).max() < (0.012 if space == "cmyk" and icc else 0.004)


@pytest.mark.parametrize(("space", "bits", "icc"), CASES)
def test_small_changes_arrive(space: Space, bits: int, icc: bytes | None) -> None:
    picture = original(space, bits, icc)
    before = to_working(picture).pixels
    white = np.iinfo(before.dtype).max
    inside = (before > 0.2 * white) & (before < 0.8 * white)
    inside = inside.all(2, keepdims=True)
    after = np.where(inside, before + np.rint(0.02 * white).astype(before.dtype), before)
    again = to_working(from_working(picture, before, after)).pixels
    change = (again.astype(float) - before)[inside[..., 0]] / white
    assert len(change) > 100
    assert abs(change.mean() - 0.02) < 0.003


def test_wide_colours_come_to_srgb_as_littlecms_has_it() -> None:
    icc = profile_for("png rgb")
    assert icc is not None
    picture = original("rgb", 8, icc)
    expected = ImageCms.profileToProfile(
        Image.fromarray(picture.colours),
        ImageCms.ImageCmsProfile(io.BytesIO(icc)),
        ImageCms.createProfile("sRGB"),
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    working = to_working(picture)
    assert any("by its profile" in note for note in working.notes)
    difference = eight_bits(working.pixels).astype(int) - np.asarray(expected)
    assert np.abs(difference).max() <= 1
    assert np.abs(eight_bits(working.pixels).astype(int) - picture.colours).max() > 10


def test_srgb_needs_no_conversion() -> None:
    picture = dataclasses.replace(original("rgb", 8, srgb()))
    working = to_working(picture)
    assert working.plain and not working.notes and np.array_equal(working.pixels, picture.colours)


def test_lab_is_what_its_numbers_say() -> None:
    lab = np.array([[[255, 128, 128], [0, 128, 128], [135, 208, 195]]], np.uint8)  # white, black, sRGB's red
    pixels = eight_bits(to_working(Original(lab, "lab", 255.0, 8, "tiff")).pixels)[0]
    assert np.abs(pixels.astype(int) - [[255] * 3, [0] * 3, [255, 0, 0]]).max() <= 6


def test_ink_of_cmyk_darkens() -> None:
    ink = np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 0, 0, 255]]], np.uint8)
    pixels = eight_bits(to_working(Original(ink, "cmyk", 255.0, 8, "tiff")).pixels)[0]
    assert pixels.tolist() == [[255] * 3, [0, 255, 255], [0] * 3]


@pytest.mark.parametrize("icc", [b"not a profile", bytes(500), bytes(imagecodecs.cms_profile("srgb"))[:200]])
def test_a_broken_profile_is_kept_and_not_used(icc: bytes) -> None:
    picture = decode_image(encoded(noise(8, 8), icc_profile=icc))
    working = to_working(picture)
    assert picture.metadata.icc == icc and np.array_equal(working.pixels, picture.colours)
    assert len(working.notes) == 1 and "not used" in working.notes[0]


def test_a_profile_for_other_colours_is_not_used() -> None:
    picture = original("rgb", 8, profile_for("png grey"))
    assert any("is for grey and not used" in note for note in to_working(picture).notes)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_grey_picture_that_is_given_colours_becomes_rgb(bits: int) -> None:
    picture = original("grey", bits, profile_for("png grey"))
    before = to_working(picture).pixels
    after = np.concatenate([before, before // 2, before // 3], axis=2)
    back = from_working(picture, before, after)
    assert (back.space, back.bits, back.metadata.icc) == ("rgb", bits, None)
    assert np.array_equal(back.samples[..., 3], picture.samples[..., 1])
    assert np.abs(to_working(back).pixels / back.white - after / np.iinfo(after.dtype).max).max() < 0.003


def test_colours_outside_srgb_are_kept_where_little_changes() -> None:
    """A green that sRGB has not: after a small change it is still far outside."""
    icc = profile_for("png rgb")
    green = np.tile(np.array([20, 240, 20], np.uint8), (8, 8, 1))
    picture = Original(green, "rgb", 255.0, 8, "tiff", metadata=Metadata(icc=icc))
    before = to_working(picture).pixels
    after = before.copy()
    after[..., 2] += np.uint16(655)
    back = from_working(picture, before, after)
    assert np.abs(back.samples.astype(int) - green).max() <= 12 and (back.samples != green).any()


def test_grey_lab_of_16_bits_is_grey() -> None:
    lab = np.full((4, 4, 3), 32768, np.uint16)
    lab[..., 0] = 20_000
    pixels = to_working(Original(lab, "lab", 65535.0, 16, "tiff")).pixels.astype(int)
    assert np.ptp(pixels, axis=2).max() < 30


def test_floats_keep_what_lies_beyond_white_and_what_means_nothing() -> None:
    values = np.full((4, 4, 1), 0.5, np.float32)
    values[0, 0], values[0, 1] = 1.05, -9999
    picture = Original(values, "grey", 1.0, 32, "tiff")
    before = to_working(picture).pixels
    after = before.copy()
    after[0] = np.maximum(after[0], 10) - 5
    back = from_working(picture, before, after).samples
    assert abs(back[0, 0, 0] - 1.05) < 0.001 and back[0, 1, 0] == -9999 and back[0, 2, 0] < 0.5
