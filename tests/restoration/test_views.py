from __future__ import annotations

import torch
from torch import Tensor

from pipeline.restoration.views import REACH, filled_in

SIDE = 64


def _slope() -> Tensor:
    """A picture of slopes alone, which a fill that is one shade misses everywhere by another amount."""
    line = torch.linspace(0.2, 0.8, SIDE)
    return torch.stack([line[:, None].expand(SIDE, SIDE), line.expand(SIDE, SIDE), (line[:, None] + line) / 2])[None]


def test_what_is_there_is_not_touched() -> None:
    image, masks = _slope(), torch.zeros(1, 1, SIDE, SIDE)
    assert filled_in(image, torch.zeros_like(image), masks) is image
    masks[..., 20:40, 20:40] = 1
    filled = filled_in(image, torch.zeros_like(image), masks)
    assert torch.equal(torch.where(masks > 0, image, filled), image)


def test_a_fill_has_no_seam_and_is_itself_farther_in() -> None:
    image, masks = _slope(), torch.zeros(1, 1, SIDE, SIDE)
    masks[..., 16:48, 16:48] = 1
    fill = image + 0.2
    wrong = (filled_in(image, fill, masks) - image)[0, :, 32]
    assert float(wrong[:, 16].abs().max()) < 0.05  # beside the edge a quarter of the fault is left
    assert bool((wrong[:, 16:24].diff(dim=1) >= -1e-6).all())
    assert torch.allclose(wrong[:, 16 + REACH : 48 - REACH], torch.tensor(0.2), atol=1e-6)


def test_a_scratch_is_filled_from_its_sides() -> None:
    image, masks = _slope(), torch.zeros(1, 1, SIDE, SIDE)
    masks[..., 30:32] = 1
    coarse = torch.full_like(image, 0.5)
    before, after = (
        float((filled - image)[..., 30:32].square().mean())
        for filled in (torch.lerp(image, coarse, masks), filled_in(image, coarse, masks))
    )
    assert after < before / 20


def test_a_picture_of_which_nothing_is_left_is_the_fill() -> None:
    fill = _slope()
    assert torch.allclose(filled_in(torch.zeros_like(fill), fill, torch.ones(1, 1, SIDE, SIDE)), fill)


def test_each_image_is_filled_by_its_own_mask() -> None:
    image, masks = _slope().repeat(2, 1, 1, 1), torch.zeros(2, 1, SIDE, SIDE)
    masks[1, :, 10:20, 10:20] = 1
    fill = torch.zeros_like(image)
    both = filled_in(image, fill, masks)
    assert torch.equal(both[0], image[0])
    assert torch.equal(both[1:], filled_in(image[1:], fill[1:], masks[1:]))
