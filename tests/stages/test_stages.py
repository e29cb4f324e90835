from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipeline.errors import StoreUnavailable
from pipeline.imaging.decode import decode_image
from pipeline.imaging.original import pixels_sha256
from pipeline.recipe import Recipe, load_recipe
from pipeline.restoration.request import as_captions
from pipeline.schema import INTERNAL, OUTPUT
from pipeline.stages.decode import DecodeStage
from pipeline.stages.encode import EncodeStage
from pipeline.stages.restore import RestoreStage
from pipeline.stages.table import stage_rows
from tests.conftest import encoded, noise
from tests.imaging.files import profile_for, tiff

RECIPE = Recipe()
PASSED = pa.schema([("id", pa.string()), ("caption", pa.string()), ("shelf", pa.int64())])


def no_store(uri: str) -> bytes:
    raise StoreUnavailable(f"{uri} is away", attempts=3)


def decode(table: pa.Table, recipe: Recipe = RECIPE, passed: pa.Schema = PASSED) -> pa.Table:
    return pa.concat_tables(list(DecodeStage(recipe, recipe.columns, passed, no_store)(table)))


@pytest.fixture(scope="module")
def restore() -> RestoreStage:
    return RestoreStage(RECIPE, "cpu")


def decoded(table: pa.Table, recipe: Recipe = RECIPE) -> list[dict[str, Any]]:
    return stage_rows(decode(table, recipe))


def through(table: pa.Table, restore: RestoreStage, recipe: Recipe = RECIPE) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = EncodeStage(recipe, "run")(restore(decode(table, recipe))).to_pylist()
    return rows


def rows_of(**columns: list[Any]) -> pa.Table:
    count = len(next(iter(columns.values())))
    return pa.table({"id": [f"row {n}" for n in range(count)]} | columns)


def test_each_broken_row_fails_alone_and_says_how(restore: RestoreStage) -> None:
    good = encoded(noise(40, 50))
    images = [good, None, b"", b"no image at all", encoded(noise(40, 50), "WEBP")[:200], good]
    rows = through(rows_of(image=images, shelf=list(range(6))), restore)
    assert [row["error_type"] for row in rows] == [
        None,
        "MissingImage",
        "MissingImage",
        "UnreadableImage",
        "UnreadableImage",
        None,
    ]
    assert [row["status"] == "failed" for row in rows] == [False, True, True, True, True, False]
    assert [row["shelf"] for row in rows] == list(range(6))
    assert all(row["error_stage"] == "decode" and row["attempts"] == 1 for row in rows[1:5])
    assert all(row["image"] is None for row in rows[1:5])
    assert [row["recipe_digest"] for row in rows] == [RECIPE.digest()] * 6


@pytest.mark.parametrize(
    "images",
    [
        pa.array([encoded(noise(9, 9))], pa.binary()),
        pa.array([encoded(noise(9, 9))], pa.large_binary()),
        pa.array([{"bytes": encoded(noise(9, 9)), "path": "a.png"}]),
        pa.array([encoded(noise(9, 9))], pa.binary()).dictionary_encode(),
    ],
)
def test_images_come_in_every_shape_of_column(images: pa.Array) -> None:
    assert decoded(rows_of(image=images))[0]["error_type"] is None


@pytest.mark.parametrize("images", [[1], [1.5], [["a"]], [True]])
def test_a_column_that_holds_no_images_is_named_with_its_type(images: list[Any]) -> None:
    row = decoded(rows_of(image=images))[0]
    assert row["error_type"] == "UnsupportedColumn"
    assert "'image'" in row["error_message"] and "type" in row["error_message"]


def test_a_store_that_is_away_is_told_from_a_broken_file() -> None:
    row = decoded(rows_of(image=["s3://key:secret@archive/a.jpg"]))[0]
    assert (row["error_type"], row["attempts"]) == ("StoreUnavailable", 3)
    assert row["source_uri"] == "s3://archive/a.jpg"


def test_pieces_are_bounded_and_no_row_is_lost() -> None:
    recipe = load_recipe(overrides=["resources.block_mb=1"])
    table = rows_of(image=[encoded(noise(300, 300, seed)) for seed in range(10)])
    pieces = list(DecodeStage(recipe, recipe.columns, PASSED, no_store)(table))
    rows = [piece.num_rows for piece in pieces]
    assert len(rows) > 2 and max(rows) <= 4
    assert pa.concat_tables(pieces)["id"].to_pylist() == table["id"].to_pylist()


