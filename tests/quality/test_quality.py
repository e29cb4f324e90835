from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from pipeline.damage.record import Damage
from pipeline.quality.gate import Evidence, Rules, decide
from pipeline.quality.scores import EQUAL, psnr, ssim
from tests.conftest import noise

RULES = Rules(clean_above=0.5, least_change=45, least_gain=0.3, review_below=20, review_fill=0.02)


def evidence(**changes: object) -> Evidence:
    values = {"clean": 0.0, "change_psnr": 25.0, "expected_psnr": 30.0, "masked": None}
    values["mean_error"] = 10 ** (-(values | changes)["expected_psnr"] / 10)  # type: ignore[operator]
    return Evidence(**({"damage": Damage()} | values | changes))  # type: ignore[arg-type]


def _planes(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


def test_scores_are_those_of_the_reference_implementation() -> None:
    one, other = noise(90, 120), noise(90, 120, 1) // 2 + 60
    reference = float(peak_signal_noise_ratio(_planes(one), _planes(other), data_range=1.0))
    assert psnr(one, other) == pytest.approx(reference, rel=1e-4)
    expected = structural_similarity_index_measure(_planes(one), _planes(other), data_range=1.0)
    assert ssim(one, other) == pytest.approx(float(expected), rel=1e-4)


def test_strips_do_not_change_the_scores() -> None:
    one = noise(2300, 40)
    other = (one * 0.9 + 10).astype(np.uint8)
    expected = structural_similarity_index_measure(_planes(one), _planes(other), data_range=1.0)
    assert ssim(one, other) == pytest.approx(float(expected), rel=1e-3)


def test_equal_images_have_a_finite_score() -> None:
    image = noise(20, 20)
    assert psnr(image, image) == EQUAL
    assert ssim(image, image) == pytest.approx(1.0)


def test_an_image_smaller_than_the_window_has_no_ssim() -> None:
    assert ssim(noise(5, 40), noise(5, 40)) is None


def test_a_damaged_image_that_gets_better_is_restored() -> None:
    assert decide(evidence(), RULES)[0] == "restored"


@pytest.mark.parametrize(
    ("changes", "status", "word"),
    [
        ({"clean": 0.9}, "kept", "undamaged"),
        ({"change_psnr": 50.0}, "kept", "almost nothing"),
        ({"change_psnr": 43.0, "expected_psnr": 30.0}, "kept", "little to gain"),
        ({"expected_psnr": 15.0, "change_psnr": 12.0}, "review", "uncertain"),
        ({"damage": Damage(missing=0.18)}, "review", "18.0% of the area looked missing"),
        ({"masked": 0.0}, "kept", "empty"),
        ({"masked": 0.1, "clean": 1.0}, "restored", "10.0%"),
        ({"masked": 0.6, "expected_psnr": 15.0}, "review", "uncertain"),
    ],
)
def test_the_gate_says_why(changes: dict[str, object], status: str, word: str) -> None:
    decided, reasons = decide(evidence(**changes), RULES)
    assert decided == status
    assert any(word in reason for reason in reasons)
