from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest
import torch

from pipeline import Restorer
from pipeline.damage.kinds import FOXED, STAINED
from pipeline.damage.marks import foxing, stain, stains
from pipeline.quality.scores import psnr
from pipeline.restoration.assembly import assemble, with_head
from pipeline.restoration.config import ModelConfig
from pipeline.restoration.request import Request
from pipeline.restoration.rows import Whole
from pipeline.restoration.stains import DARKEST, StainHead, Stains, Unstained
from pipeline.stages.provenance import actions
from tests.conftest import noise

DICE = torch.Generator().manual_seed(0)
DENSITY = (0.3, 0.6, 0.9)


def blot(side: int = 64) -> torch.Tensor:
    """What is said of a view with a stained square in its middle."""
    planes = torch.zeros(1, 4, side, side)
    planes[:, :1] = -6
    middle = slice(side // 4, side // 2)
    planes[0, :, middle, middle] = torch.tensor([9.0, *DENSITY])[:, None, None]
    return planes


def test_what_a_stain_has_taken_is_given_back() -> None:
    truth = noise(64, 64).astype(np.float32) / 255
    light = np.ones((64, 64, 3), np.float32)
    light[16:32, 16:32] = np.exp(-np.array(DENSITY))
    image = Unstained(Whole(truth * light), Stains(blot(), (64, 64)))
    pixels, missing = image.rows(0, 64)
    assert missing is None and image.size == (64, 64) and pixels.dtype == np.float32
    assert np.abs(pixels - truth)[17:31, 17:31].max() < 1e-5 and np.abs(pixels - truth)[40:].max() < 1e-6


def test_bands_hold_what_the_whole_holds() -> None:
    found = Stains(3 * torch.randn(1, 4, 64, 64, generator=DICE), (500, 90))
    image = Unstained(Whole(noise(500, 90)), found)
    whole, _ = image.rows(0, 500)
    assert np.array_equal(
        whole, np.concatenate([image.rows(top, min(500, top + 130))[0] for top in range(0, 500, 130)])
    )


def test_greys_stay_grey() -> None:
    grey = np.repeat(noise(64, 64)[..., :1], 3, axis=2)
    pixels, _ = Unstained(Whole(grey), Stains(blot(), (64, 64))).rows(0, 64)
    assert np.ptp(pixels, axis=2).max() == 0 and pixels[24, 24, 0] > 1.3 * grey[24, 24, 0] / 255


def test_what_is_not_sure_is_left_alone_and_what_it_touches_is_not() -> None:
    planes = blot()
    planes[0, 0, 28:36, 20:44] = 1.0  # likely, and beside it
    planes[0, 1:, 28:36, 20:44] = 0.5
    planes[0, 0, 50:60, 50:60] = 0.8  # likely, alone
    planes[0, 1:, 50:60, 50:60] = 0.5
    found = Stains(planes, (64, 64))
    assert found.any and found.probability > 0.99
    pixels, _ = Unstained(Whole(np.full((64, 64, 3), 0.25, np.float32)), found).rows(0, 64)
    assert pixels[33, 40].min() > 0.35 and pixels[55, 55].max() < 0.251
    planes[:, 0].clamp_(max=5)
    assert not Stains(planes, (64, 64)).any


def test_no_density_is_negative_or_beyond_all_measure() -> None:
    planes = blot()
    planes[0, 1:] *= 100
    planes[0, 1:, :20] *= -1
    pixels, _ = Unstained(Whole(np.full((64, 64, 3), 0.1, np.float32)), Stains(planes, (64, 64))).rows(0, 64)
    assert pixels.min() >= 0.1 - 1e-6 and pixels.max() <= 0.1 * np.exp(DARKEST) + 1e-5


def test_a_stain_head_begins_with_what_the_mark_head_knows() -> None:
    model = with_head(assemble(), "stains")
    assert model.stains is not None and model.marks is not None
    assert torch.equal(model.stains.fourth[0].first.weight, model.marks.fourth[0].first.weight)
    assert model.stains.leave.weight.shape[1] == 4


@pytest.fixture(scope="module")
def restorer() -> Restorer:
    return Restorer.from_pretrained(device="cpu")


def with_stains(photo: np.ndarray, kind: str) -> np.ndarray:
    """A photo with foxing or dried puddles on it."""
    dice = random.Random(1 if kind == "foxing" else 3)
    height, width = photo.shape[:2]
    drawn = foxing(height, width, 40, dice) if kind == "foxing" else stains(height, width, 0.15, dice)
    image = torch.from_numpy(photo.copy()).permute(2, 0, 1)[None].float()
    tint = image.new_tensor([FOXED if kind == "foxing" else STAINED])
    out: np.ndarray = stain(image, drawn[None], tint)[0].permute(1, 2, 0).round().byte().numpy()
    return out


@pytest.mark.parametrize(("kind", "gain"), [("foxing", 2.0), ("stains", 8.0)])
def test_stains_are_found_and_taken_away(restorer: Restorer, photo: np.ndarray, kind: str, gain: float) -> None:
    stained = with_stains(photo, kind)
    result = restorer.restore(stained)
    assert psnr(result.pixels, photo) > psnr(stained, photo) + gain
    assert result.damage.stained > 0.01 and result.clean < 0.01
    assert {"name": "remove stains", "strength": result.damage.stained} in actions(result, False, repaired=True)


def test_what_a_mask_does_not_ask_for_stays_stained(restorer: Restorer, photo: np.ndarray) -> None:
    stained = with_stains(photo, "stains")
    mask = np.zeros(photo.shape[:2], bool)
    mask[:20, :20] = True
    result = restorer.restore(stained, mask=mask)
    assert np.array_equal(result.pixels[~mask], stained[~mask]) and not result.damage.stained


def test_an_image_read_band_by_band_comes_out_as_the_whole(photo: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StainHead, "say", lambda head, views: [blot(256)] * len(views))
    restorer = Restorer(with_head(assemble(sizes=ModelConfig(decoder_widths=(8, 8, 16, 16))), "stains"), device="cpu")
    image = np.tile(photo, (3, 2, 1))
    (whole,) = restorer.restore_batch([Request(image)])
    view = restorer.look_at(Whole(image), Request(image))
    bands = list(restorer.restore_rows(Whole(image), dataclasses.replace(Request(image)), view))
    assert np.array_equal(whole.array, np.concatenate([band.array for band in bands]))
    assert view.damage.stained == whole.damage.stained > 0 and view.clean == whole.clean < 0.01
