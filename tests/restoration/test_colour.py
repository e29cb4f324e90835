from __future__ import annotations

import numpy as np
import torch

from pipeline.damage.tone import luma
from pipeline.restoration.colour import colour_onto, is_grey


def test_colours_leave_the_luminance_and_stay_in_range() -> None:
    generator = torch.Generator().manual_seed(0)
    luminance = torch.rand(1, 40, 50, generator=generator)
    coloured = torch.rand(3, 40, 50, generator=generator) * 2 - 0.5
    result = colour_onto(luminance, coloured)
    assert torch.allclose(luma(result), luminance, atol=1e-5)
    assert result.min() >= -1e-6 and result.max() <= 1 + 1e-6


def test_black_and_white_take_no_colour() -> None:
    luminance = torch.tensor([[[0.0, 1.0]]])
    result = colour_onto(luminance, torch.rand(3, 1, 2))
    assert torch.allclose(result, luminance.expand(3, 1, 2), atol=1e-6)


def test_one_coloured_pixel_makes_an_image_coloured() -> None:
    grey = np.repeat(np.arange(12, dtype=np.uint8).reshape(3, 4, 1), 3, axis=2)
    assert is_grey(grey)
    grey[2, 3, 0] += 1
    assert not is_grey(grey)
