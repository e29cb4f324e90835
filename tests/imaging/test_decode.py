from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from pipeline.errors import ImageTooLarge, MissingImage, UnreadableImage
from pipeline.imaging.containers import png_chunk
from pipeline.imaging.decode import decode_image, rgb
from pipeline.imaging.encode import encode_image, encode_preview
from pipeline.imaging.tiff import TiffPages
from tests.conftest import encoded, noise
from tests.imaging import files
from tests.imaging.files import profile_for, samples, tiff
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
    wrong = np.abs(original.samples.astype(int) - expected).mean()
    assert wrong == 0 if format != "JPEG" else wrong < 20
    others = [
        np.asarray(Image.fromarray(picture).transpose(turn)) for other, turn in _TURNS.items() if other != orientation
    ]
    nearest = min(np.abs(original.samples.astype(int) - o).mean() for o in others if o.shape == expected.shape)
    assert wrong < nearest
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
    original = decode_image(tiff(samples(4), photometric="rgb", extrasamples=["assocalpha"]))
    assert original.alpha and original.premultiplied
    again = decode_image(encode_image(original, "tiff").data)
    assert again.premultiplied and np.array_equal(again.samples, original.samples)


def test_of_a_picture_where_white_is_zero_alpha_is_as_it_was() -> None:
    values = samples(2)
    data = tiff(values, photometric="miniswhite", extrasamples=["unassalpha"], planarconfig="contig")
    assert np.array_equal(decode_image(data).samples, np.stack([255 - values[..., 0], values[..., 1]], -1))


def test_tiles_that_were_never_written_are_no_damage() -> None:
    data = tiff(samples(3), photometric="rgb", tile=(16, 16))
    page = tifffile.TiffFile(io.BytesIO(data)).pages[0]
    for tag in (page.tags[324], page.tags[325]):
        size = 2 if tag.dtype == 3 else 4
        place = tag.valueoffset + size * 3
        data = data[:place] + bytes(size) + data[place + size :]
    original = decode_image(data)
    assert not original.broken and not original.samples[0:16, 48:56].any()


def test_a_reduced_copy_is_not_taken_for_the_picture() -> None:
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(np.zeros((12, 16, 3), np.uint8), photometric="rgb", subfiletype=1, metadata=None)
        writer.write(samples(3), photometric="rgb", metadata=None)
    original = decode_image(file.getvalue())
    assert original.size == files.SIZE and "first of 2 pages" in original.notes
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(np.zeros((12, 16, 3), np.uint8), photometric="rgb", subfiletype=1, subifds=1, metadata=None)
        writer.write(samples(3), photometric="rgb", metadata=None)
    with pytest.raises(UnreadableImage, match="raw files"):
        decode_image(file.getvalue())


def test_ycbcr_without_jpeg_has_its_colours() -> None:
    file = io.BytesIO()
    red = Image.new("RGB", (16, 16), (255, 0, 0))
    red.convert("YCbCr").save(file, "TIFF")
    assert np.abs(decode_image(file.getvalue()).samples[3, 3].astype(int) - (255, 0, 0)).max() <= 3


@pytest.mark.parametrize("values", [np.arange(2240, dtype=np.uint32), np.ones(2240, np.complex64)])
def test_sorts_that_are_not_supported_are_refused(values: np.ndarray) -> None:
    with pytest.raises(UnreadableImage, match="not supported"):
        decode_image(tiff(values.reshape(files.SIZE), photometric="minisblack"))


def test_a_store_that_fails_in_the_middle_is_no_missing_picture() -> None:
    class Away(io.BytesIO):
        reads = 0

        def read(self, size: int | None = -1) -> bytes:
            Away.reads += 1
            if Away.reads > 40:
                raise OSError("503")
            return super().read(size)

    with TiffPages(Away(tiff(samples(3), photometric="rgb", tile=(16, 16), compression="deflate"))) as pages:
        Away.reads = 40
        with pytest.raises(OSError, match="503"):
            pages.rows(0, 40)


def test_resolution_is_what_the_file_says_and_nothing_else() -> None:
    exif = Image.Exif()
    exif[0x013B] = "someone"
    assert decode_image(encoded(noise(9, 9), "JPEG", exif=exif)).metadata.resolution is None
    assert decode_image(encoded(noise(9, 9), "JPEG", dpi=(300, 150))).metadata.resolution == (300, 150)
    exif[0x011A], exif[0x011B], exif[0x0128] = 400.0, 200.0, 2
    data = encoded(noise(9, 9), "WEBP", exif=exif, lossless=True)
    assert decode_image(data).metadata.resolution == (400, 200)


def test_gamma_and_primaries_of_a_png_are_kept_as_a_profile() -> None:
    plain = encoded(noise(9, 9))
    linear = plain[:33] + png_chunk(b"gAMA", struct.pack(">I", 100_000)) + plain[33:]
    usual = plain[:33] + png_chunk(b"gAMA", struct.pack(">I", 45_455)) + plain[33:]
    original = decode_image(linear)
    assert original.metadata.icc is not None and any("gamma" in note for note in original.notes)
    # linear samples are darker than they look
    assert rgb(original).mean() > original.samples.mean() + 20
    assert decode_image(usual).metadata.icc is None


def test_metadata_as_imagemagick_puts_it_into_png() -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x013B] = 6, "someone"
    block = exif.tobytes()
    text = f"\nexif\n{len(block):8d}\n{block.hex()}\n".encode()
    plain = encoded(noise(24, 40))
    original = decode_image(
        plain[:33] + png_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text)) + plain[33:]
    )
    assert original.size == (40, 24) and b"someone" in (original.metadata.exif or b"")


def test_orientation_in_xmp_is_that_of_the_turned_picture() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    xmp = b'<x xmlns:tiff="t" tiff:Orientation="6"><tiff:Orientation>6</tiff:Orientation></x>'
    metadata = decode_image(encoded(noise(24, 40), "WEBP", exif=exif, xmp=xmp)).metadata
    assert metadata.xmp == xmp.replace(b"6", b"1")


def test_large_profiles_go_through_png_and_back() -> None:
    data = encoded(noise(9, 9), "JPEG", icc_profile=profile_for("png rgb") + bytes(1_500_000))
    again = decode_image(encode_image(decode_image(data), "png").data)
    assert len(again.metadata.icc or b"") > 1_500_000
