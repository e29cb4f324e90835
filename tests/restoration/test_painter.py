"""The painter in use; that it learns is tested with the training."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.damage.tone import luma
from pipeline.restoration.assembly import with_head
from pipeline.restoration.config import ModelConfig
from pipeline.restoration.model import CompactModel
from pipeline.restoration.painter import with_painted

SMALL = ModelConfig(thumbnail=64, width=32, decoder_widths=(8, 8, 16, 16), decoder_blocks=(1, 1, 1, 1))
COUNT = 4
WORDS = 5


@pytest.fixture(scope="module")
def plain() -> CompactModel:
    torch.manual_seed(0)
    return CompactModel(SMALL).eval()


@pytest.fixture(scope="module")
def painting(plain: CompactModel) -> CompactModel:
    """With a painter that has gone its own way."""
    model = with_head(plain, "painter", seed=1).eval()
    torch.manual_seed(2)
    assert model.painter is not None
    with torch.no_grad():
        for parameter in model.painter.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def shown(seed: int = 0, grey: bool = False, missing: bool = False) -> Tensor:
    torch.manual_seed(seed)
    pictures = torch.rand(COUNT, 3, 64, 64)
    if grey:
        pictures = luma(pictures).expand_as(pictures)
    mask = torch.zeros(COUNT, 1, 64, 64)
    if missing:
        mask[:, :, 16:32, 16:40] = 1
    return torch.cat([pictures, mask], 1)


@torch.no_grad()
def coarse(
    model: CompactModel, thumbnails: Tensor, words: Tensor | None = None, references: Tensor | None = None
) -> Tensor:
    text = torch.zeros(COUNT, WORDS, SMALL.text_width) if words is None else words
    absent = torch.full((COUNT, WORDS), words is None)
    places = torch.zeros(COUNT, 0, 4, 64, 64) if references is None else references
    nowhere = torch.zeros(COUNT, places.shape[1], dtype=torch.bool)
    native = torch.zeros(COUNT, SMALL.probes, 4, SMALL.probe, SMALL.probe)
    return model.look(thumbnails, native, text, absent, places, nowhere).guide.coarse


def test_a_new_painter_paints_what_the_global_view_does(plain: CompactModel) -> None:
    new = with_head(plain, "painter", seed=1).eval()
    for picture in (shown(grey=True), shown(missing=True), shown(grey=True, missing=True)):
        torch.testing.assert_close(coarse(new, picture), coarse(plain, picture), atol=1e-5, rtol=1e-4)


def test_what_has_its_colours_and_is_whole_is_left_alone(plain: CompactModel, painting: CompactModel) -> None:
    assert torch.equal(coarse(painting, shown()), coarse(plain, shown()))


def test_of_a_grey_picture_the_colours_are_painted_and_nothing_else(
    plain: CompactModel, painting: CompactModel
) -> None:
    before, after = (coarse(model, shown(grey=True)) for model in (plain, painting))
    assert not torch.allclose(before, after, atol=1e-3)
    torch.testing.assert_close(luma(before), luma(after), atol=1e-5, rtol=1e-4)


def test_of_a_picture_with_a_hole_the_hole_is_painted_and_nothing_else(
    plain: CompactModel, painting: CompactModel
) -> None:
    before, after = (coarse(model, shown(missing=True)) for model in (plain, painting))
    inside = torch.zeros(16, 16, dtype=torch.bool)
    inside[4:8, 4:10] = True
    assert torch.equal(before[..., ~inside], after[..., ~inside])
    assert bool(((before - after)[..., inside].abs() > 1e-4).float().mean() > 0.9)


def test_a_painter_follows_captions_and_references(painting: CompactModel) -> None:
    picture = shown(grey=True)
    torch.manual_seed(3)
    one, other = torch.randn(2, COUNT, WORDS, SMALL.text_width)
    reference = shown(seed=4)[:, None]
    told = [coarse(painting, picture), coarse(painting, picture, one), coarse(painting, picture, other)]
    told += [coarse(painting, picture, one, reference)]
    for index, result in enumerate(told):
        assert bool(result.isfinite().all())
        assert all(not torch.allclose(result, another, atol=1e-4) for another in told[:index])


def test_only_what_is_gone_is_taken_of_a_painted_picture() -> None:
    torch.manual_seed(0)
    one, painted, missing = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8), torch.zeros(2, 1, 8, 8)
    missing[:, :, :4] = 1
    both = with_painted(one, painted, missing, torch.tensor([False, True]))
    torch.testing.assert_close(both[:, :, :4], painted[:, :, :4])
    assert torch.equal(both[0, :, 4:], one[0, :, 4:])
    torch.testing.assert_close(luma(both)[1, :, 4:], luma(one)[1, :, 4:])
    torch.testing.assert_close((both - luma(both))[1], (painted - luma(painted))[1])
