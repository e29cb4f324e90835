from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import ImageTooLarge, MissingImage, UnreadableImage
from pipeline.imaging.decode import decode_image, rgb
from pipeline.imaging.encode import encode_preview
from tests.conftest import encoded, noise
from tests.imaging import files
from tests.imaging.files import samples, tiff
from tests.imaging.hostile import png


@pytest.mark.parametrize(
    ("mode", "layout"),
    [
        ("L", "grey, 8 bits"),
        ("LA", "grey+alpha, 8 bits"),
        ("RGB", "rgb, 8 bits"),
        ("RGBA", "rgb+alpha, 8 bits"),
        ("P", "rgb, 8 bits"),
        ("1", "grey, 1 bit"),
        ("CMYK", "cmyk, 8 bits"),
    ],
)
def test_every_mode_keeps_its_layout(mode: str, layout: str) -> None:
    file = io.BytesIO()
    Image.fromarray(noise(20, 30)).convert(mode).save(file, "TIFF" if mode == "CMYK" else "PNG")
    original = decode_image(file.getvalue())
    assert original.layout == layout and original.size == (20, 30)


@pytest.mark.parametrize(
    ("name", "channels", "white"),
    [
        ("png rgb 16", 3, 65535),
        ("png grey+alpha 16", 2, 65535),
        ("tiff rgb 16, big-endian", 3, 65535),
        ("tiff cmyk 16", 4, 65535),
        ("tiff rgb 8, planes", 3, 255),
        ("tiff rgb 8, tiles", 3, 255),
        ("jpeg2000 rgb 16", 3, 65535),
        ("ppm rgb 16", 3, 65535),
        ("pgm grey 12", 1, 4095),
    ],
)
def test_samples_are_those_that_were_written(name: str, channels: int, white: int) -> None:
    original = decode_image(files.FILES[name]())
    assert original.white == white
    assert np.array_equal(original.samples, samples(channels, white).reshape(*files.SIZE, channels))


def test_white_is_zero_means_the_same_picture() -> None:
    assert np.array_equal(decode_image(files.FILES["tiff grey 8, white is 0"]()).samples[..., 0], 255 - samples(1))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_orientation_is_applied_once(format: str, orientation: int) -> None:
    picture = noise(24, 40)
    exif = Image.Exif()
    exif[0x0112], exif[0x013B] = orientation, "someone"
    if format == "TIFF":
        data = tiff(picture, photometric="rgb", extratags=[(0x0112, 3, 1, orientation, True)])
    else:
        options = {"lossless": True} if format == "WEBP" else {}
        data = encoded(picture, format, exif=exif, **options)
    original = decode_image(data)
    expected = np.asarray(Image.fromarray(picture).transpose(_TURNS[orientation]) if orientation > 1 else picture)
    assert original.samples.shape == expected.shape
    if format != "JPEG":
        assert np.array_equal(original.samples, expected)
    if format != "TIFF":
        block = original.metadata.exif or b""
        assert Image.open(io.BytesIO(data)).getexif()[0x0112] == orientation
        read = Image.Exif()
        read.load(b"Exif\0\0" + block)
        assert read[0x0112] == 1 and read[0x013B] == "someone"


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def test_turned_sides_change_their_names_in_exif_and_resolution() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(0x8769).update({0xA002: 40, 0xA003: 24})
    metadata = decode_image(encoded(noise(24, 40), "JPEG", exif=exif, dpi=(300, 150))).metadata
    read = Image.Exif()
    read.load(b"Exif\0\0" + (metadata.exif or b""))
    inner = read.get_ifd(0x8769)
    assert (inner[0xA002], inner[0xA003]) == (24, 40)
    assert metadata.resolution == (150, 300)


def test_floats_say_what_they_take_for_white() -> None:
    ones = decode_image(tiff(files.floats(1), photometric="minisblack"))
    many = decode_image(tiff(files.floats(1) * 255, photometric="minisblack"))
    assert (ones.white, many.white) == (1.0, 255.0)
    assert any("0 to 255" in note for note in many.notes) and not ones.notes
    assert np.abs(rgb(ones).astype(int) - rgb(many)).max() <= 1
    with pytest.raises(UnreadableImage, match="scale them"):
        decode_image(tiff(files.floats(1) * 1e9, photometric="minisblack"))


def test_samples_that_are_no_numbers_are_missing() -> None:
    values = files.floats(3)
    values[5:9, 10:20, 1] = np.nan
    original = decode_image(tiff(values, photometric="rgb"))
    assert original.missing is not None
    assert original.missing.sum() == 40 and original.missing[5:9, 10:20].all()
    assert "no numbers" in original.broken


def test_a_transparent_colour_becomes_alpha() -> None:
    file = io.BytesIO()
    Image.fromarray(np.array([[[1, 2, 3], [9, 9, 9]]], np.uint8)).save(file, "PNG", transparency=(9, 9, 9))
    original = decode_image(file.getvalue())
    assert original.alpha and original.samples[0].tolist() == [[1, 2, 3, 255], [9, 9, 9, 0]]


def test_a_palette_of_greys_is_grey() -> None:
    image = Image.fromarray(samples(1)).convert("P", palette=Image.Palette.ADAPTIVE)
    file = io.BytesIO()
    image.save(file, "PNG")
    assert decode_image(file.getvalue()).space == "grey"


def test_further_frames_and_pages_are_noted() -> None:
    frames = [Image.fromarray(noise(8, 8, seed)) for seed in range(3)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    assert "first of 3 frames" in decode_image(file.getvalue()).notes
    file = io.BytesIO()
    frames[0].save(file, "TIFF", save_all=True, append_images=frames[1:])
    assert "first of 3 pages" in decode_image(file.getvalue()).notes


@pytest.mark.parametrize("data", [None, b""])
def test_nothing_is_a_missing_image(data: bytes | None) -> None:
    with pytest.raises(MissingImage):
        decode_image(data)


def test_text_is_not_an_image_and_the_message_shows_how_it_begins() -> None:
    with pytest.raises(UnreadableImage, match="3c 68 74 6d 6c"):
        decode_image(b"<html>404</html>")


def test_no_program_is_run_for_a_file() -> None:
    with pytest.raises(UnreadableImage, match="not an image file of a known format"):
        decode_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\nshowpage\n")


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(ImageTooLarge, match="60000 x 60000"):
        decode_image(png(60_000, 60_000), max_megapixels=250)
    with pytest.raises(ImageTooLarge, match=r"more than its .* bytes can hold"):
        decode_image(png(9000, 9000))


def test_a_preview_fits_its_side() -> None:
    preview = encode_preview(noise(100, 400), 80)
    assert preview is not None
    assert Image.open(io.BytesIO(preview)).size == (80, 20)
    assert encode_preview(noise(10, 10), 0) is None


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_a_broken_exif_block_costs_only_itself(format: str) -> None:
    original = decode_image(encoded(noise(20, 30), format, exif=b"Exif\0\0 this is no TIFF header"))
    assert original.size == (20, 30) and original.metadata.exif is None
    assert any("EXIF" in note for note in original.notes)


def test_a_plain_file_has_nothing_to_note() -> None:
    for width in (720, 516, 160):
        for format in ("BMP", "TIFF", "PNG", "JPEG"):
            assert decode_image(encoded(noise(16, width), format)).notes == ()


def test_alpha_that_colours_are_multiplied_by_is_remembered() -> None:
    data = tiff(samples(4), photometric="rgb", extrasamples=["assocalpha"])
    original = decode_image(data)
    assert original.alpha and original.premultiplied
    assert struct.unpack("<H", data[2:4]) == (42,)
