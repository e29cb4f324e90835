"""Batches of any size, memory that does not do, and what a search remembers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import Restorer
from pipeline.restoration.precision import half_precision
from pipeline.restoration.request import Request
from tests.conftest import noise

SIZES = [(300, 460), (290, 455), (300, 450), (130, 470), (700, 300)]
PICTURES = [Request(noise(*size, n), caption=f"picture {n}") for n, size in enumerate(SIZES)]
TOGETHER = 320 * 480
"""Pixels of a tile that the first three of them have."""


@pytest.fixture(scope="module")
def one_by_one() -> list[np.ndarray]:
    return arrays(Restorer.from_pretrained(device="cpu"))


def arrays(restorer: Restorer) -> list[np.ndarray]:
    return [result.array for result in restorer.restore_batch(PICTURES)]


def only_fits(monkeypatch: pytest.MonkeyPatch, restorer: Restorer, tiles: int, error: Exception) -> list[int]:
    """From now on the decoder has memory for so many tiles; the list tells how many it was asked for."""
    decode, asked = restorer._model.decode, []

    def limited(images: torch.Tensor, *rest: Any) -> Any:
        asked.append(len(images))
        if len(images) > tiles:
            raise error
        return decode(images, *rest)

    monkeypatch.setattr(restorer._model, "decode", limited)
    return asked


ROUNDING = 0.0 if half_precision(torch.device("cpu")) is torch.bfloat16 else 1e-5
"""CPUs without bfloat16 choose other kernels for other batches; those with it give the same bits."""


def same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return all(np.allclose(*pair, rtol=0, atol=ROUNDING) for pair in zip(one, other, strict=True))


@pytest.mark.parametrize("tiles", [3, 8])
def test_results_do_not_depend_on_how_many_tiles_run_together(one_by_one: list[np.ndarray], tiles: int) -> None:
    restorer = Restorer.from_pretrained(device="cpu")
    restorer._engine.batch_pixels = tiles * TOGETHER
    assert same(arrays(restorer), one_by_one)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to"),
    ],
)
def test_where_memory_does_not_do_batches_are_halved(
    one_by_one: list[np.ndarray], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    restorer = Restorer.from_pretrained(device="cpu")
    restorer._engine.batch_pixels = 8 * TOGETHER
    asked = only_fits(monkeypatch, restorer, 2, error)
    assert same(arrays(restorer), one_by_one)
    assert max(asked) > 2
    failed = sum(count > 2 for count in asked)
    arrays(restorer)
    assert sum(count > 2 for count in asked) == failed  # it has learned


def test_a_tile_too_large_for_the_memory_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    restorer = Restorer.from_pretrained(device="cpu")
    only_fits(monkeypatch, restorer, 0, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        arrays(restorer)


def test_other_errors_are_not_taken_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    restorer = Restorer.from_pretrained(device="cpu")
    restorer._engine.batch_pixels = 8 * TOGETHER
    asked = only_fits(monkeypatch, restorer, 2, RuntimeError("shapes do not fit"))
    with pytest.raises(RuntimeError, match="shapes"):
        restorer.restore_batch(PICTURES[:3])
    assert len(asked) == 1


def test_a_batch_that_is_not_full_is_padded_to_little_more(monkeypatch: pytest.MonkeyPatch) -> None:
    restorer = Restorer.from_pretrained(device="cpu")
    restorer._engine.batch_pixels = 8 * 64**2
    decode, counts = restorer._model.decode, []
    monkeypatch.setattr(
        restorer._model, "decode", lambda tiles, *rest: (counts.append(len(tiles)), decode(tiles, *rest))[1]
    )
    pictures = [Request(noise(40, 50, number)) for number in range(11)]
    together = restorer.restore_batch(pictures)
    assert counts == [8, 4]
    for request, result in zip(pictures, together, strict=True):
        assert same([restorer.restore_batch([request])[0].array], [result.array])
    assert counts[2:] == [1] * 11


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_says_what_the_cpu_says_but_for_rounding(photo: np.ndarray) -> None:
    hole = np.zeros(photo.shape[:2], bool)
    hole[30:60, 40:90] = True
    grey = np.ascontiguousarray(photo[..., :1].repeat(3, axis=2))
    torn = photo.copy()
    torn[:70, :70] = 245
    asked = [
        Request(photo, caption="a photograph"),
        Request(photo, mask=hole),
        Request(grey, colourise=True),
        Request(torn),
        Request(photo, strength=0.5),
        Request(photo, references=(photo[20:, 20:],)),
    ]
    cpu, gpu = (Restorer.from_pretrained(device=device).restore_batch(asked) for device in ("cpu", "cuda"))
    for one, other in zip(cpu, gpu, strict=True):
        assert np.abs(one.array - other.array).mean() < 0.004
        assert (one.lost != other.lost).mean() < 0.01
        assert one.expected_psnr == pytest.approx(other.expected_psnr, abs=0.5)
        assert one.mean_error == pytest.approx(other.mean_error, rel=0.1)


class Speeds:
    """Stands in for measuring: megapixels a second by side and batch."""

    def __init__(self, restorer: Restorer, monkeypatch: pytest.MonkeyPatch, of: Any) -> None:
        self.asked: list[tuple[int, int]] = []
        engine = restorer._engine

        def speed(size: tuple[int, int], rounds: int = 3) -> float:
            side, _ = size
            self.asked.append((side, engine.batch(size)))
            return float(of(side, engine.batch(size)))

        monkeypatch.setattr(engine, "speed", speed)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_the_search_takes_the_fastest_batch_and_tile_and_remembers_them(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Restorer.from_pretrained(device="cpu")
    speeds = Speeds(first, monkeypatch, lambda side, batch: min(batch, 8) if side == 272 else side)
    found = first.tune("auto")
    assert found == (1072, 8 * 272**2) == (first.tile, first._engine.batch_pixels)
    assert (272, 16) in speeds.asked
    second = Restorer.from_pretrained(device="cpu")
    asked = Speeds(second, monkeypatch, lambda side, batch: pytest.fail("measured again")).asked
    assert second.tune("auto") == found and not asked
    for record in cache.rglob("*.json"):
        record.write_text("{")
    assert first.tune("auto") == found  # from a broken record: measured again


def test_a_larger_batch_must_be_worth_it_and_fit(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    restorer = Restorer.from_pretrained(device="cpu")
    Speeds(restorer, monkeypatch, lambda side, batch: 1 + 0.01 * batch)
    assert restorer.tune("auto").batch_pixels == 272**2
    speeds = Speeds(restorer, monkeypatch, lambda side, batch: batch)
    restorer.tune(memory_mb=100)
    assert max(batch for _, batch in speeds.asked) * 272**2 * 16 * 32 <= 100e6
    assert restorer.tile == 560  # though it does not fit: then it runs alone


def test_a_cpu_is_not_searched_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is as fast with any batch, and the search would take the first seconds of every actor."""
    restorer = Restorer.from_pretrained(device="cpu")
    Speeds(restorer, monkeypatch, lambda side, batch: pytest.fail("measured"))
    assert restorer.tune() == (560, 64**2) and restorer.tune(400).tile == 400 == restorer.tile


