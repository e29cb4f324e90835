from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from pipeline.errors import OutputError
from pipeline.restoration.assembly import with_head
from pipeline.restoration.critic import CELLS, SIDE, Critic
from pipeline.restoration.judge import Judge
from pipeline.restoration.model import CompactModel
from pipeline.training.data import EVEN, Batch, Photo, Sampler
from pipeline.training.judging import Known, fit_critic, fit_judge
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
    start = with_head(CompactModel(TINY), "critic")
    return start, train(photos, [], folder, start.config, plan, torch.device("cpu"), lambda progress: None, start)


def test_judge_and_critic_learn_and_nothing_else(photos: list[Photo], tmp_path: Path) -> None:
    before, after = (model.state_dict() for model in run(photos, tmp_path))
    assert {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])} == {
        "judge",
        "critic",
    }


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
    run(photos, tmp_path / "killed", dataclasses.replace(PLAN, steps=4))
    assert steps == [0, 1, 2, 2, 3]  # a run that is over goes on, too
    with pytest.raises(OutputError, match="another plan"):
        run(photos, tmp_path / "killed", dataclasses.replace(PLAN, seed=9))
    with pytest.raises(OutputError, match="another plan"):
        run(photos[:5], tmp_path / "killed")


def known(count: int, error: torch.Tensor | None = None, seed: int = 0) -> tuple[Known, torch.Tensor]:
    """What tells nothing of the error, and which of it is held out."""
    dice = torch.Generator().manual_seed(seed)
    pixels, vector, found = (torch.randn(count, width, generator=dice) for width in (4, 6, 5))
    pairs = torch.randint(0, 256, (count, 6, SIDE, SIDE), generator=dice, dtype=torch.uint8)
    error = (torch.randn(count, generator=dice) - 6).exp() if error is None else error
    before = torch.full((count,), 0.01)
    cells = torch.stack([before, error], 1).log()[..., None, None].expand(-1, -1, CELLS, CELLS).half()
    return Known(pixels, vector, found, pairs, before, error, cells), torch.arange(count) % 8 == 0


def test_a_judge_hears_what_tells_of_the_error() -> None:
    told, chosen = known(2000)
    told = told._replace(error=(0.8 * told.found[:, 2] - 6).exp())  # and the pixels know nothing of it
    found = fit_judge(Judge(6, 5), told, chosen, seed=0)
    assert found["judge"] < 0.3 * found["judge_before"]


def test_a_judge_does_not_get_worse_by_what_tells_nothing() -> None:
    found = fit_judge(Judge(6, 5), *known(400), seed=0)
    assert found["judge"] <= found["judge_before"]


def test_a_critic_does_not_get_worse_by_what_tells_nothing() -> None:
    torch.manual_seed(0)
    critic = Critic((8, 8, 16), 15)
    found = fit_critic(critic, *known(24), 0, lambda step, steps, loss: None)
    assert found["critic"] <= found["critic_before"]


def test_a_critic_sees_what_made_a_result_worse() -> None:
    """Where the picture was bright to the left and no longer is, that was a mistake; numbers say nothing."""
    told, chosen = known(160)
    flat = torch.full_like(told.pairs, 100)
    bad = torch.arange(160) % 3 == 0
    flat[:, :3, :, :40] = 220
    flat[~bad, 3:, :, :40] = 220  # kept there, and changed elsewhere
    flat[~bad, 3:, :, 120:] = 220
    cells = torch.full((160, 2, CELLS, CELLS), -8.0)
    cells[bad, 1, :, :5] = cells[~bad, 0, :, 15:] = -3.0
    told = told._replace(pairs=flat, error=torch.where(bad, 0.02, 0.001), cells=cells.half())
    torch.manual_seed(0)
    critic = Critic((8, 8, 16), 15)
    found = fit_critic(critic, told, chosen, 0, lambda step, steps, loss: None)
    said = critic(told.pairs[chosen].float() / 255, torch.cat([told.pixels, told.vector, told.found], 1)[chosen])
    assert torch.equal(said.worse > 0, bad[chosen]) and found["critic"] < 0.6
    wrong = said.cells[:, 1] - said.cells[:, 0]  # where the result is the worse
    assert wrong[bad[chosen], :, :5].mean() > 1 + wrong[bad[chosen], :, 5:].mean()
    assert wrong[~bad[chosen], :, 15:].mean() < wrong[~bad[chosen], :, :15].mean() - 1
