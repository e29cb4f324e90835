from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.restoration.request import as_captions, as_mask, as_pixels, as_references
from tests.conftest import noise


def opened(image: Image.Image, format: str, **options: Any) -> Image.Image:
    file = io.BytesIO()
    image.save(file, format, **options)
    return Image.open(io.BytesIO(file.getvalue()))


def test_deep_greys_keep_their_depth() -> None:
    deep = np.linspace(0, 65535, 300).astype(np.uint16).reshape(10, 30)
    pixels = as_pixels(opened(Image.fromarray(deep), "PNG"))
    assert pixels.dtype == np.uint16 and np.array_equal(pixels[..., 0], deep)


def test_a_picture_is_turned_as_its_exif_says() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = opened(Image.fromarray(noise(20, 40)), "PNG", exif=exif)
    assert as_pixels(picture).shape == (40, 20, 3)
    assert as_mask(picture.convert("L"), (40, 20)).shape == (40, 20)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "F"])
def test_every_mode_becomes_three_channels(mode: str) -> None:
    assert as_pixels(Image.new(mode, (5, 4))).shape == (4, 5, 3)


def test_one_reference_is_a_list_of_one() -> None:
    picture = noise(30, 20)
    for given in (picture, Image.fromarray(picture), [picture], (Image.fromarray(picture),)):
        assert [reference.shape for reference in as_references(given)] == [(30, 20, 3)]
    assert as_references(None) == as_references(()) == ()


def test_what_is_no_picture_is_refused_with_the_remedy() -> None:
    with pytest.raises(TypeError, match=r"Image\.open"):
        as_pixels("scan.jpg")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="mask"):
        as_mask("mask.png", (4, 4))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no pixels"):
        as_references(np.zeros((0, 4, 3), np.uint8))
    with pytest.raises(ValueError, match="their white"):
        as_pixels(np.zeros((4, 4, 3), np.uint32))


def test_of_several_captions_those_that_say_something_count() -> None:
    assert as_captions(["", " ", "a cat", "a dog", "a cat"]) == ("a cat", "a dog")
    assert as_captions("a cat") == ("a cat",)
    assert as_captions([]) == as_captions(None) == as_captions(" ") == ()
    assert as_captions([f"tag {n}" for n in range(99)]) == tuple(f"tag {n}" for n in range(5))
