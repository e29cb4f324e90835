"""The critic in use; that it learns is tested with the training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.quality import gate
from pipeline.quality.scores import psnr
from pipeline.restoration import critic
from pipeline.restoration.assembly import with_head
from pipeline.restoration.config import ModelConfig
from pipeline.restoration.critic import SIDE, pair_of
from pipeline.restoration.model import CompactModel
from pipeline.restoration.request import Request
from pipeline.restoration.restorer import Restorer
from pipeline.restoration.rows import Whole
from pipeline.restoration.weights import load_model, save_model
from tests.conftest import noise

CPU = torch.device("cpu")
SMALL = ModelConfig(decoder_widths=(8, 8, 16, 16))


@pytest.fixture(scope="module")
def compact() -> Restorer:
    return Restorer.from_pretrained("compact", device="cpu")


def test_noise_taken_away_is_no_harm_and_a_tone_put_on_is(compact: Restorer, photo: np.ndarray) -> None:
    noisy = (photo + np.random.default_rng(0).normal(0, 25, photo.shape)).clip(0, 255).astype(np.uint8)
    dirty, clean = compact.restore(noisy), compact.restore(photo)
    assert dirty.worse is not None and clean.worse is not None
    assert dirty.worse < 0.02 < 0.5 < clean.worse


def test_no_opinion_where_a_mask_says_what_to_change(compact: Restorer, photo: np.ndarray) -> None:
    mask = np.zeros(photo.shape[:2], np.uint8)
    mask[20:40, 20:60] = 255
    assert compact.restore(photo, mask=mask).worse is None


def test_what_is_expected_of_a_result_is_what_the_critic_says_and_near_the_truth(
    compact: Restorer, photo: np.ndarray
) -> None:
    expected = []
    for sigma in (10, 25, 60):
        noisy = (photo + np.random.default_rng(0).normal(0, sigma, photo.shape)).clip(0, 255).astype(np.uint8)
        done = compact.restore(noisy)
        expected.append(done.expected_psnr)
        assert done.worse is not None  # the critic was asked
        assert abs(done.expected_psnr - psnr(done.pixels, photo)) < 3
    assert expected == sorted(expected, reverse=True)


def test_where_a_mask_says_what_to_change_pixels_say_what_to_expect(compact: Restorer, photo: np.ndarray) -> None:
    request = Request(photo, mask=np.ones(photo.shape[:2], bool))
    view, means = compact.look_at(Whole(photo), request), [0.01, -5.0, 0.1, 0.2, 0.0, 0.03]
    expected = compact.expect(Whole(photo), Whole(photo), means, view, request)
    assert expected.worse is None and expected.error == pytest.approx(0.04)


def test_a_model_may_be_without_and_get_one_that_changes_nothing_else() -> None:
    torch.manual_seed(0)
    model = CompactModel(SMALL)
    assert Restorer(model, device="cpu").restore(noise(40, 50)).worse is None
    larger = with_head(model, "critic")
    weights = larger.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    worse = Restorer(larger, device="cpu").restore(noise(40, 50)).worse
    assert worse is not None and 0 < worse < 1


def test_a_model_with_a_critic_of_before_is_loaded_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = with_head(CompactModel(SMALL), "critic")
    save_model(model, tmp_path, "")
    tensors = {name: one for name, one in load_file(tmp_path / "model.safetensors").items() if ".cells." not in name}
    save_file(tensors, tmp_path / "model.safetensors")
    loaded, _ = load_model(tmp_path)
    assert loaded.critic is None and "train --part judge" in caplog.text
    assert with_head(loaded, "critic").critic is not None
    save_model(model, tmp_path, "")
    assert load_model(tmp_path)[0].critic is not None


def test_a_tone_head_that_comes_later_leaves_the_critic_as_it_was() -> None:
    torch.manual_seed(0)
    model = with_head(CompactModel(SMALL), "critic")
    toned = with_head(model, "tone")
    pair, known = torch.rand(1, 6, SIDE, SIDE), (torch.randn(1, 4), torch.randn(1, 192), torch.randn(1, 7))
    before = model.eval().opinion(pair, *known)
    after = toned.eval().opinion(pair, *known[:2], torch.cat([known[2], torch.randn(1, 3)], 1))
    torch.testing.assert_close(before.worse, after.worse)


def test_critic_and_gate_mean_the_same_by_worse() -> None:
    assert critic.LOST == gate.LOST


@pytest.mark.parametrize("size", [(224, 224), (37, 801), (900, 700)])
def test_what_is_shown_is_the_whole_of_both(size: tuple[int, int]) -> None:
    before, after = noise(*size, seed=1), noise(*size, seed=2)
    pair = pair_of(Whole(before), Whole(after.astype(np.float32) / 255), False, CPU)
    assert pair.shape == (6, SIDE, SIDE)
    for part, picture in ((pair[:3], before), (pair[3:], after)):
        np.testing.assert_allclose(part.mean((1, 2)), picture.mean((0, 1)) / 255, atol=0.02)


def test_colours_that_were_given_do_not_count() -> None:
    grey, coloured = np.full((50, 50, 3), 120, np.uint8), np.full((50, 50, 3), (200, 90, 70), np.uint8)
    pair = pair_of(Whole(grey), Whole(coloured), True, CPU)
    assert torch.equal(pair[3], pair[4]) and torch.equal(pair[4], pair[5])
