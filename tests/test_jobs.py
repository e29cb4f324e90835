from __future__ import annotations

import argparse
import csv
import datetime
import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.cli import COMMANDS, main
from jobs.console import execute, until
from pipeline import Restorer
from pipeline.cluster import start_ray
from pipeline.errors import TRY_LATER, ConservatorError
from pipeline.lake.output import open_output
from pipeline.recipe import Recipe
from tests.conftest import encoded, noise

Write = Callable[..., Path]


@pytest.mark.parametrize("words", [["--help"], *([command, "--help"] for command in COMMANDS)])
def test_every_command_has_its_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(words)
    assert exit.value.code == 0
    assert "usage: conservator" in capsys.readouterr().out


def test_an_unknown_command_is_refused() -> None:
    with pytest.raises(SystemExit) as exit:
        main(["repair"])
    assert exit.value.code == 2


def test_a_damaged_archive_has_truth_masks_records_and_licences(write_table: Write, tmp_path: Path) -> None:
    rows = [
        {"id": f"{n}", "image": encoded(noise(80, 90, n)), "captions": ["blots"], "license": "CC0"} for n in range(4)
    ]
    path, out = write_table(rows), tmp_path / "damaged.parquet"
    words = [
        "damage",
        "--source",
        str(path),
        "--output",
        str(out),
        "--kinds",
        "noise,holes,grey+jpeg,clean",
        "--references",
    ]
    assert main(words) == 0
    table = pq.read_table(out).to_pylist()
    kinds = [json.loads(row["damage"])["kinds"] for row in table]
    assert kinds == [["noise"], ["holes"], ["grey", "jpeg"], ["clean"]]
    assert [row["mask"] is not None for row in table] == [False, True, False, False]
    assert [row["references"] is not None for row in table] == [False, True, True, False]
    assert all(row["truth"] and row["license"] == "CC0" and row["caption"] == ["blots"] for row in table)
    again = tmp_path / "again.parquet"
    main([*words[:4], str(again), *words[5:]])
    assert pq.read_table(again) == pq.read_table(out)
    assert main([*words[:6], "rust"]) == 2


@pytest.mark.slow
def test_a_trained_model_can_be_evaluated(
    write_table: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"id": f"{n}", "image": encoded(noise(230, 230, n)), "captions": ["blots"]} for n in range(3)]
    path = write_table(rows, "sets/captioned.parquet")
    write_table(rows[:1], "sets/kodak24.parquet")
    folder = tmp_path / "run"
    words = ["train", "--source", str(path), "--held-out", str(path), "--output", str(folder), "--steps", "2"]
    words += ["--batch", "2", "--looks", "2", "--patch", "32", "--checkpoint-every", "1"]
    assert main(words) == 0
    assert len(list(csv.reader((folder / "curve.csv").open()))) == 3
    card = (folder / "model/MODEL_CARD.md").read_text()
    assert "captioned.parquet" in card and "noise_25" in card
    model = str(folder / "model")
    assert Restorer.from_pretrained(model, device="cpu").restore(noise(20, 20)).array.shape == (20, 20, 3)
    capsys.readouterr()
    assert (
        main(["evaluate", str(tmp_path), "--model", model, "--output", str(tmp_path / "results"), "--limit", "2"]) == 0
    )
    table = capsys.readouterr().out
    assert "noise, sigma 25" in table and "20 % missing" in table
    written = json.loads((tmp_path / "results/evaluation.json").read_text())
    assert set(written["sets"]) == {"kodak24", "captioned"}
    assert main(["evaluate", str(tmp_path / "run")]) == 2


def test_training_without_data_says_where_it_looked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--source", str(tmp_path / "*.parquet"), "--output", str(tmp_path / "run")]) == 2
    assert "*.parquet" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--compile"], ["--patch", "64"], ["--looks", "0"]])
