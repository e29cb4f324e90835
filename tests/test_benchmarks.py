from __future__ import annotations

import io
import itertools
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks import archive, arms, generation, ledger, scale, scores
from benchmarks.models import dncnn, ffdnet, measure
from pipeline.evaluation.tables import Sample


def _weights(path: Path, widths: list[int]) -> None:
    """Convolutions that return nothing."""
    tensors = {}
    for number, (before, after) in enumerate(itertools.pairwise(widths)):
        tensors[f"model.{2 * number}.weight"] = torch.zeros(after, before, 3, 3)
        tensors[f"model.{2 * number}.bias"] = torch.zeros(after)
    save_file(tensors, path)


def test_planning_over_finished_files_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger.build(tmp_path, 30)
    ledger.measure(tmp_path)
    assert capsys.readouterr().out.startswith("| 30 | 1 | ")


def test_other_denoisers_are_measured_by_the_same_protocol(tmp_path: Path) -> None:
    _weights(tmp_path / "dncnn_color_blind.safetensors", [3, 8, 3])
    _weights(tmp_path / "ffdnet_color.safetensors", [13, 8, 12])
    cpu = torch.device("cpu")
    samples = [Sample(f"{n}", np.full((33, 47, 3), 128, np.uint8), (), {}) for n in range(3)]
    denoisers = {"DnCNN": dncnn(tmp_path, cpu), "FFDNet": ffdnet(tmp_path, cpu)}
    first, second = measure(denoisers, samples, [25])
    assert abs(first["psnr"] - 20.2) < 0.3  # no noise found: the input
    assert second["psnr"] < 7  # an image of nothing
    assert first["mp_per_s"] > 0


def test_scores_are_measured_beside_their_libraries(photo: np.ndarray) -> None:
    pair = (scores.noisy([Sample("one", photo, (), {})])[0], photo)
    rows = {row["score"]: row for row in scores.compare([pair])}
    assert rows["ssim"]["largest difference"] < 1e-3 and rows["ciede2000"]["largest difference"] < 1e-3
    assert all(row["s/MP"] > 0 for row in rows.values())


def test_archives_are_the_same_each_time_and_of_the_sizes_asked_for(tmp_path: Path) -> None:
    megapixels = [archive.build(tmp_path / name, 7, 2, (40, 60)) for name in ("a", "b")]
    one, other = (pq.read_table(tmp_path / name) for name in ("a", "b"))
    assert one.equals(other) and one.num_rows == 7 and megapixels[0] == megapixels[1]
    sizes = [Image.open(io.BytesIO(data)).size for data in one["image"].to_pylist()]
    assert all(40 <= side <= 60 for size in sizes for side in size)


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["loop", "loader"])
def test_a_hand_written_loop_does_all_images(tmp_path: Path, arm: str) -> None:
    archive.build(tmp_path / "source", arms.BATCH + 2, 1, (40, 60))
    done = arms.run(arm, tmp_path / "source", tmp_path / "place")
    assert done["rows"] == arms.BATCH + 2 and done["speed"] > 0 and 0 < done["first"] < done["seconds"]
    assert pq.read_table(tmp_path / "place/out.parquet").num_rows == arms.BATCH + 2


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["conservator", "ray", "daft", "datasets"])
def test_peers_do_all_images(tmp_path: Path, arm: str) -> None:
    if arm in ("daft", "datasets"):
        pytest.importorskip(arm)
    archive.build(tmp_path / "source", 40, 2, (40, 60))
    done = arms.run(arm, tmp_path / "source", tmp_path / "place")
    assert done["rows"] == 40 and done["seconds"] > 0


@pytest.mark.slow
def test_rows_and_machines_are_measured_with_a_model_of_fixed_time(tmp_path: Path) -> None:
    one = scale.measure(60, 6, tmp_path)
    two = scale.measure(60, 6, tmp_path, nodes=2, seconds_a_row=0.01)
    assert one["rows"] == two["rows"] == 60 and one["driver_mb"] > 50


def test_agreement_by_chance_is_told_from_agreement() -> None:
    dice = np.random.default_rng(0)
    assert generation.chance(dice.normal(0.5, 1, 200)) < 0.001
    assert generation.chance(dice.normal(0, 1, 200)) > 0.01


def test_the_frechet_distance_grows_with_the_difference() -> None:
    dice = np.random.default_rng(0)
    one, same, other = dice.normal(0, 1, (400, 5)), dice.normal(0, 1, (400, 5)), dice.normal(2, 1, (400, 5))
    assert generation.frechet(one, one) < 1e-6
    assert generation.frechet(one, same) < 0.3 < 15 < generation.frechet(one, other) < 25
