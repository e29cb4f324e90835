from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from jobs.evaluate import find_sets
from pipeline import Restorer
from pipeline.damage.record import Damage
from pipeline.errors import SourceError
from pipeline.evaluation import baselines, figures, protocols
from pipeline.evaluation.gate import gate
from pipeline.evaluation.protocols import blots, colourise, damaged, denoise, derangement, inpaint, jpeg, measure
from pipeline.evaluation.report import as_markdown
from pipeline.evaluation.statistics import paired_difference, spearman
from pipeline.evaluation.suite import evaluate, trials_of
from pipeline.evaluation.tables import Sample, read_samples
from pipeline.lake.tables import open_tables
from pipeline.recipe import Gate, Recipe
from tests.conftest import encoded, noise


@pytest.fixture(scope="module")
def restorer() -> Restorer:
    return Restorer.from_pretrained(device="cpu")


@pytest.fixture(scope="module")
def samples(photo: np.ndarray) -> list[Sample]:
    crops = [photo[:160, :160], photo[100:260, 60:220], photo[30:190, 90:250]]
    texts = ["a brown bear in the grass", "a red car parked in a street", "a bear that stands"]
    return [Sample(f"{n}", np.ascontiguousarray(crop), (texts[n],), {}) for n, crop in enumerate(crops)]


def test_noise_inputs_have_the_published_psnr(restorer: Restorer, samples: list[Sample]) -> None:
    result = measure(restorer, denoise(samples, 25))
    assert result.input_psnr == pytest.approx(20.17, abs=0.05)
    assert np.mean([case.input_psnr for case in denoise(samples, 25, clipped=True)]) > result.input_psnr
    assert result.psnr > result.input_psnr + 5
    assert result.gain == pytest.approx(np.mean(result.each) - result.input_psnr)
    assert [outcome.id for outcome in result.outcomes] == ["0", "1", "2"]


def test_jpeg_inputs_are_pillows(samples: list[Sample]) -> None:
    low, high = list(jpeg(samples, 10)), list(jpeg(samples, 40))
    assert high[0].input_psnr > low[0].input_psnr + 2
    assert low[0].damage == Damage(jpeg_quality=10)


def test_upscaling_is_measured_on_luma_inside_the_border(restorer: Restorer, samples: list[Sample]) -> None:
    odd = [Sample("odd", samples[0].pixels[:157, :158], (), {})]
    result = measure(restorer, protocols.upscale(odd, 4), protocols.luma_psnr(4))
    assert 15 < result.input_psnr < 45 and np.isfinite(result.psnr)
    score, truth = protocols.luma_psnr(4), odd[0].pixels[:156, :156]
    spoilt = truth.copy()
    spoilt[:4] = 0
    assert score(spoilt, truth) == 100
    assert score(np.clip(truth.astype(int) + 8, 0, 255).astype(np.uint8), truth) == pytest.approx(31.4, abs=0.4)


def test_captions_are_true_absent_anothers_or_the_least_like(samples: list[Sample]) -> None:
    texts = [sample.captions[0] for sample in samples]

    def shown(captions: str) -> list[str | None]:
        return [case.request.caption for case in colourise(samples, captions)]

    assert shown("true") == texts and shown("empty") == [None] * 3
    assert all(one in texts and one != true for one, true in zip(shown("shuffled"), texts, strict=True))
    assert shown("wrong")[0] == shown("wrong")[2] == texts[1]  # the other bear is more like it
    case = next(iter(colourise([samples[0]._replace(captions=("a", "b", "c"))], "all")))
    assert (case.request.caption, case.request.further_captions) == ("a", ("b", "c"))
    assert all(case.request.colourise and not case.request.references for case in colourise(samples, "true"))
    with pytest.raises(ValueError, match="loud"):
        list(colourise(samples, "loud"))


