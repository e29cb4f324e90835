from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from benchmarks import ledger, scores
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
