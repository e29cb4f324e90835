from __future__ import annotations

import io
import random

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.damage import marks, noise, optics, tone
from pipeline.damage.archive import damage_file
from pipeline.damage.halftone import halftone
from pipeline.damage.jpeg import jpeg
from pipeline.damage.kinds import MARKS
from pipeline.damage.mixture import KINDS, MIXED, damage, second_order, worn
from pipeline.damage.record import Damage
from pipeline.damage.sheet import sheet
from pipeline.damage.strengths import Strengths
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


def test_plain_noise_is_neither_clipped_nor_rounded_and_is_recorded(planes: torch.Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    done = damage(planes, [["gaussian"]], random.Random(0), generator, Strengths().at(1.0))
    assert done.images.min() < 0 and done.images.max() > 1
    assert ((done.images * 255) % 1).std() > 0.2  # anything between two whole numbers
    assert done.records[0].noise_sigma == pytest.approx(float((done.images - planes).std()) * 255, rel=0.02)


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
    assert record.clean == (kind in ("clean", "grey"))
    if kind not in MIXED:
        assert bool(mask.any()) == (kind in MARKS)
        assert record.missing == float(mask.mean())
    if kind in MARKS and kind != "folds":  # a fold shades what is beside it
        outside = (image - planes)[(mask == 0).expand_as(image)]
        assert float(outside.abs().max()) <= 0.55 and float(outside.abs().mean()) < 0.01  # soft edges
        inside = (image - planes)[(mask == 1).expand_as(image)]
        assert float(inside.abs().mean()) > 0.03


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("clean", "grey", "halftone", *MIXED)])
def test_every_kind_grows_with_its_strength(planes: torch.Tensor, kind: str) -> None:
    def shown(level: float) -> float:
        strengths = Strengths().at(level)
        made = [
            damage(planes, [[kind]], random.Random(n), torch.Generator().manual_seed(n), strengths) for n in range(8)
        ]
        return sum(_psnr(done.images, planes) for done in made) / len(made)

    weak, medium, strong = shown(0.0), shown(0.5), shown(1.0)
    assert weak > medium - 0.2 > strong - 0.4 and weak > strong + 1


def test_mixed_kinds_draw_several_in_the_order_in_which_they_befall_a_picture() -> None:
    for seed in range(40):
        assert len(second_order(random.Random(seed))) >= 2
        drawn = worn(random.Random(seed))
        assert len(set(drawn)) == len(drawn) and set(drawn) & set(MARKS)
        assert [kind for kind in KINDS if kind in drawn] == drawn
    assert len({tuple(second_order(random.Random(seed))) for seed in range(40)}) > 10


def test_motion_blurs_along_its_angle_alone() -> None:
    spot = torch.zeros(1, 3, 33, 33)
    spot[..., 16, 16] = 1
    made = optics.motion(spot, torch.tensor([9.0]), torch.tensor([0.0]))
    assert float(made.sum()) == pytest.approx(3, abs=1e-4)
    assert float(made[0, 0, 16].sum()) == pytest.approx(1, abs=1e-4)  # all of it in its row
    assert int((made[0, 0, 16] > 0.01).sum()) == pytest.approx(9, abs=1)


@pytest.mark.parametrize("mode", optics.FILTERS)
def test_low_resolution_keeps_the_place_of_things(planes: torch.Tensor, mode: str) -> None:
    made = optics.low_resolution(planes, 2.0, mode)
    shifted = torch.roll(made, 1, dims=-1)
    assert _psnr(made, planes) > _psnr(shifted, planes)


def test_an_unknown_filter_is_named(planes: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="cubic-ish"):
        optics.low_resolution(planes, 2.0, "cubic-ish")


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("level", [0.1, 0.35, 0.5, 0.8])
def test_halftone_keeps_the_mean_and_shows_dots(level: float, grey: bool) -> None:
    flat = torch.full((1, 3, 160, 160), level)
    printed = halftone(flat, torch.tensor([5.0]), grey)
    assert float(printed.mean()) == pytest.approx(level, abs=0.02)
    assert float(printed[..., 16:-16, 16:-16].std()) > 0.02
    assert bool((printed == printed[:, :1]).all()) == grey


