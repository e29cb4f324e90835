from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from pipeline.imaging.decode import decode_image
from pipeline.imaging.encode import encode_image
from pipeline.imaging.metadata import Metadata
from pipeline.imaging.original import COLOURS, Original, Space, pixels_sha256
from tests.imaging.files import EXIFTOOL, profile_for, samples
from tests.imaging.matrix import in_document, lines, table


def picture(space: Space = "rgb", bits: int = 8, alpha: bool = False, format: str = "png", seed: int = 0) -> Original:
    """Some picture."""
    white = (1 << bits) - 1
    values = samples(COLOURS[space] + alpha, white, seed)
    values = values[..., None] if values.ndim == 2 else values
    return Original(values, space, float(white), bits, format, alpha)


@pytest.mark.parametrize("format", ["png", "tiff", "webp", "jpeg2000"])
@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("space", ["grey", "rgb"])
def test_lossless_formats_lose_nothing(space: Space, bits: int, alpha: bool, format: str) -> None:
    given = picture(space, bits, alpha)
    encoded = encode_image(given, format)  # type: ignore[arg-type]
    found = decode_image(encoded.data)
    assert encoded.psnr is None
    expected = given.samples
    if encoded.format == "webp" and space == "grey":  # it has no greys; the values are the same
        expected = expected[..., [0, 0, 0, *range(1, 1 + alpha)]]
    assert np.array_equal(found.samples, expected)
    assert (encoded.format == format) == (not (format == "webp" and bits == 16))


@pytest.mark.parametrize(
    ("given", "format", "written", "why"),
    [
        (picture("cmyk"), "png", "tiff", "CMYK"),
        (picture("lab", 16), "webp", "tiff", "Lab"),
        (picture("rgb", 16), "jpeg", "png", "16 bits"),
        (picture("rgb", 8, True), "jpeg", "png", "alpha"),
        (picture("cmyk"), "jpeg", "jpeg", ""),
    ],
)
def test_what_a_format_cannot_hold_goes_where_it_can(given: Original, format: str, written: str, why: str) -> None:
    encoded = encode_image(given, format)  # type: ignore[arg-type]
    assert encoded.format == written
    assert not why or any(why in note and "written as" in note for note in encoded.notes)


def test_too_wide_for_webp_is_png() -> None:
    wide = Original(np.zeros((1, 20_000, 3), np.uint8), "rgb", 255.0, 8, "webp")
    assert encode_image(wide).format == "png"


@pytest.mark.parametrize("format", ["jpeg", "webp", "avif", "jpeg2000"])
def test_lossy_files_are_measured_and_bounded(format: str) -> None:
    given = picture()
    low = encode_image(given, format, quality=30)  # type: ignore[arg-type]
    assert low.format == format and low.psnr is not None
    found = decode_image(low.data).samples.astype(float) - given.samples
    assert abs(-10 * np.log10((found**2).mean() / 255**2) - low.psnr) < 0.01
    bound = low.psnr + 3
    better = encode_image(given, format, quality=30, least_psnr=bound)  # type: ignore[arg-type]
    assert better.psnr is not None and better.psnr >= bound
    assert any("quality" in note for note in better.notes)
    hopeless = encode_image(given, format, quality=30, least_psnr=99)  # type: ignore[arg-type]
    assert hopeless.format == "png" and hopeless.psnr is None
    assert np.array_equal(decode_image(hopeless.data).samples, given.samples)


@pytest.mark.parametrize("format", ["webp", "avif"])
def test_alpha_that_hides_nothing_does_not_stop_a_lossy_format(format: str) -> None:
    given = picture("rgb", 8, True)
    given.samples[..., 3] = 255
    assert encode_image(given, format, 80).psnr is not None  # type: ignore[arg-type]


def test_a_broken_exif_block_does_not_stop_tiff() -> None:
    metadata = Metadata(exif=b"II*\0\xff\xff\xff\x7f", resolution=(300, 300))
    encoded = encode_image(dataclasses.replace(picture(), metadata=metadata), "tiff")
    assert any("EXIF" in note for note in encoded.notes)


def test_quality_does_not_make_png_lossy() -> None:
    assert encode_image(picture(), "png", 50).psnr is None and encode_image(picture(), "tiff", 50).psnr is None


def test_boxes_of_jpeg2000_go_through() -> None:
    geo = (b"uuid", bytes(range(16)) + b"where it is")
    told = dataclasses.replace(picture(), metadata=Metadata(boxes=(geo,)))
    assert decode_image(encode_image(told, "jpeg2000").data).metadata.boxes == (geo,)
    assert any("JPEG 2000" in note for note in encode_image(told, "png").notes)


def test_the_same_picture_gives_the_same_file_and_hash() -> None:
    for format in ("png", "tiff", "webp", "jpeg2000", "jpeg", "avif"):
        one, other = (encode_image(picture(format=format), format, 80) for _ in range(2))
        assert one.data == other.data
    hashes = {pixels_sha256(decode_image(encode_image(picture(), format).data)) for format in ("png", "tiff", "webp")}
    assert hashes == {pixels_sha256(picture())}
    assert pixels_sha256(picture(seed=1)) not in hashes


def test_metadata_too_large_for_jpeg_is_left_out_and_said_so() -> None:
    large = dataclasses.replace(
        picture(), metadata=Metadata(xmp=b"<x/>" * 30_000, iptc=b"\x1c\x02\x05" + bytes(70_000))
    )
    encoded = encode_image(large, "jpeg")
    assert any("XMP is too large" in note for note in encoded.notes)
    assert any("IPTC is too large" in note for note in encoded.notes)
    assert decode_image(encode_image(large, "png").data).metadata.xmp == large.metadata.xmp


def test_texts_of_png_go_through_and_are_noted_elsewhere() -> None:
    told = dataclasses.replace(picture(), metadata=Metadata(texts=(("Title", "Häfen"), ("Comment", "wet"))))
    assert set(decode_image(encode_image(told, "png").data).metadata.texts) == set(told.metadata.texts)
    assert any("Title" in note for note in encode_image(told, "tiff").notes)
    assert decode_image(encode_image(told, "jpeg").data).metadata.texts == (("Comment", "wet"),)


def test_greys_with_a_profile_do_not_become_colours_with_it() -> None:
    given = dataclasses.replace(picture("grey"), metadata=Metadata(icc=profile_for("png grey")))
    encoded = encode_image(given, "webp")
    assert encoded.format == "png" and decode_image(encoded.data).metadata.icc == given.metadata.icc


def test_other_programs_read_what_was_written() -> None:
    for format in ("png", "tiff", "webp", "jpeg2000"):
        image = Image.open(io.BytesIO(encode_image(picture(), format).data))
        assert np.array_equal(np.asarray(image), picture().samples)


@pytest.mark.skipif(EXIFTOOL is None, reason="exiftool is the witness")
def test_nothing_is_lost_from_file_to_file_and_the_documents_say_so() -> None:
    """If this fails since something was mended: python -m tests.imaging.matrix."""
    found = lines()
    left_out = [(line.name, kind) for line in found for kind, what in line.blocks.items() if what == "left out"]
    assert not left_out
    assert len(found) >= 50
    assert table(found) == in_document()