def test_a_table_without_rows_keeps_its_columns(restore: RestoreStage) -> None:
    table = rows_of(image=[encoded(noise(9, 9))]).slice(0, 0)
    out = EncodeStage(RECIPE, "run")(restore(decode(table)))
    assert out.num_rows == 0
    assert out.schema.names == PASSED.names + OUTPUT.names


def test_other_columns_pass_untouched_and_missing_ones_are_null() -> None:
    tags = pa.array([[{"k": "a", "v": 1}]])
    passed = pa.schema([("id", pa.string()), ("tags", tags.type), ("elsewhere", pa.int32())])
    out = decode(rows_of(image=[encoded(noise(9, 9))], tags=tags), passed=passed)
    assert out["tags"].to_pylist() == tags.to_pylist()
    assert out["elsewhere"].to_pylist() == [None]


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        ("a cat", ("a cat",)),
        (["", "  ", "a cat", "a dog"], ("a cat", "a dog")),
        *((nothing, ()) for nothing in (None, [], [None], 7)),
    ],
)
def test_captions_that_say_something_count(value: Any, texts: tuple[str, ...]) -> None:
    assert as_captions(value) == texts


def test_all_captions_of_a_row_colour_it_and_name_its_result(photo: np.ndarray) -> None:
    texts = [["a brown bear", "green grass"], ["a brown bear"], ["a brown bear", "red sand"]]
    grey = encoded(np.asarray(Image.fromarray(photo[:160, :200]).convert("L")))
    captions = pa.array(texts, pa.list_(pa.string()))
    passed = pa.schema([("id", pa.string()), ("caption", captions.type)])
    cells = decode(rows_of(image=[grey] * 3, caption=captions), passed=passed)
    assert len(set(cells[INTERNAL + "inputs_sha256"].to_pylist())) == 3
    stage = RestoreStage(Recipe.model_validate({"restoration": {"colourise": True}}), "cpu")
    out = stage(cells)
    pixels, ids = (out[INTERNAL + name].to_pylist() for name in ("pixels", "result_id"))
    assert len(set(pixels)) == len(set(ids)) == 3


def test_a_clean_image_comes_out_byte_identical(restore: RestoreStage, photo: np.ndarray) -> None:
    file = encoded(photo, "PNG")
    row = through(rows_of(image=[file]), restore)[0]
    assert row["status"] == "kept"
    assert row["image"] == file
    assert row["source_sha256"] == row["image_sha256"]


def test_truth_gives_scores_before_and_after(restore: RestoreStage, photo: np.ndarray) -> None:
    dirty = (photo + np.random.default_rng(0).normal(0, 30, photo.shape)).clip(0, 255).astype(np.uint8)
    row = through(rows_of(image=[encoded(dirty)], truth=[encoded(photo)]), restore)[0]
    assert row["status"] == "restored"
    assert row["psnr_after"] > row["psnr_before"] + 5
    assert row["ssim_after"] > row["ssim_before"]
    assert np.asarray(Image.open(io.BytesIO(row["image"]))).shape == photo.shape


def test_a_mask_limits_the_change_to_itself(restore: RestoreStage, photo: np.ndarray) -> None:
    mask = np.zeros(photo.shape[:2], np.uint8)
    mask[50:70, 40:160] = 255
    hidden = photo.copy()
    hidden[mask > 0] = 0
    row = through(rows_of(image=[encoded(hidden)], mask=[encoded(mask)], truth=[encoded(photo)]), restore)[0]
    out = np.asarray(Image.open(io.BytesIO(row["image"])))
    assert np.array_equal(out[mask == 0], photo[mask == 0])
    assert row["missing"] == pytest.approx((mask > 0).mean())
    assert row["psnr_after"] > row["psnr_before"]


@pytest.mark.parametrize("layout", ["0/1", "RGBA", "P"])
def test_masks_may_be_drawn_in_many_ways(layout: str) -> None:
    lost = np.zeros((12, 16), np.uint8)
    lost[3:6, 4:9] = 1
    if layout == "0/1":
        file = encoded(lost)
    else:
        picture = Image.fromarray(np.full((12, 16, 3), 255, np.uint8)).convert("RGBA")
        picture.putalpha(Image.fromarray(lost * 255))
        buffer = io.BytesIO()
        (picture if layout == "RGBA" else picture.quantize()).save(buffer, "PNG")
        file = buffer.getvalue()
    row = decoded(rows_of(image=[encoded(noise(12, 16))], mask=[file]))[0]
    assert np.array_equal(np.frombuffer(row["mask"], bool).reshape(12, 16), lost > 0)


