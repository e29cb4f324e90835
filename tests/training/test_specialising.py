from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from pipeline.restoration.assembly import with_head
from pipeline.restoration.expert import Router
from pipeline.restoration.model import CompactModel
from pipeline.training import specialising
from pipeline.training.data import Photo
from pipeline.training.restoring import train
from pipeline.training.specialising import PATCHES, Tried, draw, fit_router, patch_at
from pipeline.training.team import Team
from tests.conftest import noise
from tests.training.test_training import PLAN, TINY

CPU = torch.device("cpu")
ALONE = dataclasses.replace(PLAN, part="expert", steps=4, checkpoint_every=2)


@pytest.fixture(scope="module")
def photos() -> list[Photo]:
    return [Photo(torch.from_numpy(noise(230, 240, seed)).permute(2, 0, 1), ()) for seed in range(6)]


@pytest.fixture(scope="module")
def start() -> CompactModel:
    torch.manual_seed(0)
    return with_head(CompactModel(TINY), "expert")


def run(photos: list[Photo], folder: Path, start: CompactModel) -> CompactModel:
    return train(photos, photos[:2], folder, start.config, ALONE, CPU, lambda progress: None, start=start)


def test_the_expert_learns_and_nothing_else(photos: list[Photo], tmp_path: Path, start: CompactModel) -> None:
    before, after = start.state_dict(), run(photos, tmp_path, start).state_dict()
    changed = {name.split(".")[0] for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed <= {"expert", "router"}
    assert "expert" in changed


def test_a_killed_run_goes_on_to_the_same_weights(
    photos: list[Photo], tmp_path: Path, start: CompactModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(photos, tmp_path / "whole", start).state_dict()

    class Killed(BaseException):
        pass

    def killed(*given: object) -> object:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(specialising, "_tried", killed)  # when the expert has learned, and the router has not
        run(photos, tmp_path / "killed", start)
    again = run(photos, tmp_path / "killed", start).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())


def test_pictures_to_learn_from_are_the_same_whoever_draws_them(photos: list[Photo]) -> None:
    whole = draw(photos, "7", 4, 64, CPU)
    shares = [draw(photos, "7", 4, 64, CPU, Team(place, 2)) for place in range(2)]
    assert all(torch.equal(whole.damaged[place::2], share.damaged) for place, share in enumerate(shares))
    assert whole.truth.shape == (4, 3, 64, 64)
    assert not torch.equal(whole.damaged, draw(photos, "8", 4, 64, CPU).damaged)


def test_patches_grow() -> None:
    sides = [patch_at(step / 100) for step in range(100)]
    assert sides == sorted(sides)
    assert set(sides) == {side for _, side in PATCHES}


def test_a_router_learns_whose_images_are_whose() -> None:
    torch.manual_seed(0)
    vector, found = torch.randn(2000, 16), torch.randn(2000, 7)
    ratio = torch.where(found[:, 2] > 0.5, -0.2, 1.0) + 0.1 * torch.randn(2000)
    router = Router(16, 7)
    said = fit_router(router, Tried(vector, found, ratio), torch.arange(2000) % 8 == 0, seed=0)
    assert router.has_learned
    assert 0.2 < said["routed"] < 0.35  # it is 31 in a hundred
    assert 0.5 < said["routed_gain"] < 1.0
    others = torch.randn(2000, 7)
    routed = router(torch.randn(2000, 16), others) > 0
    assert float((routed == (others[:, 2] > 0.5)).float().mean()) > 0.93


def test_a_router_leaves_images_alone_that_the_expert_does_not_restore_better() -> None:
    torch.manual_seed(0)
    ratio = 0.1 + 0.02 * torch.randn(500)
    said = fit_router(
        Router(16, 7), Tried(torch.randn(500, 16), torch.randn(500, 7), ratio), torch.arange(500) % 8 == 0, 0
    )
    assert said == {"routed": 0.0, "routed_gain": 0.0}
