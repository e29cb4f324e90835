"""From a result to a verdict; results are made by hand here, so that every case can be had."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from pipeline.damage.record import Damage
from pipeline.quality.appraise import Appraiser, Case
from pipeline.quality.gate import Decision
from pipeline.quality.scores import decibels
from pipeline.recipe import Gate, Recipe
from pipeline.restoration.canvas import Restored
from tests.conftest import noise
from tests.quality.test_scores import noisy

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def appraiser() -> Appraiser:
    return Appraiser(Recipe(), CPU)


@pytest.fixture(scope="module")
def girls(archive: pa.Table) -> np.ndarray:
    """A photograph with a face at about (69, 248) to (127, 306)."""
    row = next(row for row in archive.to_pylist() if row["id"] == "coco-8690")
    return np.asarray(Image.open(io.BytesIO(row["truth"])).convert("RGB"))


def result(
    after: np.ndarray, uncertainty: np.ndarray | float = 0.02, lost: np.ndarray | None = None, **changes: Any
) -> Restored:
    size = after.shape[:2]
    spread = np.broadcast_to(np.asarray(uncertainty, np.float16), size)
    error = float(np.square(spread.astype(np.float64)).mean())
    values: dict[str, Any] = {
        "array": after.astype(np.float32) / 255,
        "damage": Damage(noise_sigma=20),
        "clean": 0.0,
        "uncertainty": spread,
        "lost": np.zeros(size, bool) if lost is None else lost,
        "expected_psnr": decibels(error),
        "mean_error": error,
        "agreement": None,
    }
    return Restored(**values | changes)


def test_a_good_result_is_taken_and_scored_before_and_after(appraiser: Appraiser, photo: np.ndarray) -> None:
    (verdict,) = appraiser([Case(noisy(photo), result(photo), truth=photo)])
    assert verdict.status == "restored" and np.array_equal(verdict.after, photo)  # type: ignore[arg-type]
    scores = verdict.scores
    assert scores["psnr_after"] == 100 and scores["psnr_before"] < 25  # type: ignore[operator]
    assert scores["noise_after"] < scores["noise_before"] - 10  # type: ignore[operator]
    assert scores["redamaged_psnr"] == pytest.approx(scores["change_psnr"], abs=0.1)
    assert "clip_score_before" not in scores


@pytest.mark.parametrize("size", [(60, 90), (200, 300), (1500, 1000)])
def test_a_hole_that_was_filled_unasked_is_for_a_person_and_a_scratch_is_not(
    appraiser: Appraiser, size: tuple[int, int]
) -> None:
    truth = noise(*size)
    hole, scratches = np.zeros(size, bool), np.zeros(size, bool)
    hole[size[0] // 4 : size[0] // 2, size[1] // 4 : size[1] // 2] = True
    scratches[:, :: size[1] // 8] = True
    for _ in range(size[0] // 96):
        scratches[:, 1:] |= scratches[:, :-1]  # of a hundredth of the picture
    verdicts = []
    for lost in (hole, scratches):
        before = truth.copy()
        before[lost] = 255
        verdicts += appraiser([Case(before, result(truth, lost=lost, damage=Damage(missing=float(lost.mean()))))])
    assert [verdict.status for verdict in verdicts] == ["review", "restored"]
    assert scratches.mean() > 0.02 and "over wide places" in verdicts[0].reasons[0]


def test_what_is_kept_scores_as_before(appraiser: Appraiser, photo: np.ndarray) -> None:
    case = Case(noisy(photo), result(photo, 0.2, clean=1.0), truth=photo)
    (verdict,) = appraiser([case])
    assert verdict.status == "kept" and verdict.after is None
    for name in ("noise", "sharpness", "psnr", "haarpsi"):
        assert verdict.scores[f"{name}_after"] == verdict.scores[f"{name}_before"]


def test_an_uncertain_face_in_a_good_picture_is_for_review(appraiser: Appraiser, girls: np.ndarray) -> None:
    damaged = noisy(girls)
    bad = np.full(girls.shape[:2], 0.02)
    bad[60:130, 240:310] = 0.2
    away = np.full(girls.shape[:2], 0.02)
    away[200:270, 20:90] = 0.2
    on, off, sure = appraiser([Case(damaged, result(girls, place)) for place in (bad, away, 0.02)])
    assert on.status == "review" and on.subjects == ["face"]
    assert any("a face is likely, and uncertain" in reason for reason in on.reasons)
    assert off.status == "restored" and sure.status == "restored" and sure.subjects == []


def test_a_face_that_was_filled_is_for_review_whoever_asked_for_it(appraiser: Appraiser, girls: np.ndarray) -> None:
    filled = np.zeros(girls.shape[:2], bool)
    filled[100:110, 260:290] = True
    asked, found = appraiser(
        [Case(girls, result(girls, lost=filled), mask=filled), Case(noisy(girls), result(girls, lost=filled))]
    )
    for verdict in (asked, found):
        assert verdict.status == "review"
        assert any("a face is likely, and" in reason and "filled" in reason for reason in verdict.reasons)


def test_a_face_that_only_the_caption_tells_of_may_have_been_filled(appraiser: Appraiser, photo: np.ndarray) -> None:
    much, little = (np.zeros(photo.shape[:2], bool) for _ in range(2))
    much[:100, :150], little[:20, :20] = True, True
    cases = [
        Case(photo, result(photo, lost=mask), caption="a portrait of a woman", mask=mask) for mask in (much, little)
    ]
    first, second = appraiser(cases)
    assert first.status == "review" and "may have been among the 10% that were filled" in first.reasons[0]
    assert second.status == "restored"


def test_a_result_without_numbers_is_never_taken_silently(appraiser: Appraiser, photo: np.ndarray) -> None:
    broken = result(photo, expected_psnr=float("nan"), mean_error=float("nan"))
    (verdict,) = appraiser([Case(noisy(photo), broken)])
    assert verdict.status == "review" and "expected_psnr" in verdict.reasons[0]


def test_scores_that_fail_cost_no_row(photo: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    appraiser = Appraiser(Recipe(gate=Gate(review_subjects_below=99)), CPU)

    def fail(*_: object) -> float:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(appraiser._scorer, "_clip", fail)
    monkeypatch.setattr(appraiser._scorer, "_brisque", fail)
    case = Case(noisy(photo), result(photo), caption="a bear")
    (verdict,) = appraiser([case])
    assert verdict.status == "restored" and "clip_score_before" not in verdict.scores
    monkeypatch.setattr(appraiser, "_finder", fail)
    (verdict,) = appraiser([case])
    assert verdict.status == "review" and "could not be looked for (RuntimeError: out of luck)" in verdict.reasons[0]


@pytest.mark.parametrize(("accepted", "status"), [(True, "restored"), (False, "kept")])
def test_a_decision_stands_above_all_rules(
    appraiser: Appraiser, photo: np.ndarray, accepted: bool, status: str
) -> None:
    doubtful = result(photo, 0.12)
    (verdict,) = appraiser([Case(noisy(photo), doubtful, decision=Decision(accepted, "Ada on 2026-05-04"))])
    assert verdict.status == status and (verdict.after is not None) == accepted
    assert verdict.reasons[0].endswith("by Ada on 2026-05-04") and "uncertain" in verdict.reasons[1]


def test_pictures_of_any_size_get_a_verdict(appraiser: Appraiser) -> None:
    sizes = [(1, 1), (1, 300), (300, 1), (15, 40), (64, 64), (64, 64)]
    cases = [Case(noise(*size), result(noise(*size, seed=1)), truth=noise(*size, seed=2)) for size in sizes]
    for verdict in appraiser(cases):
        assert verdict.status in ("restored", "kept", "review")
        assert all(value is None or np.isfinite(value) for value in verdict.scores.values())
