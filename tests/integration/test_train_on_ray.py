from __future__ import annotations

import csv
from pathlib import Path

import pytest

from jobs.cli import main
from pipeline.restoration.weights import load_model
from pipeline.training.objective import WEIGHTS
from tests.conftest import encoded, noise


def _train(source: Path, output: Path, *more: str) -> list[dict[str, float]]:
    words = ["train", "--source", str(source), "--held-out", str(source), "--output", str(output), "--steps", "4"]
    words += ["--batch", "4", "--looks", "2", "--patch", "64", "--checkpoint-every", "1", "--device", "cpu", *more]
    assert main(words) == 0
    with (output / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{name: float(value) for name, value in row.items() if value} for row in rows]


@pytest.mark.slow
def test_two_workers_train_as_one_would(
    write_table,
    tmp_path: Path,
    ray_session: None,
    monkeypatch: pytest.MonkeyPatch,  # type: ignore[no-untyped-def]
) -> None:
    rows = [{"image": encoded(noise(224, 224, n)), "captions": [f"picture {n}"]} for n in range(6)]
    path = write_table(rows, "photos.parquet")
    alone = _train(path, tmp_path / "alone")
    monkeypatch.chdir(tmp_path)  # workers have another folder to work in
    together = _train(Path(path.name), Path("together"), "--workers", "2")
    assert len(alone) == len(together) == 4
    for step, (one, other) in enumerate(zip(alone, together, strict=True)):
        near = 0.01 if step == 0 else 0.15  # bfloat16 rounds batches of two and of four differently
        assert set(one) == set(other)
        looked = step in (0, 3)  # the global view learns in those
        terms = set(WEIGHTS) if looked else {"pixels", "error", "lost", "judge"}
        assert terms <= set(one)
        for name in terms:
            assert other[name] == pytest.approx(one[name], rel=near, abs=2e-3), name
    load_model(tmp_path / "together/model")


def test_what_is_wrong_in_a_worker_is_said_as_it_is_without_ray(
    write_table,
    tmp_path: Path,
    ray_session: None,
    capsys: pytest.CaptureFixture[str],  # type: ignore[no-untyped-def]
) -> None:
    path = write_table([{"picture": b"", "captions": ["a"]}], "photos.parquet")
    words = ["train", "--source", str(path), "--output", str(tmp_path / "run"), "--workers", "2"]
    assert main(words) == 2
    assert "has no column 'image'" in capsys.readouterr().err
    assert main([*words, "--workers", "64", "--batch", "64", "--looks", "64"]) == 2
    assert main([*words, "--batch", "15"]) == 2
    assert "multiples of --workers" in capsys.readouterr().err