def test_references_are_of_the_same_scene_or_of_another(samples: list[Sample]) -> None:
    for kind in ("same", "other"):
        for sample, case in zip(samples, colourise(samples, "empty", kind), strict=True):
            (crop,) = case.request.references
            assert crop.shape == (96, 96, 3)
            places = [(y, x) for y in range(65) for x in range(65) if (sample.pixels[y, x : x + 96] == crop[0]).all()]
            inside = any((sample.pixels[y : y + 96, x : x + 96] == crop).all() for y, x in places)
            assert inside or kind == "other"


def test_missing_areas_have_their_share_and_are_judged_alone(samples: list[Sample]) -> None:
    shares = [blots(160, 200, 0.2, random.Random(seed)).mean() for seed in range(12)]
    assert min(shares) >= 0.18 and max(shares) <= 0.22
    case = next(iter(inpaint(samples)))
    assert case.request.mask is not None and case.request.caption == samples[0].captions[0]
    spoilt = case.truth.copy()
    spoilt[~case.request.mask] = 0
    assert protocols.masked_psnr(case.request.mask)(spoilt, case.truth) == 100
    for fill in (baselines.telea, baselines.navier_stokes):
        filled = fill(case)
        assert (filled == case.truth)[~case.request.mask].all()
        assert protocols.masked_psnr(case.request.mask)(filled, case.truth) > case.input_psnr


def test_classical_denoisers_do_denoise(samples: list[Sample]) -> None:
    for denoiser in (baselines.median, baselines.non_local_means):
        found = baselines.baseline_psnr(denoise(samples, 25), denoiser)
        assert len(found) == 3 and np.mean(found) > 21.5


def test_damaged_images_are_the_same_every_time_and_know_their_defects(samples: list[Sample]) -> None:
    one, again = (next(iter(damaged(samples, "tears", 0.5))) for _ in range(2))
    assert (one.request.pixels == again.request.pixels).all() and one.request.mask is None
    assert one.defects is not None and 0 < one.defects.mean() < 0.3 and one.damage is not None
    assert next(iter(damaged(samples, "noise", 0.5))).defects is None


@pytest.mark.slow
def test_a_whole_evaluation(restorer: Restorer, samples: list[Sample], tmp_path: Path) -> None:
    found = evaluate(
        restorer, {"kodak24": samples[:1], "mine": [s._replace(pixels=s.pixels[:64, :64]) for s in samples[:2]]}
    )
    text = as_markdown(found)
    for expected in ("noise, sigma 25", "20 % missing", "true captions over shuffled", "over Telea", "| dust |"):
        assert expected in text
    content = json.loads(json.dumps(found.as_json(), allow_nan=False))
    noise = next(line for line in content["sets"]["kodak24"] if line["name"] == "noise, sigma 25")
    assert noise["psnr"] == pytest.approx(np.mean([one["psnr"] for one in noise["each"]]))
    assert set(noise["baselines"]) == {"median 5x5", "NLM, told sigma"}
    assert {c["name"] for c in content["calibrations"]} == {"PSNR of the result", "sigma of the noise", "JPEG quality"}
    files = figures.draw(found, tmp_path)
    assert [path.name for path in files] == ["calibration.png", "comparisons.png", "damage.png"]
    assert all(path.stat().st_size > 5000 for path in files)


def test_greys_and_pictures_without_captions_get_the_tests_that_make_sense(samples: list[Sample]) -> None:
    plain = [sample._replace(captions=()) for sample in samples]
    names = [test.name for test in trials_of("mine", plain)]
    assert "greys, references same" in names and "greys, captions true" not in names
    some = [*samples, plain[0]]
    told = next(trial for trial in trials_of("mine", some) if trial.name == "greys, captions wrong")
    assert [case.request.caption is not None for case in told.cases()] == [True] * 3
    grey = [s._replace(pixels=np.repeat(s.pixels[..., :1], 3, axis=2)) for s in samples]
    assert not any(test.name.startswith("greys") for test in trials_of("mine", grey))


