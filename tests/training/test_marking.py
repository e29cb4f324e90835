from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch

from pipeline.damage.kinds import COVERS
from pipeline.restoration.marks import MarkHead
from pipeline.training import marking, staining
from pipeline.training.data import Photo
from pipeline.training.marking import MarkValidation, _damaged, draw, mark_losses
from pipeline.training.team import Team
from tests.conftest import noise

CPU = torch.device("cpu")
PHOTOS = [Photo(torch.from_numpy(noise(230, 260, seed)).permute(2, 0, 1), ()) for seed in range(3)]


@pytest.mark.parametrize("draw", [marking.draw, staining.draw])
def test_pictures_to_learn_from_are_the_same_whoever_draws_them(draw: Callable[..., tuple[torch.Tensor, ...]]) -> None:
    whole, again = draw(PHOTOS, "1/2", 6, CPU), draw(PHOTOS, "1/2", 6, CPU)
    assert all(torch.equal(one, other) for one, other in zip(whole, again, strict=True))
    for rank in range(2):  # one of two workers
        shared = draw(PHOTOS, "1/2", 6, CPU, Team(rank, 2))
        assert all(torch.equal(one[rank::2], other) for one, other in zip(whole, shared, strict=True))


def test_some_pictures_are_marked_and_some_are_not() -> None:
    shares = draw(PHOTOS, "1", 24, CPU).covered.mean((1, 2, 3))
    assert (shares == 0).any() and (shares > 0).sum() > 8 and shares.max() < 0.6


@pytest.mark.parametrize("kind", COVERS)
def test_what_is_covered_differs_and_what_shows_through_does_not_count(kind: str) -> None:
    image = PHOTOS[0].pixels[None, :, :192, :192] / 255
    view, covered = _damaged(image, 192, ["stains"], [kind], random.Random(3))
    plain, nothing = _damaged(image, 192, ["stains"], [], random.Random(3))
    assert nothing.max() == 0 and covered.max() == 1
    changed = (view - plain).abs().amax(1, keepdim=True) > 0.02
    assert changed[covered > 0.9].float().mean() > 0.6


def test_a_head_learns_to_find_holes() -> None:
    torch.manual_seed(0)
    head = MarkHead((8, 8, 8, 8))
    optimiser = torch.optim.AdamW(head.parameters(), 3e-3)
    case = MarkValidation(PHOTOS, CPU)
    before = case(head)["marks_holes"]
    batch = case._cases["marks_holes"]
    for _ in range(40):
        optimiser.zero_grad()
        terms = mark_losses(head, batch)
        (terms["marks"] + terms["marks_overlap"]).backward()
        optimiser.step()
    assert before == 0 and case(head)["marks_holes"] > 0.6
