from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from pipeline.errors import OutputError
from pipeline.restoration.judge import Judge
from pipeline.restoration.model import CompactModel
from pipeline.training.data import EVEN, Batch, Photo, Sampler
from pipeline.training.judging import Known, fit_judge
from pipeline.training.restoring import TrainingPlan, train
from tests.conftest import noise
from tests.training.test_training import TINY

PLAN = TrainingPlan(steps=3, batch=4, part="judge", mixture=EVEN, checkpoint_every=2)


@pytest.fixture(scope="module")
def photos() -> list[Photo]:
    pictures = [torch.from_numpy(noise(230, 240, seed)).permute(2, 0, 1) for seed in range(6)]
    return [Photo(pixels, ("a picture of blots",)) for pixels in pictures]


def run(photos: list[Photo], folder: Path, plan: TrainingPlan = PLAN) -> tuple[CompactModel, CompactModel]:
    """A model before and after its judge was trained."""
    torch.manual_seed(0)
    start = CompactModel(TINY)
    return start, train(photos, [], folder, TINY, plan, torch.device("cpu"), lambda progress: None, start)


def test_the_judge_learns_and_nothing_else(photos: list[Photo], tmp_path: Path) -> None:
    before, after = (model.state_dict() for model in run(photos, tmp_path))
    assert {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])} == {"judge"}


def test_a_run_that_was_killed_goes_on(photos: list[Photo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, whole = run(photos, tmp_path / "whole")
    steps, batch = [], Sampler.batch

    def killed(self: Sampler, step: int, size: int) -> Batch:
        steps.append(step)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return batch(self, step, size)

    monkeypatch.setattr(Sampler, "batch", killed)
    with pytest.raises(KeyboardInterrupt):
        run(photos, tmp_path / "killed")
    _, again = run(photos, tmp_path / "killed")
    assert steps == [0, 1, 2, 2]
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in whole.state_dict().items())
    with pytest.raises(OutputError, match="another plan"):
        run(photos, tmp_path / "killed", dataclasses.replace(PLAN, seed=9))
    with pytest.raises(OutputError, match="another plan"):
        run(photos[:5], tmp_path / "killed")


def test_a_judge_hears_what_tells_of_the_error() -> None:
    dice = torch.Generator().manual_seed(0)
    pixels, vector, found = (torch.randn(2000, width, generator=dice) for width in (4, 6, 5))
    error = (0.8 * found[:, 2] - 6).exp()  # and the pixels know nothing of it
    told = fit_judge(Judge(6, 5), Known(pixels, vector, found, error), seed=0)
    assert told["judge"] < 0.3 * told["judge_before"]


def test_a_judge_does_not_get_worse_by_what_tells_nothing() -> None:
    dice = torch.Generator().manual_seed(0)
    pixels, vector, found = (torch.randn(400, width, generator=dice) for width in (4, 6, 5))
    told = fit_judge(Judge(6, 5), Known(pixels, vector, found, (torch.randn(400, generator=dice) - 6).exp()), seed=0)
    assert told["judge"] <= told["judge_before"]
