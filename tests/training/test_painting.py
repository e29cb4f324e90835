from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from pipeline.restoration.assembly import with_head
from pipeline.restoration.model import CompactModel
from pipeline.training.data import Photo
from pipeline.training.loop import Progress
from pipeline.training.painting import _squared_error, draw
from pipeline.training.restoring import train
from pipeline.training.team import Team
from tests.conftest import noise
from tests.training.test_training import CPU, PLAN, TINY

ALONE = dataclasses.replace(PLAN, part="painter", steps=4, checkpoint_every=2)


@pytest.fixture(scope="module")
def photos() -> list[Photo]:
    pictures = [torch.from_numpy(noise(230, 240, seed)).permute(2, 0, 1) for seed in range(6)]
    return [Photo(pixels, ("a picture of blots",) if n % 2 else ()) for n, pixels in enumerate(pictures)]


def test_the_painter_learns_and_nothing_else(photos: list[Photo], tmp_path: Path) -> None:
    torch.manual_seed(0)
    start = with_head(CompactModel(TINY), "painter")
    seen: list[Progress] = []
    after = train(photos, photos[:2], tmp_path, start.config, ALONE, CPU, seen.append, start=start).state_dict()
    changed = {
        name.split(".")[0] for name, tensor in start.state_dict().items() if not torch.equal(tensor, after[name])
    }
    assert changed == {"painter"}
    assert set(seen[-1].validation) == {
        "painter_grey_caption",
        "painter_grey_empty",
        "painter_grey_shuffled",
        "painter_holes",
    }


def test_pictures_to_learn_from_are_the_same_whoever_draws_them(photos: list[Photo]) -> None:
    whole = draw(photos, "7", 6, TINY, CPU)
    shares = [draw(photos, "7", 6, TINY, CPU, Team(place, 2)) for place in range(2)]
    assert all(torch.equal(whole.thumbnails[place::2], share.thumbnails) for place, share in enumerate(shares))
    assert all(whole.captions[place::2] == share.captions for place, share in enumerate(shares))
    assert not torch.equal(whole.thumbnails, draw(photos, "8", 6, TINY, CPU).thumbnails)


def test_of_each_picture_something_is_gone(photos: list[Photo]) -> None:
    batch = draw(photos, "1", 60, TINY, CPU)
    missing = batch.thumbnails[:, 3].amax((1, 2)) > 0
    assert bool((batch.grey | missing).all())
    assert 0 < int(batch.grey.sum()) < 60 and 0 < int(missing.sum()) < 60
    assert bool((batch.grey & missing).any())
    assert 0 < int((~batch.references_absent).sum()) < 30
    said = set(batch.captions)
    words = set(" ".join(said).split())
    assert {"", "a picture of blots"} < said and words == {"a", "picture", "of", "blots"}
    colours = batch.thumbnails[:, :3].std(1).amax((1, 2))
    assert bool((colours[batch.grey] < 1e-3).all()) and bool((colours[~batch.grey] > 0.05).all())


def test_what_is_there_is_not_learned_from(photos: list[Photo]) -> None:
    batch = draw(photos, "1", 60, TINY, CPU)
    there = torch.nn.functional.avg_pool2d(batch.thumbnails[:, 3:], 4) == 0
    perfect = batch.truth
    assert bool((_squared_error(batch, perfect) < 1e-9).all())
    lighter = torch.where(there, perfect + 0.1, perfect)  # colours as they were
    assert bool((_squared_error(batch, lighter) < 1e-9).all())
    redder = perfect + torch.tensor([0.1, -0.05, 0.0])[:, None, None]
    assert bool((_squared_error(batch, redder) > 1e-5).all())
