from __future__ import annotations

import torch

from pipeline.restoration.stains import StainHead
from pipeline.training.data import Photo
from pipeline.training.staining import StainValidation, draw, is_stained, squared_error, stain_losses
from tests.conftest import noise

CPU = torch.device("cpu")
PHOTOS = [Photo(torch.from_numpy(noise(230, 260, seed)).permute(2, 0, 1), ()) for seed in range(3)]


def test_some_pictures_are_stained_and_some_are_not() -> None:
    batch = draw(PHOTOS, "1", 32, CPU)
    shares = is_stained(batch).mean((1, 2, 3))
    assert 4 < (shares == 0).sum() < 20 and (shares > 0.01).sum() > 8
    assert batch.density.min() >= 0 and batch.present.min() >= 0 and (batch.present < 0.5).any()


def test_what_the_stains_have_taken_is_known() -> None:
    case = StainValidation(PHOTOS, CPU)
    for name, batch in case._cases.items():
        said = torch.cat([torch.zeros_like(batch.present), batch.density], dim=1)
        left, nothing = squared_error(batch, said), squared_error(batch, torch.zeros_like(said))
        assert left.max() < 1e-9 and (name == "stains_clean" or nothing.min() > 1e-5)


def test_a_head_learns_to_take_stains_away() -> None:
    torch.manual_seed(0)
    head = StainHead((8, 8, 8, 8))
    optimiser = torch.optim.AdamW(head.parameters(), 3e-3)
    case = StainValidation(PHOTOS, CPU)
    before = case(head)["stains_stains_strong"]
    batch = case._cases["stains_stains_strong"]
    for _ in range(30):
        optimiser.zero_grad()
        terms = stain_losses(head, batch)
        (terms["stains"] + terms["stains_found"]).backward()
        optimiser.step()
    assert case(head)["stains_stains_strong"] > before + 1