def test_after_the_first_batch_does_not_fit_the_smallest_is_taken(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    restorer = Restorer.from_pretrained(device="cpu")
    only_fits(monkeypatch, restorer, 0, torch.OutOfMemoryError("CUDA out of memory"))
    assert restorer.tune("auto").batch_pixels == 272**2


def test_the_bare_speed_is_measured_in_a_batch_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    restorer = Restorer.from_pretrained(device="cpu", tile=272)
    restorer._engine.batch_pixels = 4 * 272**2
    asked = only_fits(monkeypatch, restorer, 1, RuntimeError("CUDNN_STATUS_ALLOC_FAILED"))
    assert restorer.bare_speed() > 0 and asked[:3] == [4, 2, 1]


def test_a_batch_that_runs_out_of_memory_is_not_taken(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.restoration.restorer.LARGEST_SIDES", (400,))
    restorer = Restorer.from_pretrained(device="cpu")
    only_fits(monkeypatch, restorer, 1, torch.OutOfMemoryError("CUDA out of memory"))
    assert restorer.tune("auto").batch_pixels == 272**2


def test_without_a_place_to_write_the_search_is_made_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/nowhere")
    restorer = Restorer.from_pretrained(device="cpu")
    Speeds(restorer, monkeypatch, lambda side, batch: min(batch, 2))
    assert restorer.tune("auto").batch_pixels == 2 * 272**2


def test_captions_of_a_batch_are_encoded_together_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    restorer = Restorer.from_pretrained(device="cpu")
    encode, batches = restorer.text._encode, []
    monkeypatch.setattr(restorer.text, "_encode", lambda texts: (batches.append(list(texts)), encode(texts))[1])
    small = [Request(noise(32, 32, n), caption=f"picture {n % 6}") for n in range(12)]
    restorer.restore_batch(small)
    restorer.restore_batch(small)
    assert batches == [[f"picture {n}" for n in range(6)]]


def test_what_is_certainly_undamaged_is_not_decoded(photo: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.zeros(photo.shape[:2], bool)
    mask[20:40, 20:40] = True
    grey = photo.mean(2).astype(np.uint8)[..., None].repeat(3, 2)
    noisy = (photo / 255 + np.random.default_rng(0).normal(0, 0.2, photo.shape)).astype(np.float32)
    all_of_it = Restorer.from_pretrained(device="cpu")
    certainty = all_of_it.restore_batch([Request(photo), Request(noisy)])
    assert certainty[0].clean > certainty[1].clean
    restorer = Restorer.from_pretrained(device="cpu", skip_undamaged=(certainty[0].clean + certainty[1].clean) / 2)
    asked = only_fits(monkeypatch, restorer, 99, RuntimeError())
    result = restorer.restore_batch([Request(photo)])[0]
    assert not asked and np.array_equal(result.pixels, photo)
    assert not result.lost.any() and result.expected_psnr > 40 and result.damage == certainty[0].damage
    restorer.restore_batch([Request(photo, mask=mask, only_mask=True), Request(grey, colourise=True)])
    assert len(asked) == 2
    again = restorer.restore_batch([Request(noisy)])[0]
    assert np.array_equal(again.array, certainty[1].array)
