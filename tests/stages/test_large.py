from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tifffile

from pipeline.imaging.decode import decode_image
from pipeline.imaging.original import pixels_sha256
from pipeline.lake.fetch import UriReader
from pipeline.lake.images import ImageWriter
from pipeline.recipe import Recipe, load_recipe
from pipeline.schema import ROW_KEY
from pipeline.stages.decode import DecodeStage
from pipeline.stages.encode import EncodeStage
from pipeline.stages.restore import RestoreStage
from pipeline.stages.table import stage_rows
from tests.conftest import encoded
from tests.imaging.files import profile_for

TILES = ["restoration.tile=272", "restoration.margin=8"]
WHOLE, BANDS = load_recipe(overrides=TILES), load_recipe(overrides=[*TILES, "limits.max_megapixels=0.05"])
PASSED = pa.schema([("id", pa.string())])
Through = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RestoreStage]:
    out = tmp_path_factory.mktemp("out")
    return {
        "whole": RestoreStage(WHOLE, "cpu"),
        "bands": RestoreStage(
            BANDS, "cpu", readers={"": UriReader("/", (), 10**9, 1)}, publish=ImageWriter(str(out)).file
        ),
    }


@pytest.fixture
def through(tmp_path: Path, stages: dict[str, RestoreStage]) -> Through:
    """A file through all stages, whole or in bands."""

    def run(path: Path, how: str, recipe: Recipe | None = None, **columns: Any) -> dict[str, Any]:
        recipe = recipe or (WHOLE if how == "whole" else BANDS)
        reader = UriReader(str(tmp_path), (), 10**9, 1)
        stage = DecodeStage(recipe, recipe.columns, PASSED, reader, reader.open)
        table = pa.table({"id": ["a"], "image": [str(path)]} | {name: [value] for name, value in columns.items()})
        decoded = pa.concat_tables(list(stage(table)))
        rows: list[dict[str, Any]] = EncodeStage(recipe, "run")(stages[how](decoded)).to_pylist()
        return rows[0]

    return run


def scan(folder: Path, photo: np.ndarray, deep: bool = False, name: str = "scan.tif", **options: Any) -> Path:
    """A noisy picture of 1300 x 660 pixels: several bands, rows of tiles, and strips of its thumbnail."""
    tiled = np.tile(photo, (8, 5, 1))[:1300, :660].astype(np.float32)
    values = (tiled + np.random.default_rng(0).normal(0, 25, tiled.shape)).clip(0, 255)
    samples = np.rint(values * 257).astype(np.uint16) if deep else np.rint(values).astype(np.uint8)
    path = folder / name
    tifffile.imwrite(path, samples, photometric="rgb", metadata=None, **options)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("deep", [False, True])
def test_band_by_band_gives_the_pixels_that_the_whole_gives(
    tmp_path: Path, photo: np.ndarray, through: Through, deep: bool
) -> None:
    options = {"iccprofile": profile_for("tiff rgb")} if deep else {"tile": (64, 64)}
    path = scan(tmp_path, photo, deep, compression="deflate", **options)
    whole, bands = through(path, "whole"), through(path, "bands")
    assert (whole["status"], bands["status"]) == ("restored", "restored")
    assert bands["image"] is None and bands["image_uri"].endswith(".tif")
    data = Path(bands["image_uri"]).read_bytes()
    written, expected = decode_image(data), decode_image(whole["image"])
    assert np.array_equal(written.samples, expected.samples)
    assert written.metadata.icc == expected.metadata.icc
    assert hashlib.sha256(data).hexdigest() == bands["image_sha256"] and len(data) == bands["image_bytes"]
    assert pixels_sha256(written) == bands["image_pixels_sha256"] == whole["image_pixels_sha256"]
    for name in ("source_sha256", "source_pixels_sha256", "source_layout", "image_layout", "digital_source"):
        assert bands[name] == whole[name]
    for name in ("expected_psnr", "noise_sigma", "missing"):
        assert bands[name] == pytest.approx(whole[name], abs=1e-3)
    assert bands["expected_gain"] == pytest.approx(whole["expected_gain"], abs=0.5)  # by windows
    assert bands["worse_probability"] == pytest.approx(whole["worse_probability"], abs=0.05)  # by small pictures
    assert b"algorithmicallyEnhanced" in (written.metadata.xmp or b"") or b"composite" in (written.metadata.xmp or b"")
    assert bands["before_preview"] and bands["after_preview"] and bands["change_mask"]