def test_yellowing_takes_the_light_its_density_says() -> None:
    grey = torch.full((1, 3, 4, 4), 0.8)
    red, green, blue = tone.yellow(grey, torch.tensor([0.3]))[0, :, 0, 0].tolist()
    assert blue == pytest.approx(0.8 * 10**-0.3) and red > green > blue


def test_uneven_light_falls_by_its_stops() -> None:
    field = tone.vignette(64, 64, (0.0, 0.0), torch.device("cpu"))
    lit = tone.uneven(torch.full((1, 3, 64, 64), 0.8), field, torch.tensor([2.0]))
    assert float(lit[0, 0, 0, 0]) == pytest.approx(0.8) and float(lit[0, 0, -1, -1]) == pytest.approx(0.2)


def test_marks_have_the_size_they_say() -> None:
    for share in (0.02, 0.1):
        lost = [float(marks.corners(120, 160, share, random.Random(seed)).mean()) for seed in range(12)]
        assert share / 2 < np.mean(lost) < 1.5 * share
    for draw in (marks.dust, marks.hairs, marks.tears, marks.foxing):
        areas = [float(draw(160, 160, 6, random.Random(seed)).mean()) for seed in range(6)]
        assert 0.0002 < np.mean(areas) < 0.1
    crease = marks.fold(100, 140, random.Random(3))
    assert 0 < float(crease.cracks.mean()) < 0.05 and 0.75 < float(crease.relief.min()) <= 1.25
    assert not marks.defect(torch.full((1, 2, 2), 0.3)).any()
    assert not marks.defect(torch.full((1, 2, 2), 0.1), (0.9, 0.5, 0.3)).any()


def test_marks_reach_over_the_edge_of_any_size() -> None:
    for height, width in ((1, 1), (1, 40), (300, 7)):
        for draw in (marks.dust, marks.hairs, marks.tears, marks.foxing, marks.scratches):
            assert draw(height, width, 5, random.Random(1)).shape == (1, height, width)
        for draw in (marks.corners, marks.stains, marks.holes):
            assert draw(height, width, 0.1, random.Random(1)).shape == (1, height, width)
        assert marks.fold(height, width, random.Random(1)).cracks.shape == (1, height, width)


def test_the_sheet_shows_every_kind_three_times(photo: np.ndarray) -> None:
    page = sheet(photo)
    assert page.size == (2 * (3 * 198 + 6), -(-(len(KINDS) - 1) // 2) * 216 + 6)
    assert np.asarray(page).std() > 20


def test_a_grey_scan_stays_grey_under_noise_and_jpeg(planes: torch.Tensor) -> None:
    done = damage(planes, [["grey", "noise", "jpeg"]], random.Random(1), torch.Generator().manual_seed(1))
    assert (done.images == done.images[:, :1]).all()


def test_the_noise_of_a_grey_scan_has_the_sigma_of_its_record() -> None:
    flat = torch.full((1, 3, 128, 128), 0.5)  # a picture that never had colours
    for seed in range(8):
        done = damage(flat, [["noise"]], random.Random(seed), torch.Generator().manual_seed(seed))
        assert done.records[0].grey and (done.images == done.images[:, :1]).all()
        assert float((done.images - flat).std() * 255) == pytest.approx(done.records[0].noise_sigma, rel=0.1)


def test_a_toned_print_is_no_longer_grey(planes: torch.Tensor) -> None:
    for kind in ("sepia", "yellowing", "cast"):
        done = damage(planes, [["grey", kind]], random.Random(1), torch.Generator().manual_seed(1))
        assert not done.records[0].grey and not (done.images == done.images[:, :1]).all()


def test_mixed_kinds_are_milder() -> None:
    strong = Strengths().at(1.0).milder()
    assert strong.noise_sigma == (28.5, 28.5) and strong.jpeg_quality == (50.0, 50.0)
    assert Strengths().milder().noise_sigma == (2.0, 28.5)
    assert Strengths().at(0.0).milder() == Strengths().at(0.0)


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (3, 3)])
def test_pictures_of_a_few_pixels_can_be_damaged(size: tuple[int, int]) -> None:
    tiny = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1))
    for kind in KINDS:
        for seed in range(4):
            done = damage(tiny, [[kind]], random.Random(seed), torch.Generator().manual_seed(seed))
            assert done.images.shape == tiny.shape and bool(done.images.isfinite().all())


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
