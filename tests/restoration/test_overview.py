"""What the heads have in common that look at whole images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline import Restorer
from pipeline.restoration.assembly import assemble, with_head
from pipeline.restoration.config import ModelConfig
from pipeline.restoration.marks import MarkHead, find_marks
from pipeline.restoration.overview import SIDES, side_for, view_of
from pipeline.restoration.rows import Whole
from pipeline.restoration.stains import StainHead, find_stains
from tests.conftest import noise

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("size", "side"), [((40, 900), 256), ((224, 224), 256), ((400, 600), 384), ((3000, 9000), 512)]
)
def test_a_view_is_about_as_large_as_its_image(size: tuple[int, int], side: int) -> None:
    assert side_for(*size) == side and side in SIDES


def test_heads_that_have_learned_nothing_find_nothing() -> None:
    torch.manual_seed(0)
    pictures = [Whole(noise(90, 120)), Whole(noise(300, 420)), Whole(noise(64, 64))]
    views, sizes = [view_of(picture, CPU) for picture in pictures], [picture.size for picture in pictures]
    assert find_marks(MarkHead((8, 8, 8, 8)), views, sizes) == [None] * 3
    assert find_stains(StainHead((8, 8, 8, 8)), views, sizes) == [None] * 3


@pytest.mark.parametrize("part", ["marks", "stains"])
def test_a_model_that_gets_a_head_restores_as_before(photo: np.ndarray, part: str) -> None:
    model = assemble(sizes=ModelConfig(decoder_widths=(8, 8, 16, 16)))
    assert getattr(model, part) is None and assemble().marks is not None
    larger = with_head(model, part)
    assert getattr(larger, part) is not None and with_head(larger, part) is larger
    before, after = (Restorer(one, device="cpu").restore(photo[:96, :128]) for one in (model, larger))
    assert np.array_equal(before.array, after.array) and before.expected_psnr == after.expected_psnr