def test_colours_never_come_with_a_mask(photo: np.ndarray) -> None:
    recipe = load_recipe("colourise")
    grey = np.asarray(Image.fromarray(photo).convert("L"))
    mask = np.zeros(grey.shape, np.uint8)
    mask[20:60, 20:60] = 255
    row = through(rows_of(image=[encoded(grey)], mask=[encoded(mask)]), RestoreStage(recipe, "cpu"), recipe)[0]
    out = np.asarray(Image.open(io.BytesIO(row["image"])))
    assert out.ndim == 2 and np.array_equal(out[mask == 0], grey[mask == 0])


def test_a_clean_grey_picture_keeps_its_luminance_when_coloured(photo: np.ndarray) -> None:
    recipe = load_recipe("colourise", ["gate.worse_above=0"])
    grey = np.asarray(Image.fromarray(photo).convert("L"))
    row = through(rows_of(image=[encoded(grey)], caption=["a bear"]), RestoreStage(recipe, "cpu"), recipe)[0]
    out = np.asarray(Image.open(io.BytesIO(row["image"])))
    assert np.abs(out @ np.array([0.299, 0.587, 0.114]) - grey).max() <= 1


def test_sixteen_bits_and_a_wide_profile_go_from_file_to_file(restore: RestoreStage, photo: np.ndarray) -> None:
    profile = profile_for("tiff rgb")
    dirty = photo.astype(np.float32) * 257 + np.random.default_rng(0).normal(0, 30 * 257, photo.shape)
    deep = dirty.clip(0, 65535).astype(np.uint16)
    file = tiff(deep, photometric="rgb", iccprofile=profile, resolution=(600, 600), resolutionunit="inch")
    row = through(rows_of(image=[file]), restore)[0]
    found = decode_image(row["image"])
    assert (row["status"], row["image_format"], row["image_layout"]) == ("restored", "tiff", "rgb, 16 bits")
    assert found.metadata.icc == profile and found.metadata.resolution == (600, 600)
    # not only what 8 bits can say
    assert len(np.unique(found.samples)) > 5000
    assert row["encoding_psnr"] is None and row["source_layout"] == "rgb, 16 bits"
    assert any("profile" in note for note in row["notes"])


def test_rows_and_files_tell_where_they_come_from(restore: RestoreStage, photo: np.ndarray) -> None:
    dirty = (photo + np.random.default_rng(0).normal(0, 30, photo.shape)).clip(0, 255).astype(np.uint8)
    clean, repaired = through(rows_of(image=[encoded(photo), encoded(dirty)]), restore)
    assert clean["status"] == "kept" and clean["actions"] == [] and clean["digital_source"] is None
    assert clean["image_pixels_sha256"] == clean["source_pixels_sha256"] == pixels_sha256(decode_image(clean["image"]))
    assert repaired["image_pixels_sha256"] == pixels_sha256(decode_image(repaired["image"]))
    assert repaired["image_pixels_sha256"] != repaired["source_pixels_sha256"]
    assert repaired["actions"][0]["name"] == "denoise" and 20 < repaired["actions"][0]["strength"] < 40
    assert repaired["digital_source"] == "algorithmicallyEnhanced"
    assert (
        repaired["model_license"] and "torch" in repaired["software"] and repaired["device"] and repaired["restored_at"]
    )
    mask = np.asarray(Image.open(io.BytesIO(repaired["change_mask"])))
    assert mask.max() > 150 and len(repaired["change_mask"]) < 20_000
    xmp = decode_image(repaired["image"]).metadata.xmp or b""
    assert repaired["source_sha256"].encode() in xmp and b"algorithmicallyEnhanced" in xmp and b"denoise" in xmp


def test_the_same_row_gives_the_same_file(restore: RestoreStage, photo: np.ndarray) -> None:
    dirty = encoded((photo + np.random.default_rng(0).normal(0, 30, photo.shape)).clip(0, 255).astype(np.uint8))
    one, other = (through(rows_of(image=[dirty]), restore)[0] for _ in range(2))
    assert one["image"] == other["image"]


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_of_a_broken_file_the_missing_part_is_filled_and_a_person_asked(
    restore: RestoreStage, photo: np.ndarray, format: str
) -> None:
    file = encoded(photo, format)
    row = through(rows_of(image=[file[: int(len(file) * 0.8)]]), restore)[0]
    assert row["status"] == "review" and any("missing" in reason for reason in row["reasons"])
    assert row["image"] is not None and 0.05 < row["missing"] < 0.5
    filled = np.asarray(Image.open(io.BytesIO(row["image"])))[-20:]
    assert filled.mean() > 20 and filled.std() > 2
    assert row["digital_source"] == "compositeWithTrainedAlgorithmicMedia"
    assert any(action["name"] == "fill" for action in row["actions"])


