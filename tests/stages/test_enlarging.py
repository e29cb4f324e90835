"""A chain that enlarges, from the row to the file."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tifffile
import torch
from PIL import Image
from transformers import Swin2SRConfig, Swin2SRForImageSuperResolution

from pipeline.imaging.decode import decode_image
from pipeline.recipe import Recipe, load_recipe
from pipeline.stages.decode import DecodeStage
from pipeline.stages.encode import EncodeStage
from pipeline.stages.restore import RestoreStage
from tests.conftest import encoded
from tests.imaging.files import srgb

PREFIX = Recipe().output.prefix
PASSED = pa.schema([("id", pa.string())])


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("models") / "swin"
    torch.manual_seed(0)
    sizes = {"image_size": 64, "embed_dim": 24, "depths": [2], "num_heads": [2], "window_size": 8, "upscale": 2}
    model = Swin2SRForImageSuperResolution(Swin2SRConfig(**sizes))
    model.save_pretrained(folder)
    return load_recipe(overrides=[f"restoration.model=[compact, 'swin2sr:{folder}']", "gate.review_below=0"])


def through(recipe: Recipe, *images: bytes) -> list[dict[str, Any]]:
    table = pa.table({"id": [str(n) for n in range(len(images))], "image": list(images)})
    tables = DecodeStage(recipe, recipe.columns, PASSED, lambda uri: b"")(table)
    decoded = pa.concat_tables(list(tables))
    rows: list[dict[str, Any]] = EncodeStage(recipe, "run")(RestoreStage(recipe, "cpu")(decoded)).to_pylist()
    return rows


def pillow_tiff(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "TIFF")
    return file.getvalue()


def test_files_of_all_sorts_are_enlarged(recipe: Recipe, photo: np.ndarray) -> None:
    picture = photo[:60, :80]
    exif = Image.Exif()
    exif[0x010E] = "an old town"
    exif.get_ifd(0x8769)[0xA002] = 80
    exif.get_ifd(0x8769)[0xA003] = 60
    alpha = np.linspace(0, 255, 80, dtype=np.uint8)[None].repeat(60, 0)
    deep = (picture.astype(np.uint16) * 257)[..., 0]
    cmyk = Image.fromarray(picture).convert("CMYK")
    tiff = io.BytesIO()
    geo = [(33550, "d", 3, (1.0, 1.0, 0.0), True), (33922, "d", 6, (0.0,) * 6, True)]
    tifffile.imwrite(tiff, picture, photometric="rgb", resolution=(300, 300), resolutionunit=2, extratags=geo)
    rows = through(
        recipe,
        encoded(picture, "JPEG", quality=60, exif=exif, dpi=(150, 150), icc_profile=srgb()),
        encoded(np.dstack([picture, alpha])),
        encoded(deep),
        pillow_tiff(cmyk),
        tiff.getvalue(),
    )
    for row in rows:
        assert row[PREFIX + "error_type"] is None, row[PREFIX + "error_message"]
    found = [decode_image(row[PREFIX + "image"]) for row in rows]
    assert [image.size for image in found] == [(120, 160)] * 5
    assert [(row[PREFIX + "image_height"], row[PREFIX + "image_width"]) for row in rows] == [(120, 160)] * 5
    assert {row[PREFIX + "status"] for row in rows} <= {"restored", "review"}
    jpeg, transparent, sixteen, inks, _ = found
    assert jpeg.metadata.resolution == pytest.approx((300, 300), rel=0.01)
    with Image.open(io.BytesIO(rows[0][PREFIX + "image"])) as image:
        told = image.getexif()
        assert told[0x010E] == "an old town"
        assert (told.get_ifd(0x8769)[0xA002], told.get_ifd(0x8769)[0xA003]) == (160, 120)
    assert jpeg.metadata.icc is not None
    assert transparent.alpha and np.abs(transparent.samples[0, ::2, 3].astype(int) - alpha[0]).max() < 4
    assert sixteen.bits == 16 and sixteen.space == "grey"
    assert inks.space == "cmyk"
    with tifffile.TiffFile(io.BytesIO(rows[4][PREFIX + "image"])) as file:
        assert not {33550, 33922} & set(file.pages[0].tags.keys())
    assert any("GeoTIFF" in note for note in rows[4][PREFIX + "notes"])
    for row, image in zip(rows, found, strict=True):
        assert image.metadata.xmp is not None and b"compact + Swin2SR swin" in image.metadata.xmp
        assert row[PREFIX + "model"] == "compact + Swin2SR swin"
