from __future__ import annotations

import io
import random

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.damage import marks, noise, optics, tone
from pipeline.damage.archive import damage_file
from pipeline.damage.jpeg import jpeg
from pipeline.damage.mixture import KINDS, damage
from pipeline.damage.record import Damage
from tests.conftest import encoded


@pytest.fixture(scope="module")
def planes(photo: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(photo[:192, :192].copy()).permute(2, 0, 1)[None].float() / 255


def _psnr(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(-10 * (one - other).square().mean().log10())


@pytest.mark.parametrize("quality", [10, 30, 50, 75, 90])
def test_jpeg_does_what_libjpeg_does(photo: np.ndarray, planes: torch.Tensor, quality: int) -> None:
    file = encoded(photo[:192, :192], "JPEG", quality=quality)
    real = torch.from_numpy(np.array(Image.open(io.BytesIO(file)))).permute(2, 0, 1)[None] / 255
    made = jpeg(planes, torch.tensor([float(quality)]))
    assert _psnr(made, real) > _psnr(planes, real) + 6
    assert abs(_psnr(made, planes) - _psnr(real, planes)) < 0.15


def test_a_shifted_grid_gives_other_blocks(planes: torch.Tensor) -> None:
    quality = torch.tensor([10.0])
    first, shifted = jpeg(planes, quality), jpeg(planes, quality, (3, 5))
    assert first.shape == shifted.shape == planes.shape
    assert _psnr(first, shifted) < 45


@pytest.mark.parametrize("sigma", [5.0, 25.0, 50.0])
def test_gaussian_noise_has_its_strength(sigma: float) -> None:
    grey = torch.full((1, 3, 128, 128), 0.5)
    generator = torch.Generator().manual_seed(0)
    strength = torch.tensor([sigma])
    for made in (
        noise.gaussian(grey, strength, generator),
        noise.poisson(grey, strength, generator),
        noise.grain(grey, strength, torch.tensor([0.8]), generator),
    ):
        assert float((made - grey).std() * 255) == pytest.approx(sigma, rel=0.05)


def test_blur_and_low_resolution_lose_detail_and_keep_brightness(planes: torch.Tensor) -> None:
    for made in (optics.blur(planes, torch.tensor([2.0])), optics.low_resolution(planes, 3.0)):
        assert made.shape == planes.shape
        assert float(made.mean()) == pytest.approx(float(planes.mean()), abs=0.003)
        assert made.diff(dim=-1).abs().mean() < 0.8 * planes.diff(dim=-1).abs().mean()


def test_fading_loses_the_share_of_contrast_it_says(planes: torch.Tensor) -> None:
    faded = tone.fade(planes, torch.tensor([0.4]))
    ratio = tone.luma(faded).std() / tone.luma(planes).std()
    assert float(ratio) == pytest.approx(0.6, abs=0.01)


def test_holes_cover_about_their_share() -> None:
    for share in (0.05, 0.2, 0.4):
        covered = [float(marks.holes(128, 160, share, random.Random(seed)).mean()) for seed in range(12)]
        assert share <= np.mean(covered) < share + 0.15


def test_scratches_are_thin() -> None:
    mask = marks.scratches(200, 200, 8, random.Random(0))
    assert 0.002 < float(mask.mean()) < 0.08


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_damage_and_a_true_record(planes: torch.Tensor, kind: str) -> None:
    def make() -> tuple[torch.Tensor, torch.Tensor, Damage]:
        done = damage(planes, [[kind]], random.Random(5), torch.Generator().manual_seed(5))
        return done.images, done.masks, done.records[0]

    (image, mask, record), (again, _, _) = make(), make()
    assert torch.equal(image, again)
    changed = _psnr(image, planes) < 45
    assert changed == (kind != "clean")
    assert any(record.vector()) == (kind not in ("clean", "grey"))
    assert bool(mask.any()) == (kind in ("holes", "scratches"))
    if mask.any():
        outside = (mask == 0).expand_as(image)
        assert torch.equal(image[outside], planes[outside])


def test_a_grey_scan_stays_grey_under_noise_and_jpeg(planes: torch.Tensor) -> None:
    done = damage(planes, [["grey", "noise", "jpeg"]], random.Random(1), torch.Generator().manual_seed(1))
    assert (done.images == done.images[:, :1]).all()


def test_a_record_survives_as_a_vector() -> None:
    record = Damage(noise_sigma=12.5, jpeg_quality=30, blur_sigma=1.5, downscale=2, fading=0.25, missing=0.5)
    assert Damage.from_vector(record.vector(), grey=False) == record


def test_a_damaged_file_keeps_its_truth(photo: np.ndarray) -> None:
    done = damage_file(photo, ["scratches", "jpeg"], "seed")
    assert Image.open(io.BytesIO(done.image)).format == "JPEG"
    truth = np.asarray(Image.open(io.BytesIO(done.truth)))
    damaged = np.asarray(Image.open(io.BytesIO(done.image)))
    assert done.mask is not None
    lost = np.asarray(Image.open(io.BytesIO(done.mask))) > 0
    assert truth.shape == damaged.shape and lost.shape == truth.shape[:2]
    assert (
        np.abs(truth[lost].astype(int) - damaged[lost]).mean()
        > np.abs(truth[~lost].astype(int) - damaged[~lost]).mean()
    )