def test_what_a_part_does_not_have_is_refused_for_it(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--source", "a", "--output", "b", "--from", "compact", "--part", "expert", *option]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert option[0] in said and "--part expert" in said


@pytest.mark.parametrize("words", [["train", "--source", "a"], ["evaluate", "a"]])
def test_results_are_not_written_to_a_folder_named_after_a_store(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--output", "s3://bucket/run"])
    assert stopped.value.code == 2 and "mounted folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("address", ["127.0.0.1:1", "http://127.0.0.1:8265", "ray://127.0.0.1:10001"])
def test_a_cluster_that_is_not_there_is_named_at_once(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(ConservatorError, match=address) as raised:
        start_ray(Recipe())
    assert raised.value.exit_code == (2 if "://" in address else TRY_LATER)


@pytest.mark.parametrize("style", ["text", "json"])
def test_what_nobody_foresaw_is_told_without_secrets(
    style: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(arguments: argparse.Namespace) -> int:
        raise RuntimeError("no answer from https://me:hush@store.example/a?sig=hush")

    monkeypatch.setenv("CONSERVATOR_LOG_FORMAT", style)
    assert execute(fail, argparse.Namespace(log_format=style, verbose=False)) == 1
    said = capsys.readouterr().err
    assert "no answer from https://store.example/a" in said and "Traceback" in said and "hush" not in said


def test_models_are_listed_and_shown(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["name", "kind"]
    assert any(line.startswith("compact") and "MB" in line for line in lines)
    assert any("word vectors" in line for line in lines) and any(line.startswith("graph") for line in lines)
    assert main(["models", "show", "compact"]) == 0
    shown = capsys.readouterr().out
    assert "# compact" in shown and "decoder_widths" in shown and "sha256" in shown
    for words in (["show"], ["show", str(tmp_path)], ["show", f"swin2sr:{tmp_path}"]):
        assert main(["models", *words]) == 2


def test_runs_of_an_output_are_told(write_table: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    for run, rows in (("20260101T000000Z-aaaaaa", 3), ("20260102T030405Z-bbbbbb", 5)):
        (out / "reports" / run).mkdir(parents=True)
        summary = {"rows": rows, "by_status": {"restored": rows}, "megapixels": 1.5, "seconds": 12.34, "speed": 0.5}
        (out / "reports" / run / "summary.json").write_text(json.dumps(summary))
    (out / "state").mkdir()
    last = {"run_id": "20260103T000000Z-cccccc", "state": "running", "generation": 0}
    (out / "state/run.json").write_text(json.dumps(last))
    (out / "state/attempts").mkdir()
    for number in range(2):
        told = {"began": f"2026-01-03T00:0{number}:00Z", "rows": 7, "megapixels": 2.0, "seconds": 10.0}
        told |= {"actor_hours": 0.5, "core_hours": 1.0}
        path = out / f"state/attempts/20260103T000000Z-cccccc-{number}.json"
        path.write_text(json.dumps(told | {"ended": "2026-01-03T00:00:00Z"}))
    assert main(["runs", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [
        "20260101T000000Z-aaaaaa",
        "20260102T030405Z-bbbbbb",
        "20260103T000000Z-cccccc",
    ]
    assert "2026-01-02 03:04:05 UTC" in lines[2] and "restored=5" in lines[2] and "not finished" in lines[3]
    assert main(["runs", str(out), "--json"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert told[1]["rows"] == 5 and told[1]["statuses"] == {"restored": 5} and told[2]["state"] == "not finished"
    assert (told[2]["rows"], told[2]["MP"], told[2]["MP/s"], told[2]["actor hours"]) == (14, 4.0, 0.2, 1.0)
    assert [one["began"] for one in told[2]["attempts"]] == ["2026-01-03T00:00:00Z", "2026-01-03T00:01:00Z"]
    assert main(["runs", str(tmp_path / "nowhere")]) == 2


@pytest.mark.parametrize("state", ["running", "stopped", "died"])
def test_a_run_that_lives_is_told_from_one_that_was_killed(
    state: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = open_output(str(tmp_path / "out"))
    output.begin({"run_id": "20260103T000000Z-cccccc", "generation": 1}, "resources: {prices: {core_hour: 3}}")
    lease = output.lease("20260103T000000Z-cccccc")
    with lease:
        if state == "died":  # so that nobody renews it, and nobody gave it back
            path = next((tmp_path / "out/state/lease").glob("*.json"))
            kept = json.loads(path.read_text())
        if state == "running":
            assert main(["runs", str(tmp_path / "out"), "--json"]) == 0
    if state == "died":
        path.write_text(json.dumps(kept | {"host": "another"}))
        os.utime(path, (0, 0))
    if state != "running":
        assert main(["runs", str(tmp_path / "out"), "--json"]) == 0
    (told,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert told["state"] == state


def test_a_run_ends_at_a_time_of_day() -> None:
    now = datetime.datetime.now()
    soon = now + datetime.timedelta(hours=1)
    assert 3540 <= until(soon.strftime("%H:%M")) <= 3600
    assert 0 < until((now - datetime.timedelta(minutes=2)).strftime("%H:%M")) < 86400
    for wrong in ("25:00", "8", "8h", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="time of day"):
            until(wrong)
