"""What the driver, of which there is one, can do without."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.flow import row_group
from pipeline.lake.reader import plan_parts
from pipeline.plan import prepare
from pipeline.recipe import load_recipe

SAMPLES = Path(__file__).parent.parent / "samples/archive"


def test_a_driver_does_without_torch_where_all_comes_along(tmp_path: Path) -> None:
    program = f"""
import sys
import jobs.restore, pipeline.flow
from pipeline.plan import prepare
from pipeline.recipe import load_recipe
recipe = load_recipe(None, [], source__uri=[{str(SAMPLES)!r}], output__uri={str(tmp_path / "out")!r})
assert prepare(recipe).rows > 0
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def png(side: int) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((side, side), 50).save(file, "PNG")
    return file.getvalue()


def test_row_groups_of_small_images_hold_many_rows(tmp_path: Path) -> None:
    def found(images: list[object], kind: pa.DataType, *options: str) -> int:
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        ids = pa.array([f"{number}" for number in range(len(images))])
        pq.write_table(pa.table({"id": ids, "image": pa.array(images, kind)}), folder / "a.parquet")
        run = prepare(load_recipe(None, options, source__uri=[str(folder)], output__uri=str(tmp_path / "out")))
        return row_group(run, plan_parts(run.source.files, run.wanted, {}))

    small, medium, large = ([png(side) for _ in range(50)] for side in (16, 150, 400))
    assert found(small, pa.binary()) == 1024
    assert 64 < found(medium, pa.binary()) < 1024
    assert found(large, pa.binary()) == 64
    assert found(["a.png"] * 50, pa.string()) == 64  # images of any size
    assert found(small, pa.binary(), "output.images=files") == 64
    assert found(small, pa.binary(), "output.row_group=7") == 7
