"""Scores against the reference implementations: live where they are installed, else by values they gave once."""

from __future__ import annotations

import dataclasses
import resource
import threading

import numpy as np
import pytest
import skimage.color
import skimage.measure
import torch
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from pipeline.damage.record import Damage
from pipeline.damage.tone import luma
from pipeline.quality import mdsi as mdsi_module
from pipeline.quality import scorer as scorer_module
from pipeline.quality import strips as strips_module
from pipeline.quality import structure as structure_module
from pipeline.quality.blind import SMALLEST, blind
from pipeline.quality.scorer import Scorer
from pipeline.quality.scores import EQUAL, psnr, ssim
from pipeline.quality.structure import structure
from tests.conftest import noise


def _batch(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.copy())[None]


def _planes(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255


def noisy(photo: np.ndarray) -> np.ndarray:
    dice = np.random.default_rng(0).integers(-40, 41, photo.shape)
    return (photo.astype(np.int16) + dice).clip(0, 255).astype(np.uint8)


def blocky(photo: np.ndarray) -> np.ndarray:
    """Half of what is within blocks of 8 x 8 is lost."""
    height, width = (length // 8 * 8 for length in photo.shape[:2])
    blocks = photo[:height, :width].reshape(height // 8, 8, width // 8, 8, 3).astype(np.float64)
    means = np.broadcast_to(blocks.mean((1, 3), keepdims=True), blocks.shape)
    out = photo.copy()
    out[:height, :width] = ((blocks + means) / 2).reshape(height, width, 3).astype(np.uint8)
    return out


def tinted(photo: np.ndarray) -> np.ndarray:
    return (photo * np.array([1.0, 0.9, 0.7])).astype(np.uint8)


def blurred(photo: np.ndarray) -> np.ndarray:
    summed = sum(np.roll(photo, (down, right), (0, 1)).astype(np.uint32) for down in range(5) for right in range(5))
    return (summed // 25).astype(np.uint8)


DAMAGES = {"noisy": noisy, "blocky": blocky, "tinted": tinted, "blurred": blurred}


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer(torch.device("cpu"))


@pytest.mark.parametrize("name", DAMAGES)
def test_structure_is_that_of_torchmetrics(name: str, photo: np.ndarray) -> None:
    pair = DAMAGES[name](photo), photo
    one, other = structure(_batch(pair[0])[None], _batch(pair[1]))
    planes = [_planes(pixels) for pixels in pair]
    assert float(one) == pytest.approx(float(structural_similarity_index_measure(*planes, data_range=1.0)), rel=1e-4)
    expected = multiscale_structural_similarity_index_measure(*planes, data_range=1.0)
    assert float(other) == pytest.approx(float(expected), rel=1e-4)
    assert psnr(*pair) == pytest.approx(float(peak_signal_noise_ratio(*planes, data_range=1.0)), rel=1e-4)


# piq 0.8.0 on the same pairs (its HaarPSI and MDSI follow the authors' code).
PUBLISHED = {
    "noisy": {"haarpsi": 0.790332, "mdsi": 0.398424},
    "blocky": {"haarpsi": 0.769417, "mdsi": 0.344495},
    "tinted": {"haarpsi": 0.904893, "mdsi": 0.249695},
    "blurred": {"haarpsi": 0.533800, "mdsi": 0.480388},
}


@pytest.mark.parametrize("name", DAMAGES)
def test_haarpsi_and_mdsi_are_those_of_piq(name: str, photo: np.ndarray, scorer: Scorer) -> None:
    ((scores,),) = scorer.against_truth([[DAMAGES[name](photo)]], [photo])
    for score, value in PUBLISHED[name].items():
        assert scores[score] == pytest.approx(value, rel=1e-3)


@pytest.mark.parametrize("name", DAMAGES)
def test_colour_differences_are_those_of_scikit_image(name: str, photo: np.ndarray, scorer: Scorer) -> None:
    damaged = DAMAGES[name](photo)
    ((scores,),) = scorer.against_truth([[damaged]], [photo])
    expected = skimage.color.deltaE_ciede2000(skimage.color.rgb2lab(damaged), skimage.color.rgb2lab(photo)).mean()
    assert scores["ciede2000"] == pytest.approx(float(expected), rel=1e-3)


@pytest.mark.parametrize("name", DAMAGES)
def test_sharpness_is_scikit_images_blur_effect(name: str, photo: np.ndarray) -> None:
    damaged = DAMAGES[name](photo)
    grey = luma(_planes(damaged))[0, 0].numpy()
    assert float(blind(_batch(damaged))["sharpness"]) == pytest.approx(1 - skimage.measure.blur_effect(grey), rel=1e-3)


def test_noise_is_scikit_images_estimate(photo: np.ndarray) -> None:
    """Its `estimate_sigma` (0.26, PyWavelets 1.9) gave these once."""
    assert float(blind(_batch(noisy(photo)))["noise"]) == pytest.approx(24.17511, rel=2e-3)
    assert float(blind(_batch(photo))["noise"]) == pytest.approx(7.95399, rel=2e-3)


def test_each_damage_moves_its_score(photo: np.ndarray) -> None:
    clean = {name: float(value) for name, value in blind(_batch(photo)).items()}
    found = {
        damage: {name: float(value) for name, value in blind(_batch(make(photo))).items()}
        for damage, make in DAMAGES.items()
    }
    assert found["noisy"]["noise"] > clean["noise"] + 15
    assert found["blocky"]["blockiness"] > clean["blockiness"] + 0.2
    assert found["blurred"]["sharpness"] < clean["sharpness"] - 0.2
    grey = np.repeat(photo[..., :1], 3, axis=2)
    assert float(blind(_batch(grey))["colourfulness"]) == pytest.approx(0, abs=1e-3)
    flat = (photo // 2 + 64).astype(np.uint8)
    assert float(blind(_batch(flat))["contrast"]) == pytest.approx(clean["contrast"] / 2, rel=0.02)
    burnt = photo.clip(1, 254)
    burnt[:100, :, 1] = 255
    assert float(blind(_batch(burnt))["clipped"]) == pytest.approx(100 / len(photo))


def test_blocks_are_found_wherever_their_grid_begins(photo: np.ndarray) -> None:
    whole, cut = blocky(photo), blocky(photo)[3:, 5:]
    one, other = (float(blind(_batch(np.ascontiguousarray(image)))["blockiness"]) for image in (whole, cut))
    assert other == pytest.approx(one, rel=0.05)


def test_strips_change_no_score(photo: np.ndarray, scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged, damage = noisy(photo), Damage(noise_sigma=23, jpeg_quality=60, blur_sigma=1)
    lost = np.zeros(photo.shape[:2], bool)

    def scores() -> dict[str, float]:
        (alone,), ((truth,),) = scorer.blind([damaged], [None]), scorer.against_truth([[damaged]], [photo])
        (fidelity,) = scorer.fidelity([damaged], [photo], [damage], [lost])
        return alone | {f"{name} to the truth": value for name, value in truth.items()} | fidelity

    damage = dataclasses.replace(damage, fading=0.3)
    whole = scores()
    for module in (strips_module, mdsi_module):
        monkeypatch.setattr(module, "PIXELS", 20_000)
    assert scores() == pytest.approx(whole, rel=1e-4)


def test_images_that_are_scored_together_score_as_alone(photo: np.ndarray, scorer: Scorer) -> None:
    images = [photo, noisy(photo), photo[:100, :90], blurred(photo)]
    together = scorer.blind(images, [None] * 4)
    for image, scores in zip(images, together, strict=True):
        assert scorer.blind([image], [None]) == [pytest.approx(scores, rel=1e-5)]


def test_equal_images_score_best(photo: np.ndarray, scorer: Scorer) -> None:
    ((scores,),) = scorer.against_truth([[photo]], [photo])
    best = {"psnr": EQUAL, "ssim": 1, "ms_ssim": 1, "haarpsi": 1, "mdsi": 0, "ciede2000": 0}
    assert scores == pytest.approx(best, abs=1e-4)
    (fidelity,) = scorer.fidelity([photo], [photo], [Damage()], [np.zeros(photo.shape[:2], bool)])
    assert fidelity == {"change_psnr": EQUAL, "changed_share": 0, "colour_shift": 0, "redamaged_psnr": EQUAL}


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (7, 9), (16, 300), (23, 24), (24, 24), (11, 11), (175, 400)])
def test_images_of_any_size_have_what_scores_they_can(size: tuple[int, int], scorer: Scorer) -> None:
    image, other = noise(*size), noise(*size, seed=1)
    (alone,), ((truth,),) = scorer.blind([image], [None]), scorer.against_truth([[image]], [other])
    assert all(np.isfinite(value) for value in (alone | truth).values())
    assert ("noise" in alone) == (min(size) >= SMALLEST)
    assert ("ssim" in truth) == (min(size) >= 11)
    assert "ms_ssim" not in truth
    assert ssim(image, other) == (pytest.approx(truth["ssim"], rel=1e-4) if "ssim" in truth else None)


def test_flat_images_have_finite_scores(scorer: Scorer) -> None:
    black, white = np.zeros((40, 40, 3), np.uint8), np.full((40, 40, 3), 255, np.uint8)
    found = scorer.blind([black, white], [None, None])
    found += [scores for versions in scorer.against_truth([[black, white]], [white]) for scores in versions]
    assert all(np.isfinite(value) for scores in found for value in scores.values())


def test_a_faithful_repair_explains_its_input_and_another_picture_does_not(photo: np.ndarray, scorer: Scorer) -> None:
    damaged, found = noisy(blurred(photo)), Damage(noise_sigma=23, blur_sigma=1.4)
    lost = np.zeros(photo.shape[:2], bool)
    other = np.ascontiguousarray(photo[:, ::-1])
    faithful, strange = scorer.fidelity([damaged] * 2, [photo, other], [found] * 2, [lost] * 2)
    assert faithful["redamaged_psnr"] > 19  # the noise alone is 20.7 dB
    assert strange["redamaged_psnr"] < faithful["redamaged_psnr"] - 3
    assert strange["changed_share"] > 0.5


def test_what_was_lost_needs_no_explanation(photo: np.ndarray, scorer: Scorer) -> None:
    damaged, lost = photo.copy(), np.zeros(photo.shape[:2], bool)
    damaged[50:120, 60:200] = 255
    lost[50:120, 60:200] = True
    (unknown,) = scorer.fidelity([damaged], [photo], [Damage()], [np.zeros_like(lost)])
    (known,) = scorer.fidelity([damaged], [photo], [Damage()], [lost])
    assert known["redamaged_psnr"] == EQUAL
    assert unknown["redamaged_psnr"] < 25


def test_the_colour_shift_is_of_the_whole_not_of_the_detail(photo: np.ndarray, scorer: Scorer) -> None:
    lost = np.zeros(photo.shape[:2], bool)
    detail, tone = scorer.fidelity([noisy(photo), tinted(photo)], [photo] * 2, [Damage()] * 2, [lost] * 2)
    assert detail["colour_shift"] < 1.5
    assert tone["colour_shift"] > 5


def test_black_borders_do_not_hide_noise(photo: np.ndarray) -> None:
    """As in scikit-image: what is black says nothing."""
    bordered = np.zeros((3 * len(photo), *photo.shape[1:]), np.uint8)
    bordered[: len(photo)] = noisy(photo)
    alone, beside = (float(blind(_batch(image))["noise"]) for image in (noisy(photo), bordered))
    assert beside == pytest.approx(alone, rel=0.02)


def test_a_flat_image_has_no_sharpness(scorer: Scorer) -> None:
    (scores,) = scorer.blind([np.full((40, 40, 3), 90, np.uint8)], [None])
    assert "sharpness" not in scores and scores["noise"] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("height", [625, 627, 640])
def test_windows_over_the_last_rows_are_those_of_the_whole(height: int, monkeypatch: pytest.MonkeyPatch) -> None:
    image, other = noise(height, 200), noise(height, 200, seed=1)
    monkeypatch.setattr(structure_module, "_STRIP", 1 << 30)
    whole = [float(value) for value in structure(_batch(image)[None], _batch(other)) if value is not None]
    monkeypatch.setattr(structure_module, "_STRIP", 20_000)
    strips = [float(value) for value in structure(_batch(image)[None], _batch(other)) if value is not None]
    assert strips == pytest.approx(whole, rel=1e-5)
    equal, _ = structure(_batch(image)[None], _batch(image))
    assert float(equal) == pytest.approx(1)


def test_many_small_images_take_little_memory(scorer: Scorer) -> None:
    images = [noise(24, 24, seed) for seed in range(300)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    scorer.blind(images, [None] * len(images))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # kB


def test_all_calls_share_their_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """New ones in each call made restoring actors grow: glibc keeps 50 MB for each."""
    seen, threads = set(), 2

    def noted(images: torch.Tensor) -> dict[str, torch.Tensor]:
        seen.add(threading.current_thread())
        return blind(images)

    monkeypatch.setattr(scorer_module, "blind", noted)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    scorer = Scorer(torch.device("cpu"))
    for seed in range(4):
        scorer.blind([noise(40 + side, 40, seed) for side in range(4)], [None] * 4)
    assert threading.current_thread() not in seen
    assert len(seen) <= threads


def test_versions_of_one_truth_score_as_each_alone(photo: np.ndarray, scorer: Scorer) -> None:
    small = np.ascontiguousarray(photo[:200, :180])
    versions = [noisy(photo), tinted(photo), blurred(photo)]
    images = [versions, [noisy(small)], [], [photo]]
    together = scorer.against_truth(images, [photo, small, photo, noisy(photo)])
    assert [len(scores) for scores in together] == [3, 1, 0, 1]
    for image, scores in zip(versions, together[0], strict=True):
        assert scores == pytest.approx(scorer.against_truth([[image]], [photo])[0][0], rel=1e-5)
    assert together[3][0]["ssim"] == pytest.approx(together[0][0]["ssim"])
