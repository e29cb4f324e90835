from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import ImageTooLarge, MissingImage, UnreadableImage
from pipeline.imaging.decode import decode_image
from pipeline.imaging.encode import encode_image, encode_preview
from tests.conftest import encoded, noise


@pytest.mark.parametrize(
    ("mode", "channels"), [("L", 1), ("LA", 2), ("RGB", 3), ("RGBA", 4), ("P", 3), ("1", 1), ("CMYK", 3)]
)
def test_every_mode_decodes_to_its_channels(mode: str, channels: int) -> None:
    file = io.BytesIO()
    Image.fromarray(noise(20, 30)).convert(mode).save(file, "TIFF" if mode == "CMYK" else "PNG")
    assert decode_image(file.getvalue()).pixels.shape == (20, 30, channels)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("format", ["png", "webp"])
def test_encoding_loses_no_pixel(format: str, channels: int) -> None:
    pixels = np.concatenate([noise(33, 17), noise(33, 17, 1)], axis=2)[..., :channels]
    if channels == 2:
        pixels = pixels.copy()
    back = decode_image(encode_image(pixels, format)).pixels
    if channels < 3 and format == "webp":  # WebP has no grey; the values are the same
        back = back[..., [0, 3]] if channels == 2 else back[..., :1]
    visible = slice(None) if channels in (1, 3) else pixels[..., -1] > 0
    assert np.array_equal(back[visible], pixels[visible])


def test_the_colour_profile_goes_through() -> None:
    profile = b"not really a profile, but bytes all the same"
    decoded = decode_image(encoded(noise(8, 8), icc_profile=profile))
    assert decoded.icc == profile
    assert decode_image(encode_image(decoded.pixels, "png", decoded.icc)).icc == profile


def test_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate 90 degrees clockwise to view
    decoded = decode_image(encoded(noise(20, 30), "JPEG", exif=exif))
    assert decoded.pixels.shape == (30, 20, 3)


def test_sixteen_bits_are_scaled_and_noted() -> None:
    file = io.BytesIO()
    Image.fromarray(np.array([[0, 32768, 65535]], np.uint16)).save(file, "PNG")
    decoded = decode_image(file.getvalue())
    assert decoded.pixels[0, :, 0].tolist() == [0, 128, 255]
    assert "8 bits" in decoded.notes[0]


def test_a_float_image_with_a_hole_of_nan_is_not_black() -> None:
    file = io.BytesIO()
    Image.fromarray(np.array([[0, 0.5, 1, np.nan, np.inf]], np.float32)).save(file, "TIFF")
    assert decode_image(file.getvalue()).pixels[0, :, 0].tolist() == [0, 128, 255, 0, 0]


def test_exif_goes_through_without_its_orientation() -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a scan"
    decoded = decode_image(encoded(noise(20, 30), "JPEG", exif=exif))
    again = Image.open(io.BytesIO(encode_image(decoded.pixels, "png", None, decoded.exif)))
    assert dict(again.getexif()) == {0x010E: "a scan"}


def test_a_transparent_colour_becomes_alpha() -> None:
    file = io.BytesIO()
    Image.fromarray(np.array([[[1, 2, 3], [9, 9, 9]]], np.uint8)).save(file, "PNG", transparency=(9, 9, 9))
    assert decode_image(file.getvalue()).pixels[0].tolist() == [[1, 2, 3, 255], [9, 9, 9, 0]]


def test_further_frames_are_noted() -> None:
    frames = [Image.fromarray(noise(8, 8, seed)) for seed in range(3)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    assert "first of 3 frames" in decode_image(file.getvalue()).notes


@pytest.mark.parametrize("data", [None, b""])
def test_nothing_is_a_missing_image(data: bytes | None) -> None:
    with pytest.raises(MissingImage):
        decode_image(data)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_a_truncated_file_is_unreadable(format: str, share: float) -> None:
    data = encoded(noise(64, 64), format)
    with pytest.raises(UnreadableImage):
        decode_image(data[: int(len(data) * share)])


def test_text_is_not_an_image_and_the_message_shows_how_it_begins() -> None:
    with pytest.raises(UnreadableImage, match="3c 68 74 6d 6c"):
        decode_image(b"<html>404</html>")


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few KB that claims many pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1_000_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_a_decompressionbomb_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(ImageTooLarge, match="60000 x 60000"):
        decode_image(bomb(60000, 60000), max_megapixels=250)


def test_a_preview_fits_its_side() -> None:
    preview = encode_preview(noise(100, 400), 80)
    assert preview is not None
    assert Image.open(io.BytesIO(preview)).size == (80, 20)
    assert encode_preview(noise(10, 10), 0) is None


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_a_broken_exif_block_costs_only_itself(format: str) -> None:
    decoded = decode_image(encoded(noise(20, 30), format, exif=b"Exif\0\0 this is no TIFF header"))
    assert decoded.pixels.shape == (20, 30, 3) and decoded.exif is None
    assert any("EXIF" in note for note in decoded.notes)


def test_only_deep_images_are_said_to_be_deep() -> None:
    for width in (720, 516, 160):
        assert decode_image(encoded(noise(16, width), "BMP")).notes == ()
        assert decode_image(encoded(noise(16, width), "TIFF")).notes == ()


def test_deep_colours_are_said_to_be_reduced() -> None:
    rows = b"".join(b"\0" + bytes(6 * 5) for _ in range(4))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 5, 4, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    ]
    assert decode_image(b"\x89PNG\r\n\x1a\n" + b"".join(parts)).notes == ("depth of 16 bits reduced to 8",)
