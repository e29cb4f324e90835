"""Images that are lost, and what is made of their captions."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from pipeline.errors import ModelError, UnreadableImage
from pipeline.imaging.label import labelled
from pipeline.plan import prepare
from pipeline.recipe import Recipe, load_recipe
from pipeline.restoration.generator import Generator, GeneratorConfig
from pipeline.restoration.weights import save_model
from pipeline.stages.decode import DecodeStage
from pipeline.stages.encode import EncodeStage
from pipeline.stages.restore import RestoreStage
from tests.conftest import encoded, noise

PASSED = pa.schema([("id", pa.string()), ("caption", pa.string())])
IMAGES = [None, b"", b"this is no image", encoded(noise(40, 50)), None, b"\xff\xd8\xff\xe0 torn off"]
CAPTIONS = ["a red dog", "a red dog", "an old town", "a tower", "  ", "a tower"]


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generator")
    torch.manual_seed(0)
    model = Generator(
        GeneratorConfig(name="tiny", license="CC0", side=32, widths=(16, 24), blocks=1, width=32, heads=2)
    )
    save_model(model, folder, "a card")
    return folder


def recipe_for(generator: Path, *more: str) -> Recipe:
    return load_recipe(overrides=["restoration.lost=generate", f"restoration.generator={generator}", *more])


def through(recipe: Recipe, images: list[bytes | None], captions: list[str]) -> list[dict[str, Any]]:
    table = pa.table({"id": [str(n) for n in range(len(images))], "image": images, "caption": captions})
    (decoded,) = DecodeStage(recipe, recipe.columns, PASSED, lambda uri: b"")(table)
    rows: list[dict[str, Any]] = EncodeStage(recipe, "run")(RestoreStage(recipe, "cpu")(decoded)).to_pylist()
    return rows


def test_lost_images_with_a_caption_are_made_up_and_say_so(generator: Path) -> None:
    rows = through(recipe_for(generator), IMAGES, CAPTIONS)
    statuses = [row["status"] for row in rows]
    assert [statuses[n] for n in (0, 1, 2, 5)] == ["generated"] * 4
    assert statuses[3] in ("restored", "kept", "review") and statuses[4] == "failed"
    assert rows[4]["error_type"] == "MissingImage"
    for row in (rows[0], rows[1], rows[2], rows[5]):
        with Image.open(io.BytesIO(row["image"])) as image:
            assert image.size == (64, 64) and image.format == "PNG"
            xmp = image.info["xmp"] if "xmp" in image.info else image.info["XML:com.adobe.xmp"].encode()
        assert b"digitalsourcetype/trainedAlgorithmicMedia" in xmp and b"created" in xmp and b"DerivedFrom" not in xmp
        assert row["digital_source"] == "trainedAlgorithmicMedia"
        assert (row["model"], row["model_license"]) == ("tiny", "CC0") and row["seed"] is not None
        assert "lost" in row["reasons"][0] and [action["name"] for action in row["actions"]] == ["generate"]
        assert row["before_preview"] is None and row["after_preview"]
        assert 0 <= row["caption_agreement"] <= 1 and row["expected_psnr"] is None


def test_pictures_follow_from_row_and_caption(generator: Path) -> None:
    recipe = recipe_for(generator, "restoration.mark_generated=false")
    one, other = (through(recipe, [None, None], ["a red dog", "an old town"]) for _ in range(2))
    assert [row["image"] for row in one] == [row["image"] for row in other]
    assert one[0]["image"] != one[1]["image"]


def test_a_whole_image_of_a_sort_that_is_not_read_is_not_lost(generator: Path) -> None:
    heic = b"\0\0\0\x18ftypheic" + bytes(100)
    (row,) = through(recipe_for(generator), [heic], ["a red dog"])
    assert (row["status"], row["error_type"]) == ("failed", "UnsupportedImage")


def test_what_was_never_read_is_not_lost(generator: Path, tmp_path: Path) -> None:
    """A folder that is not mounted, a signed address that has run out: pictures must not take the archive's place."""
    recipe = recipe_for(generator)

    def nowhere(uri: str) -> bytes:
        raise UnreadableImage(f"cannot read {uri}")

    table = pa.table({"id": ["a"], "image": ["scans/a.png"], "caption": ["a red dog"]})
    (decoded,) = DecodeStage(recipe, recipe.columns, PASSED, nowhere)(table)
    assert EncodeStage(recipe, "run")(RestoreStage(recipe, "cpu")(decoded))["status"].to_pylist() == ["failed"]


def test_a_whole_large_scan_that_cannot_be_streamed_is_not_lost(generator: Path, tmp_path: Path) -> None:
    path = tmp_path / "large.tif"
    Image.fromarray(noise(300, 400)).quantize().save(path)  # a palette
    recipe = recipe_for(generator, "limits.max_megapixels=0.05")
    table = pa.table({"id": ["a"], "image": [str(path)], "caption": ["a red dog"]})
    stage = DecodeStage(recipe, recipe.columns, PASSED, lambda uri: b"", lambda uri: Path(uri).open("rb"))  # noqa: SIM115
    (decoded,) = stage(table)
    row = EncodeStage(recipe, "run")(RestoreStage(recipe, "cpu")(decoded)).to_pylist()[0]
    assert (row["status"], row["error_type"]) == ("failed", "UnsupportedImage")


def test_many_lost_images_come_in_several_tables(generator: Path) -> None:
    recipe = recipe_for(generator, "resources.block_mb=8")
    table = pa.table({"id": [str(n) for n in range(40)], "image": [None] * 40, "caption": ["a dog"] * 40})
    tables = list(DecodeStage(recipe, recipe.columns, PASSED, lambda uri: b"")(table))
    assert len(tables) > 4 and sum(one.num_rows for one in tables) == 40


def test_by_default_a_lost_image_fails() -> None:
    rows = through(Recipe(), [None, b"no image"], ["a red dog", "a red dog"])
    assert [row["error_type"] for row in rows] == ["MissingImage", "UnreadableImage"]


def test_the_mark_is_seen_and_may_be_left_out(generator: Path) -> None:
    plain, marked = (
        np.asarray(Image.open(io.BytesIO(through(recipe, [None], ["a red dog"])[0]["image"])))
        for recipe in (recipe_for(generator, "restoration.mark_generated=false"), recipe_for(generator))
    )
    changed = (plain != marked).any(2)
    assert changed.any() and not changed[: -len(changed) // 3].any()
    grey = labelled(np.full((300, 400, 3), 128, np.uint8))
    assert (grey[-10:, :10] == 0).any() and (grey == 255).any()


def test_a_generator_that_is_not_there_is_named_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    Image.fromarray(noise(20, 20)).save(tmp_path / "source/a.png")
    places = {"source__uri": [str(tmp_path / "source")], "output__uri": str(tmp_path / "out")}
    with pytest.raises(ModelError, match="nowhere"):
        prepare(load_recipe(None, ["restoration.lost=generate", "restoration.generator=nowhere"], **places))
    with pytest.raises(ModelError, match="made to restore"):
        prepare(load_recipe(None, ["restoration.lost=generate", "restoration.generator=compact"], **places))
