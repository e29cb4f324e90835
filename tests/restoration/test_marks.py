from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline import Restorer
from pipeline.damage.record import Damage
from pipeline.quality.scores import psnr
from pipeline.restoration.canvas import Canvas, Expected
from pipeline.restoration.marks import Marked, Marks, find_marks
from pipeline.restoration.overview import TOGETHER, view_of
from pipeline.restoration.request import Request
from pipeline.restoration.rows import Whole
from pipeline.restoration.tiles import Tile
from tests.conftest import noise

CPU = torch.device("cpu")
DICE = torch.Generator().manual_seed(0)


def blot(side: int = 64) -> torch.Tensor:
    """Logits of a covered square in the middle of a view."""
    logits = torch.full((1, 1, side, side), -6.0)
    logits[..., side // 4 : side // 2, side // 4 : side // 2] = 9.0
    return logits


def test_bands_hold_what_the_whole_holds() -> None:
    marks = Marks(torch.randn(1, 1, 64, 64, generator=DICE), (500, 90))
    whole = marks.rows(0, 500)
    bands = [marks.rows(top, min(500, top + 130)) for top in range(0, 500, 130)]
    for part, other in zip(whole, zip(*bands, strict=True), strict=True):
        assert np.array_equal(part, np.concatenate(other))


def test_what_is_covered_lies_where_it_lies_in_the_view() -> None:
    covered, probable = Marks(blot(), (200, 400)).rows(0, 200)
    expected = np.zeros((200, 400), bool)
    expected[50:100, 100:200] = True
    assert (covered != expected).mean() < 0.01
    assert probable[75, 150] > 0.98 and probable[150, 300] < 0.01


def test_a_covered_image_misses_what_was_missing_too() -> None:
    missing = np.zeros((64, 64), bool)
    missing[:8] = True
    image = Marked(Whole(noise(64, 64), missing), Marks(blot(), (64, 64)))
    pixels, lost = image.rows(0, 64)
    assert lost is not None and lost[:8].all() and lost[20:28, 20:28].all() and not lost[40:].any()
    assert np.array_equal(pixels, noise(64, 64)) and image.size == (64, 64)


@pytest.mark.parametrize(("certainty", "gain"), [(1.0, 20.0), (0.5, 0.0), (0.0, -20.0)])
def test_what_may_not_have_been_lost_may_have_been_right(certainty: float, gain: float) -> None:
    mask = np.zeros((16, 16), bool)
    mask[4:12] = True
    sure = np.full((16, 16), certainty, np.float16)
    canvas = Canvas(Request(np.zeros((16, 16, 3), np.float32), mask=mask, only_mask=False, certainty=sure), Damage())
    result = torch.where(torch.from_numpy(mask), 0.5, 0.0).expand(3, -1, -1)
    canvas.paint(Tile(0, 0, (0, 0, 16, 16)), result, torch.full((16, 16), 0.0025).log(), torch.zeros(16, 16) > 0)
    done = canvas.finish(Damage(), 0.0, None, Expected(0.01))
    before = done.input_error
    if certainty == 1:
        assert before is None
        before = done.mean_error + 0.125
    assert before is not None
    assert 10 * np.log10(before / done.mean_error) == pytest.approx(gain, abs=4 if gain else 0.1)


@pytest.fixture(scope="module")
def restorer() -> Restorer:
    return Restorer.from_pretrained(device="cpu")


def without_corner(photo: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A photo from which a corner is torn off, and where."""
    height, width = photo.shape[:2]
    y, x = np.mgrid[:height, :width]
    gone = x / width + y / height < 0.4 + 0.01 * np.sin(x / 5)
    return np.where(gone[..., None], np.uint8(245), photo), gone


def test_a_missing_corner_is_found_and_filled(restorer: Restorer, photo: np.ndarray) -> None:
    torn, gone = without_corner(photo)
    result = restorer.restore(torn)
    assert (result.lost & gone).sum() > 0.9 * gone.sum()
    assert (result.lost & ~gone).mean() < 0.01
    assert psnr(result.pixels, photo) > psnr(torn, photo) + 5
    assert result.damage.missing == pytest.approx(gone.mean(), abs=0.02)


@pytest.mark.parametrize("together", [1, 32])
def test_marks_of_many_pictures_keep_their_places(
    restorer: Restorer, photo: np.ndarray, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TOGETHER, "cpu", together)
    head = restorer._model.marks
    assert head is not None
    (torn, gone), small = without_corner(photo), photo[:200, :200]
    pictures = [Whole(photo), Whole(small), Whole(torn), Whole(np.ascontiguousarray(torn[:, ::-1]))]
    found = find_marks(head, [view_of(picture, CPU) for picture in pictures], [picture.size for picture in pictures])
    assert [marks is not None for marks in found] == [False, False, True, True]
    for marks, wanted in ((found[2], gone), (found[3], gone[:, ::-1])):
        assert marks is not None and (marks.rows(0, len(photo))[0] & wanted).sum() > 0.9 * wanted.sum()


def test_where_a_mask_is_given_no_marks_are_looked_for(restorer: Restorer, photo: np.ndarray) -> None:
    torn = photo.copy()
    torn[:60, :60] = 245
    mask = np.zeros(photo.shape[:2], bool)
    mask[100:120, 100:120] = True
    result = restorer.restore(torn, mask=mask)
    assert np.array_equal(result.lost, mask)
    assert np.array_equal(result.pixels[~mask], torn[~mask])


def test_a_marked_image_is_the_same_band_by_band(photo: np.ndarray) -> None:
    restorer = Restorer.from_pretrained(device="cpu", tile=160)
    torn, gone = without_corner(photo)
    whole = restorer.restore(torn)
    request = Request(torn)
    view = restorer.look_at(Whole(torn), request)
    bands = list(restorer.restore_rows(Whole(torn), request, view))
    assert len(bands) > 1 and whole.lost[gone].mean() > 0.9
    for part, name in ((whole.array, "array"), (whole.lost, "lost"), (whole.uncertainty, "uncertainty")):
        assert np.allclose(part, np.concatenate([getattr(band, name) for band in bands]), atol=2e-5), name
