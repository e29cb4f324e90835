from __future__ import annotations

import numpy as np
import pytest

from pipeline import Restorer
from pipeline.evaluation.protocols import colourise, denoise, derangement, jpeg, upscale
from pipeline.evaluation.tables import Sample


@pytest.fixture(scope="module")
def restorer() -> Restorer:
    return Restorer.from_pretrained(device="cpu")


@pytest.fixture(scope="module")
def samples(photo: np.ndarray) -> list[Sample]:
    crops = [photo[:160, :160], photo[100:260, 60:220]]
    return [Sample(f"{n}", crop, (f"a bear {n}",), {}) for n, crop in enumerate(crops)]


def test_noise_inputs_have_the_published_psnr(restorer: Restorer, samples: list[Sample]) -> None:
    result = denoise(restorer, samples, 25)
    assert result.input_psnr == pytest.approx(20.17, abs=0.05)
    assert denoise(restorer, samples, 25, clipped=True).input_psnr > result.input_psnr
    assert result.psnr > result.input_psnr + 5
    assert result.gain == pytest.approx(np.mean(result.each) - result.input_psnr)


def test_jpeg_inputs_are_pillows(restorer: Restorer, samples: list[Sample]) -> None:
    low, high = jpeg(restorer, samples, 10), jpeg(restorer, samples, 40)
    assert high.input_psnr > low.input_psnr + 2
    assert low.images == 2


def test_upscaling_is_measured_on_luma_inside_the_border(restorer: Restorer, samples: list[Sample]) -> None:
    odd = [Sample("odd", samples[0].pixels[:157, :158], (), {})]
    result = upscale(restorer, odd, 4)
    assert 15 < result.input_psnr < 45 and np.isfinite(result.psnr)


def test_captions_are_shown_truly_not_at_all_or_anothers(restorer: Restorer, samples: list[Sample]) -> None:
    seen: list[list[str | None]] = []

    class Spy:
        def restore_batch(self, requests):  # type: ignore[no-untyped-def]
            seen.append([request.caption for request in requests])
            return restorer.restore_batch(requests)

    results = [colourise(Spy(), samples, captions) for captions in ("true", "empty", "shuffled")]  # type: ignore[arg-type]
    assert seen == [["a bear 0", "a bear 1"], [None, None], ["a bear 1", "a bear 0"]]
    assert results[0].input_psnr == results[1].input_psnr == results[2].input_psnr
    assert results[0].each != results[1].each
    with pytest.raises(ValueError, match="shuffled"):
        colourise(restorer, samples, "wrong")


@pytest.mark.parametrize("count", [2, 3, 50])
def test_a_shuffled_caption_is_never_ones_own(count: int) -> None:
    order = derangement(count, seed=1)
    assert sorted(order) == list(range(count)) and all(n != other for n, other in enumerate(order))