def test_missing_tiles_are_filled_and_a_person_is_asked(tmp_path: Path, photo: np.ndarray, through: Through) -> None:
    path = scan(tmp_path, photo, tile=(64, 64), compression="deflate")
    with tifffile.TiffFile(path) as file:
        offset = file.pages[0].dataoffsets[7]
    data = bytearray(path.read_bytes())
    data[offset : offset + 40] = bytes(40)
    path.write_bytes(data)
    row = through(path, "bands")
    assert row["status"] == "review" and any("broken" in reason for reason in row["reasons"])
    assert any("missing" in note for note in row["notes"])
    index = 7 % -(-660 // 64)
    hole = decode_image(Path(row["image_uri"]).read_bytes()).samples[10:54, index * 64 + 10 : index * 64 + 54]
    assert hole.mean() > 10
    assert any(action["name"] == "fill" for action in row["actions"])


def test_a_kept_image_is_named_where_it_lies(tmp_path: Path, photo: np.ndarray, through: Through) -> None:
    path = tmp_path / "clean.tif"
    tifffile.imwrite(path, np.tile(photo, (8, 5, 1))[:1300, :660], photometric="rgb", metadata=None)
    row = through(path, "bands")
    assert row["status"] == "kept" and row["image"] is None
    assert row["image_uri"] == str(path) and row["image_sha256"] == row["source_sha256"]
    assert row["image_bytes"] == path.stat().st_size and row["after_preview"] == row["before_preview"]


def test_what_cannot_be_done_in_bands_says_so(tmp_path: Path, photo: np.ndarray, through: Through) -> None:
    path = scan(tmp_path, photo)
    masked = through(path, "bands", mask=str(path))
    assert masked["status"] == "failed" and "mask" in masked["error_message"]
    huge = load_recipe(overrides=[*TILES, "limits.max_megapixels=0.05", "limits.max_streamed_megapixels=0.1"])
    refused = through(path, "bands", huge)
    assert refused["error_type"] == "ImageTooLarge" and "max_streamed_megapixels" in refused["error_message"]
    other = scan(tmp_path, photo, name="scan.image")
    assert "limits.max_megapixels" in through(other, "bands")["error_message"]


def test_nothing_waits_for_a_giant_that_lies_among_others(tmp_path: Path, photo: np.ndarray) -> None:
    giant, small = scan(tmp_path, photo), tmp_path / "small.png"
    small.write_bytes(encoded(photo[:64, :64]))
    reader = UriReader(str(tmp_path), (), 10**9, 1)
    recipe = load_recipe(overrides=[*TILES, "limits.max_megapixels=0.05", "resources.block_mb=1"])
    stage = DecodeStage(recipe, recipe.columns, PASSED, reader, reader.open)
    paths = [str(path) for path in (small, giant, small, giant, small)]
    tables = list(stage(pa.table({"id": list("abcde"), "image": paths, ROW_KEY: [f"f-{row}" for row in range(5)]})))
    assert [table["id"].to_pylist() for table in tables] == [["b"], ["d"], ["a", "c", "e"]]
    rows = [row for table in tables for row in stage_rows(table)]
    assert [row["source_row"] for row in rows] == ["f-1", "f-3", "f-0", "f-2", "f-4"]
    assert min(table.nbytes for table in tables[:2]) >= recipe.resources.block_bytes("cpu")  # Ray puts nothing to it


def test_a_file_that_goes_away_fails_its_row(
    tmp_path: Path, photo: np.ndarray, stages: dict[str, RestoreStage]
) -> None:
    path = scan(tmp_path, photo)
    reader = UriReader(str(tmp_path), (), 10**9, 1)
    stage = DecodeStage(BANDS, BANDS.columns, PASSED, reader, reader.open)
    decoded = pa.concat_tables(list(stage(pa.table({"id": ["a"], "image": [str(path)]}))))
    path.unlink()
    row = EncodeStage(BANDS, "run")(stages["bands"](decoded)).to_pylist()[0]
    assert (row["status"], row["error_type"]) == ("failed", "UnreadableImage")