def test_intervals_hold_the_mean_and_narrow_with_more_images() -> None:
    dice = np.random.default_rng(1)
    base = dice.normal(30, 5, 400)  # the images differ much more than the methods
    better = base + dice.normal(0.5, 1, 400)
    few, many = paired_difference(better[:40], base[:40]), paired_difference(better, base)
    assert few.low < few.mean < few.high and many.high - many.low < few.high - few.low
    assert many.low < 0.5 < many.high and many.low > 0.3
    assert np.isnan(paired_difference(better[:4], base[:4]).low)
    assert many.high - many.low == pytest.approx(2 * 1.96 / 20, rel=0.15)
    with pytest.raises(ValueError, match="as many"):
        paired_difference([1.0], [1.0, 2.0])


def test_rank_correlation() -> None:
    assert spearman([1, 2, 3, 4], [10, 20, 300, 4000]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(0.9487, abs=1e-4)  # ties share their rank


@pytest.mark.parametrize("count", [2, 3, 50])
def test_a_shuffled_caption_is_never_ones_own(count: int) -> None:
    order = derangement(count, seed=1)
    assert sorted(order) == list(range(count)) and all(n != other for n, other in enumerate(order))


def test_sets_go_by_their_published_name_or_their_place(write_table, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    rows = [{"id": "a", "image": encoded(noise(30, 40))}]
    write_table(rows, "sets/kodak24.parquet")
    write_table(rows, "sets/more/own.parquet")
    sets = find_sets([str(tmp_path / "sets")])
    assert {name: len(tables) for name, tables in sets.items()} == {"kodak24": 1, "own": 1}
    write_table(rows, "sets/more/part-2.parquet")
    sets = find_sets([str(tmp_path / "sets"), str(tmp_path / "sets/kodak24.parquet")])
    assert {name: len(tables) for name, tables in sets.items()} == {"kodak24": 1, "sets": 2}
    assert len(read_samples(sets["sets"])) == 2 and len(read_samples(sets["sets"], 1)) == 1
    write_table(rows, "others/kodak24.parquet")
    with pytest.raises(SourceError, match="are both kodak24"):
        find_sets([str(tmp_path / "sets"), str(tmp_path / "others")])
    with pytest.raises(SourceError, match="nowhere"):
        find_sets([str(tmp_path / "nowhere")])


def test_samples_may_be_named_by_uri(write_table, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "one.png").write_bytes(encoded(noise(30, 40)))
    path = write_table([{"id": "a", "image": "one.png"}], "table.parquet")
    (sample,) = read_samples(open_tables([str(path)]))
    assert sample.pixels.shape == (30, 40, 3)
    path = write_table([{"id": "b", "image": "none.png"}], "other.parquet")
    with pytest.raises(SourceError, match=r"row 0 \(b\)"):
        read_samples(open_tables([str(path)]))


def test_without_opencv_and_matplotlib_the_tables_are_still_made(
    restorer: Restorer, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (baselines, figures):
        monkeypatch.setattr(f"{module.__name__}.importlib.util.find_spec", lambda name: None)
        assert not module.available()
    found = evaluate(restorer, {"kodak24": [samples[0]._replace(pixels=samples[0].pixels[:40, :40])]})
    assert "noise, sigma 25" in as_markdown(found) and "median" not in as_markdown(found)


def test_the_gate_is_measured_on_undamaged_images_and_all_kinds_of_damage(
    photo: np.ndarray, restorer: Restorer
) -> None:
    samples = [Sample(f"{n}", np.ascontiguousarray(photo[:96, :96]), ("a bear",), {}) for n in range(6)]
    harm = gate(restorer, samples)
    assert [one.kind == "clean" for one in harm.outcomes] == [True, False] * 3
    assert len({one.kind for one in harm.outcomes}) == 4
    everything = Recipe(gate=Gate(worse_above=1, clean_above=1, least_change=100, least_gain=0, review_below=0))
    nothing = Recipe(gate=Gate(least_gain=100))
    assert gate(restorer, samples, nothing).kept_share == 1 and not gate(restorer, samples, nothing).restored
    taken = gate(restorer, samples, everything)
    assert taken.kept_share < 1 and len(taken.restored) > 3
    assert gate(restorer, samples, everything) == taken
