"""The whole job, on a real Ray."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
from PIL import Image
from transformers import Swin2SRConfig, Swin2SRForImageSuperResolution

from jobs.cli import main
from pipeline import flow
from pipeline.cluster import Pool
from pipeline.errors import ConservatorError, ModelError, OutputError, RecipeError, SourceError
from pipeline.estimate import estimate
from pipeline.lake.output import Output
from pipeline.lake.reader import plan_parts
from pipeline.plan import prepare
from pipeline.recipe import Recipe, load_recipe
from pipeline.reporting.summary import as_text
from pipeline.restoration.generator import Generator, GeneratorConfig
from pipeline.restoration.weights import save_model
from pipeline.schema import OUTPUT
from tests.conftest import ONE_ACTOR, ROOT, encoded, noise

Write = Callable[..., Path]

pytestmark = pytest.mark.usefixtures("ray_session")


def recipe_of(source: Path | str, output: Path | str, *overrides: str) -> Recipe:
    return load_recipe(overrides=[ONE_ACTOR, *overrides], source__uri=[str(source)], output__uri=str(output))


def table_of(output: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(output / "data").to_pylist()
    return rows


def test_the_sample_archive_comes_back_better(tmp_path: Path) -> None:
    recipe = load_recipe(
        str(ROOT / "samples/recipe.yaml"), source__uri=[str(ROOT / "samples/archive")], output__uri=str(tmp_path)
    )
    summary = flow.restore(prepare(recipe))
    source = pq.read_table(ROOT / "samples/archive")
    rows = table_of(tmp_path)
    assert summary.rows == len(rows) == source.num_rows
    assert sorted(row["id"] for row in rows) == sorted(source["id"].to_pylist())
    assert summary.scores["psnr_after"] > summary.scores["psnr_before"] + 2
    assert summary.speed and summary.bare_speed and summary.device == "cpu"
    assert summary.first_seconds and 0 < summary.first_seconds < summary.seconds
    assert summary.worse == 0
    originals = {row["id"]: row for row in source.to_pylist()}
    for row in rows:
        image = Image.open(io.BytesIO(row["image"]))
        image.load()
        assert image.size == (row["image_width"], row["image_height"])
        if row["status"] == "kept":
            assert row["image"] == originals[row["id"]]["image"]
        assert row["license"] == originals[row["id"]]["license"]
    assert {row["recipe_digest"] for row in rows} == {recipe.digest()}
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written["rows"] == len(rows) and written["by_status"] == summary.by_status
    page = (tmp_path / "report.html").read_text()
    assert all(row["id"] in page for row in rows if row["status"] == "restored")
    assert 'src="http' not in page


def test_lost_images_are_made_up_enlarged_ones_are_larger_and_both_are_in_the_report(
    write_table: Write, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"side": 32, "widths": (16, 24), "blocks": 1, "width": 32, "heads": 2}
    save_model(Generator(GeneratorConfig(name="tiny", **sizes)), tmp_path / "generator", "a card")
    small = {"image_size": 64, "embed_dim": 24, "depths": [2], "num_heads": [2], "window_size": 8, "upscale": 2}
    Swin2SRForImageSuperResolution(Swin2SRConfig(**small)).save_pretrained(tmp_path / "swin")
    images = [None, b"no image", encoded(noise(40, 50)), None]
    captions = ["a red dog", "an old town", "blots", ""]
    write_table([{"id": f"{n}", "image": images[n], "caption": captions[n]} for n in range(4)])
    chain = f"restoration.model=[compact, 'swin2sr:{tmp_path / 'swin'}']"
    maker = f"restoration.generator={tmp_path / 'generator'}"
    recipe = recipe_of(tmp_path / "source", tmp_path / "out", "restoration.lost=generate", maker, chain)
    summary = flow.restore(prepare(recipe))
    rows = sorted(table_of(tmp_path / "out"), key=lambda row: str(row["id"]))
    assert [row["status"] for row in rows][:2] == ["generated"] * 2 and rows[3]["status"] == "failed"
    assert summary.by_status["generated"] == 2 and summary.rows == 4
    assert (rows[2]["image_height"], rows[2]["image_width"]) == (80, 100)
    page = (tmp_path / "out/report.html").read_text()
    assert "made of its caption" in page and page.count('class="compare alone"') == 2


def mixed_rows(count: int = 24) -> list[dict[str, Any]]:
    """Rows of all sizes, of which seven are broken."""
    good = [encoded(noise(20 + 37 * n, 400 - 11 * n, n), "JPEG" if n % 2 else "PNG") for n in range(count - 7)]
    broken = [None, b"", b"<html>", good[0][:60], good[1][:-300], good[2][:8], bytes(1000)]
    images = good + broken
    order = np.random.default_rng(0).permutation(count)
    return [{"id": f"id-{n}", "image": images[n], "caption": None, "shelf": int(n)} for n in order]


def test_every_row_comes_out_once_and_broken_ones_say_why(write_table: Write, tmp_path: Path) -> None:
    rows = mixed_rows()
    kind = pa.schema([("id", pa.string()), ("image", pa.binary()), ("caption", pa.string()), ("shelf", pa.int64())])
    write_table(rows[:20], "source/a.parquet", kind)
    write_table(rows[20:], "source/b.parquet", kind)
    write_table([{"id": f"typed-{n}", "image": n} for n in range(3)], "source/c.parquet")
    write_table([{"id": "no-image", "shelf": 7}], "source/d.parquet")
    summary = flow.restore(prepare(recipe_of(tmp_path / "source", tmp_path / "out")))
    out = {row["id"]: row for row in table_of(tmp_path / "out")}
    assert summary.rows == len(out) == 28
    failed = {name: row for name, row in out.items() if row["status"] == "failed"}
    assert len(failed) == summary.by_status["failed"] == 6 + 3 + 1
    assert all(row["error_stage"] == "decode" and row["error_message"] for row in failed.values())
    assert failed["typed-1"]["error_type"] == "UnsupportedColumn" and "int64" in failed["typed-1"]["error_message"]
    assert failed["no-image"]["shelf"] == 7
    for row in rows:
        assert out[row["id"]]["shelf"] == row["shelf"]


def test_decoding_does_not_run_inside_the_restoring_actor(write_table: Write, tmp_path: Path) -> None:
    write_table([{"id": "a", "image": encoded(noise(40, 40))}])
    run = prepare(recipe_of(tmp_path / "source", tmp_path / "out"))
    operators = [
        line.split(":")[0]
        for line in flow.compose(run, plan_parts(run.source.files, {}, {})).materialize().stats().splitlines()
        if line.startswith("Operator")
    ]
    actor = [name for name in operators if "(Restore)" in name]
    assert len(actor) == 1 and "decode" not in actor[0] and "encode" not in actor[0]
    assert any("Source" in name for name in operators)
    assert not any("SplitBlocks" in name for name in operators)  # Ray does not cut up what is handed on


def test_the_flow_can_be_composed_for_gpus(write_table: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_table([{"id": "a", "image": encoded(noise(40, 40))}])
    run = prepare(recipe_of(tmp_path / "source", tmp_path / "out"))
    monkeypatch.setattr(flow, "pool_of", lambda recipe, rows: Pool("cuda", 2))
    (restore,) = [
        operator
        for operator in flow.compose(run, plan_parts(run.source.files, {}, {}))._logical_plan.dag.post_order_iter()
        if "Restore" in operator.name
    ]
    assert restore.ray_remote_args["num_gpus"] == 1


def test_what_is_found_is_told_before_the_model_is_looked_at(write_table: Write, tmp_path: Path) -> None:
    write_table([{"id": "a", "image": encoded(noise(40, 40))}])
    told: list[int] = []
    run = prepare(recipe_of(tmp_path / "source", tmp_path / "out"), found=lambda run: told.append(run.rows))
    assert told == [1] == [run.rows]
    with pytest.raises(ModelError, match="no/model"):
        prepare(
            recipe_of(tmp_path / "source", tmp_path / "out", "restoration.model=/no/model"),
            found=lambda run: told.append(run.rows),
        )
    assert told == [1, 1]


@pytest.mark.slow
def test_a_limit_takes_the_first_rows(write_table: Write, tmp_path: Path) -> None:
    write_table([{"id": f"a{n}", "image": encoded(noise(20, 20, n))} for n in range(5)], "source/a.parquet")
    write_table([{"id": f"b{n}", "image": encoded(noise(20, 20, n)), "shelf": n} for n in range(5)], "source/b.parquet")
    recipe = recipe_of(tmp_path / "source", tmp_path / "out", "limits.rows=7")
    assert flow.restore(prepare(recipe)).rows == 7
    assert sorted(row["id"] for row in table_of(tmp_path / "out")) == ["a0", "a1", "a2", "a3", "a4", "b0", "b1"]


@pytest.mark.slow
def test_a_limit_takes_the_first_row_groups_of_a_file(tmp_path: Path) -> None:
    table = pa.table({"id": [f"{n}" for n in range(40)], "image": [encoded(noise(8, 8, n)) for n in range(40)]})
    ballast = pa.array([bytes(9_000_000 if n < 20 else 10) for n in range(40)])
    pq.write_table(table.append_column("ballast", ballast), tmp_path / "a.parquet", 5, compression="none")
    recipe = load_recipe(source__uri=[str(tmp_path / "a.parquet")], output__uri=str(tmp_path / "out"), limits__rows=23)
    flow.restore(prepare(recipe))
    assert sorted(int(row["id"]) for row in table_of(tmp_path / "out")) == list(range(23))


@pytest.mark.parametrize(
    "name",
    [
        "scans.parquet",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("scans.parq", "scans.PQ", "scans 1.table")),
    ],
)
def test_a_single_file_may_lie_beside_the_output(write_table: Write, tmp_path: Path, name: str) -> None:
    path = write_table([{"id": "a", "image": encoded(noise(20, 20))}], name)
    run = prepare(recipe_of(path, tmp_path / "out"))
    assert run.rows == 1 and flow.restore(run).rows == 1


@pytest.mark.slow
def test_files_that_disagree_on_a_caption_and_a_number_go_together(write_table: Write, tmp_path: Path) -> None:
    image = encoded(noise(20, 20))
    write_table([{"id": "a", "image": image, "caption": "a cat", "shelf": 2**60}], "source/a.parquet")
    write_table([{"id": "b", "image": image, "caption": ["a", "dog"], "shelf": 0.5}], "source/b.parquet")
    flow.restore(prepare(recipe_of(tmp_path / "source", tmp_path / "out")))
    out = {row["id"]: (row["caption"], row["shelf"]) for row in table_of(tmp_path / "out")}
    assert out == {"a": (["a cat"], str(2**60)), "b": (["a", "dog"], "0.5")}


def test_images_are_taken_from_beside_their_own_table(write_table: Write, tmp_path: Path) -> None:
    for name, side in (("one", 20), ("two", 30)):
        write_table([{"id": name, "image": "scan.png"}], f"{name}/a.parquet")
        (tmp_path / name / "scan.png").write_bytes(encoded(noise(side, side)))
    recipe = load_recipe(source__uri=[str(tmp_path / "one"), str(tmp_path / "two")], output__uri=str(tmp_path / "out"))
    flow.restore(prepare(recipe))
    assert {row["id"]: row["image_width"] for row in table_of(tmp_path / "out")} == {"one": 20, "two": 30}


@pytest.mark.slow
def test_images_beside_the_table_are_fetched_by_uri(write_table: Write, tmp_path: Path) -> None:
    (tmp_path / "source/scans").mkdir(parents=True)
    (tmp_path / "source/scans/a.png").write_bytes(encoded(noise(30, 30)))
    uris = ["scans/a.png", "scans/gone.png", "/etc/passwd"]
    write_table([{"id": uri, "image": uri} for uri in uris])
    flow.restore(prepare(recipe_of(tmp_path / "source", tmp_path / "out")))
    out = {row["id"]: row for row in table_of(tmp_path / "out")}
    assert [out[uri]["error_type"] for uri in uris] == [None, "UnreadableImage", "ForbiddenURI"]
    assert out["scans/a.png"]["source_uri"] == "scans/a.png"


def test_an_empty_source_gives_an_empty_run(write_table: Write, tmp_path: Path) -> None:
    write_table([], schema=pa.schema([("id", pa.string()), ("image", pa.binary())]))
    assert flow.restore(prepare(recipe_of(tmp_path / "source", tmp_path / "out"))).rows == 0
    assert (tmp_path / "out/report.html").exists()
    assert main(["report", str(tmp_path / "out")]) == 0
    assert pq.read_table(tmp_path / "out/data").schema.names == ["id", *OUTPUT.names]


def test_a_broken_page_in_a_file_is_blamed_on_the_source(write_table: Write, tmp_path: Path) -> None:
    path = write_table([{"id": "a", "image": encoded(noise(90, 90))}])
    content = bytearray(path.read_bytes())
    content[4:-1000] = bytes(len(content) - 1004)
    path.write_bytes(content)
    with pytest.raises(ConservatorError, match=r"broken|could not be read"):
        flow.restore(prepare(recipe_of(tmp_path / "source", tmp_path / "out")))


@pytest.mark.slow
def test_hive_partitions_become_columns(write_table: Write, tmp_path: Path) -> None:
    write_table([{"id": "a", "image": encoded(noise(20, 20))}], "source/year=1911/a.parquet")
    flow.restore(prepare(recipe_of(tmp_path / "source", tmp_path / "out")))
    assert str(table_of(tmp_path / "out")[0]["year"]) == "1911"


def test_columns_that_would_collide_need_a_prefix(write_table: Write, tmp_path: Path) -> None:
    write_table([{"id": "a", "image": encoded(noise(20, 20)), "status": "mine"}])
    with pytest.raises(SourceError, match=r"status.*output\.prefix"):
        prepare(recipe_of(tmp_path / "source", tmp_path / "out"))
    recipe = recipe_of(tmp_path / "source", tmp_path / "out", "output.prefix=new_")
    summary = flow.restore(prepare(recipe))
    row = table_of(tmp_path / "out")[0]
    assert row["status"] == "mine" and row["new_status"] in summary.by_status
    assert list(row) == ["id", "status", *(f"new_{name}" for name in OUTPUT.names)]


@pytest.mark.parametrize("output", ["source/out", "source", "."])
def test_an_output_inside_the_source_is_refused(write_table: Write, tmp_path: Path, output: str) -> None:
    write_table([{"id": "a", "image": encoded(noise(20, 20))}])
    with pytest.raises(SourceError, match="another --output"):
        prepare(recipe_of(tmp_path / "source" if output != "." else tmp_path, tmp_path / output))


@pytest.mark.slow
def test_a_finished_run_is_only_replaced_on_request(write_table: Write, tmp_path: Path) -> None:
    write_table([{"id": "a", "image": encoded(noise(20, 20))}])
    recipe = recipe_of(tmp_path / "source", tmp_path / "out")
    flow.restore(prepare(recipe))
    assert not prepare(recipe).is_needed
    again = flow.restore(prepare(recipe, fresh=True))
    assert {row["run_id"] for row in table_of(tmp_path / "out")} == {again.run_id}


def test_a_gpu_that_is_not_there_is_not_waited_for(write_table: Write, tmp_path: Path) -> None:
    if ray.cluster_resources().get("GPU"):
        pytest.skip("this machine has a GPU")
    write_table([{"id": "a", "image": encoded(noise(20, 20))}])
    with pytest.raises(RecipeError, match="no GPU"):
        flow.restore(prepare(recipe_of(tmp_path / "source", tmp_path / "out", "restoration.device=cuda")))


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--set", "restoration.tiles=1"], 2, "restoration.tile"),
        (["--source", "/nowhere/at/all"], 2, "does not exist"),
        (["--set", "columns.image=pic"], 2, "no column 'pic'"),
        (["--set", "restoration.model=/no/model"], 2, "no model"),
        (["--recipe", "nothing.yaml"], 2, "nothing.yaml"),
        pytest.param([], 0, "", marks=pytest.mark.slow),
    ],
)
def test_exit_codes_tell_what_was_wrong(
    write_table: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], code: int, words: str
) -> None:
    path = write_table([{"id": "a", "image": encoded(noise(20, 20))}])
    arguments = ["restore", "--source", str(path), "--output", str(tmp_path / "out"), *options]
    if "--source" in options:
        arguments = ["restore", "--output", str(tmp_path / "out"), *options]
    assert main(arguments) == code
    assert words in capsys.readouterr().err


def test_failed_rows_give_exit_code_three_and_the_report_can_be_made_again(
    write_table: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "<script>alert(1)</script>"
    path = write_table([{"id": "a", "image": encoded(noise(20, 20))}, {"id": name, "image": b"broken"}])
    assert main(["restore", "--source", str(path), "--output", str(tmp_path / "out")]) == 3
    page = (tmp_path / "out/report.html").read_text()
    assert name not in page and "&lt;script&gt;alert" in page
    (tmp_path / "out/report.html").unlink()
    assert main(["report", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out/report.html").read_text() == page
    assert main(["report", str(tmp_path / "source")]) == 2
    assert "no finished run" in capsys.readouterr().err


@pytest.mark.slow
def test_an_estimate_is_made_of_rows_from_all_over_the_source(write_table: Write, tmp_path: Path) -> None:
    sizes = {0: 40, 1: 40, 2: 120, 3: 120}
    for part, side in sizes.items():
        rows = [{"id": f"{part}-{n}", "image": encoded(noise(side, side, n))} for n in range(30)]
        write_table(rows, f"source/part-{part}.parquet")
    run = prepare(recipe_of(tmp_path / "source", tmp_path / "out", "resources.prices.core_hour=0.5"))
    found = estimate(run)
    assert found.sampled == 24 and found.megapixels == pytest.approx((40**2 + 120**2) / 2 / 1e6)
    assert min(found.start, found.decode, found.restore, found.encode) > 0
    assert found.seconds > found.flow_seconds > 120 * found.restore / found.pool.actors
    assert found.actor_hours == pytest.approx((found.start + found.flow_seconds) * found.pool.actors / 3600)
    assert " EUR" in found.as_text() and "hours of cores" in found.as_text()


@pytest.mark.slow
def test_a_run_tells_what_it_cost(write_table: Write, tmp_path: Path) -> None:
    write_table([{"id": f"{n}", "image": encoded(noise(30, 30, n))} for n in range(3)])
    prices = ["resources.prices.actor_hour=2", "resources.prices.core_hour=1", "resources.prices.currency=CHF"]
    summary = flow.restore(prepare(recipe_of(tmp_path / "source", tmp_path / "out", *prices)))
    assert summary.cost == pytest.approx(2 * summary.actor_hours + summary.core_hours) and summary.core_hours > 0
    assert f"{summary.cost:.2f} CHF" in as_text(summary)
    (told,) = [json.loads(path.read_text()) for path in tmp_path.glob("out/summary.json")]
    assert told["cost"] == summary.cost and told["currency"] == "CHF"


def test_a_dry_run_shows_the_plan_and_writes_its_estimate_alone(
    write_table: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_table([{"id": f"{n}", "image": encoded(noise(60, 60, n))} for n in range(5)])
    assert main(["restore", "--source", str(path), "--output", str(tmp_path / "out"), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "5 rows of 1 files" in shown and "estimate" in shown and "seconds" in shown
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == ["estimate.json"]


@pytest.mark.slow
def test_a_report_tells_what_was_estimated_beside_what_it_took(
    write_table: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_table([{"id": f"{n}", "image": encoded(noise(60, 60, n))} for n in range(5)])
    prices = ["--set", "resources.prices.core_hour=1000"]
    job = ["restore", "--source", str(path), "--output", str(tmp_path / "out"), *prices]
    assert main([*job, "--dry-run"]) == 0
    told = json.loads((tmp_path / "out/state/estimate.json").read_text())
    assert main([*job, "--limit", "3"]) == 0
    assert "as estimated" in capsys.readouterr().out
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    hours = (told["start_seconds"] + 3 * told["row_seconds"]) * told["cores"] / 3600
    assert summary["estimate"]["core_hours"] == pytest.approx(hours)
    assert summary["estimate"]["cost"] == pytest.approx(1000 * hours)
    assert "as estimated" in (tmp_path / "out/report.html").read_text()
    # what another recipe would have taken is not told
    assert main([*job, "--set", "gate.clean_above=0.9", "--fresh"]) == 0
    assert json.loads((tmp_path / "out/summary.json").read_text())["estimate"] is None


def test_an_estimate_that_cannot_be_kept_is_told(
    write_table: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(self: Output, told: dict[str, Any]) -> None:
        raise OutputError("no rights")

    monkeypatch.setattr(Output, "keep_estimate", refuse)
    path = write_table([{"id": "a", "image": encoded(noise(60, 60))}])
    assert main(["restore", "--source", str(path), "--output", str(tmp_path / "out"), "--dry-run"]) == 0
    assert "no rights" in caplog.text


def test_an_estimate_without_its_model_is_refused(write_table: Write, tmp_path: Path) -> None:
    write_table([{"id": "a", "image": encoded(noise(40, 40))}])
    run = prepare(recipe_of(tmp_path / "source", tmp_path / "out"))
    gone = dataclasses.replace(run, recipe=run.recipe.model_copy(deep=True))
    gone.recipe.restoration.__dict__["model"] = "/no/model"
    with pytest.raises(ModelError, match="/no/model"):
        estimate(gone)


@pytest.mark.slow
def test_a_job_of_its_own_process_is_quiet_about_deprecations(write_table: Write, tmp_path: Path) -> None:
    path = write_table([{"id": "a", "image": encoded(noise(20, 20))}])
    command = [
        sys.executable,
        "-W",
        "always",
        "-m",
        "jobs.restore",
        "--source",
        str(path),
        "--output",
        str(tmp_path / "o"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    bare = [sys.executable, "-W", "always", "-c", "import ray.data; ray.data.DataContext.get_current()"]
    rays_own = _deprecations(subprocess.run(bare, capture_output=True, text=True, cwd=ROOT).stderr)
    assert _deprecations(done.stderr) <= rays_own
    assert "PSNR" not in done.stdout and "rows" in done.stdout


def _deprecations(log: str) -> set[str]:
    """Lines about something of Ray's that is deprecated."""
    return {line for line in log.splitlines() if "deprecat" in line.lower() and "ray" in line.lower()}