def test_less_strength_changes_less_and_is_expected_to_gain_less(restore: RestoreStage, photo: np.ndarray) -> None:
    dirty = (photo + np.random.default_rng(0).normal(0, 30, photo.shape)).clip(0, 255).astype(np.uint8)
    table = rows_of(image=[encoded(dirty)])
    found = []
    for overrides in (["restoration.strength=0.5"], ["restoration.strengths={noise: 0.5}"]):
        recipe = load_recipe(overrides=overrides)
        found.append(through(table, RestoreStage(recipe, "cpu"), recipe)[0])
    full = through(table, restore)[0]
    for row in found:
        assert row["change_psnr"] > full["change_psnr"] + 2
        assert 0 < row["expected_gain"] < full["expected_gain"] - 1
    half = through(table, RestoreStage(recipe := load_recipe(overrides=["restoration.strength=0.5"]), "cpu"), recipe)[0]
    assert half["change_psnr"] == pytest.approx(full["change_psnr"] + 6.02, abs=0.3)


def test_a_lossy_format_is_measured(restore: RestoreStage, photo: np.ndarray) -> None:
    dirty = (photo + np.random.default_rng(0).normal(0, 30, photo.shape)).clip(0, 255).astype(np.uint8)
    recipe = load_recipe(overrides=["output.format=jpeg", "output.quality=60", "output.least_psnr=38"])
    row = through(rows_of(image=[encoded(dirty)]), restore, recipe)[0]
    assert row["image_format"] == "jpeg" and row["encoding_psnr"] >= 38
    assert row["image_pixels_sha256"] == pixels_sha256(decode_image(row["image"]))


def test_a_mask_of_another_size_fails_the_row() -> None:
    row = decoded(rows_of(image=[encoded(noise(9, 9))], mask=[encoded(noise(9, 8))]))[0]
    assert row["error_stage"] == "decode" and "8 x 9" in row["error_message"]


def test_a_broken_truth_or_reference_is_noted_and_costs_nothing() -> None:
    table = rows_of(image=[encoded(noise(9, 9))], truth=[b"broken"], references=[[b"broken", encoded(noise(9, 9))]])
    row = decoded(table)[0]
    assert row["error_type"] is None
    assert len(row["references"]) == 1
    assert "truth" in row["notes"][0] and "reference 1" in row["notes"][1]


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA"])
def test_channels_stay_as_they_were_and_alpha_is_untouched(restore: RestoreStage, photo: np.ndarray, mode: str) -> None:
    dirty = (photo + np.random.default_rng(0).normal(0, 30, photo.shape)).clip(0, 255).astype(np.uint8)
    picture = Image.fromarray(dirty).convert(mode)
    if mode != "L":
        picture.putalpha(Image.fromarray(noise(*photo.shape[:2])[..., 0]))
    file = io.BytesIO()
    picture.save(file, "PNG")
    row = through(rows_of(image=[file.getvalue()]), restore)[0]
    out = Image.open(io.BytesIO(row["image"]))
    assert row["status"] == "restored" and out.mode == mode
    if mode != "L":
        assert np.array_equal(np.asarray(out)[..., -1], np.asarray(picture)[..., -1])


def test_colours_are_given_only_when_asked_for_and_marked_for_review(photo: np.ndarray) -> None:
    recipe = load_recipe("colourise")
    grey = encoded(np.asarray(Image.fromarray(photo).convert("L")))
    row = through(rows_of(image=[grey], caption=["a brown bear"]), RestoreStage(recipe, "cpu"), recipe)[0]
    assert row["status"] == "review" and "colours are invented" in row["reasons"]
    assert Image.open(io.BytesIO(row["image"])).mode == "RGB"
    assert row["caption_agreement"] is not None


def test_a_prefix_goes_before_the_added_columns_only(restore: RestoreStage) -> None:
    recipe = load_recipe(overrides=["output.prefix=new_"])
    row = through(rows_of(image=[encoded(noise(9, 9))], shelf=[4]), restore, recipe)[0]
    assert row["shelf"] == 4 and row["new_status"] in ("kept", "restored", "review")


def test_one_row_that_the_model_cannot_take_does_not_cost_the_others(
    restore: RestoreStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = restore._restorer.restore_batch

    def trips(requests: Any) -> Any:
        if any(request.caption == "poison" for request in requests):
            raise RuntimeError("out of memory")
        return real(requests)

    monkeypatch.setattr(restore._restorer, "restore_batch", trips)
    table = rows_of(image=[encoded(noise(9, 9))] * 3, caption=["a", "poison", "b"])
    rows = through(table, restore)
    assert [row["error_stage"] for row in rows] == [None, "restore", None]
    assert "out of memory" in rows[1]["error_message"]
