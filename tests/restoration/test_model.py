from __future__ import annotations

import numpy as np
import torch

from pipeline.damage import tone
from pipeline.damage.record import Damage
from pipeline.restoration.canvas import Canvas
from pipeline.restoration.judge import Judge, describe, summary
from pipeline.restoration.request import Request
from pipeline.restoration.tiles import Tile
from pipeline.restoration.views import continued, regions, thumbnails

DICE = torch.Generator().manual_seed(0)


def test_a_tile_gets_its_part_of_a_map() -> None:
    ramp = torch.linspace(0, 1, 40)[None, None, None].expand(1, 1, 40, 40)
    right = regions(ramp, torch.tensor([[0.0, 0.5, 1.0, 1.0]]), 80, 80)
    assert right.shape == (1, 1, 80, 80)
    assert abs(float(right[..., 0].mean()) - 0.5) < 0.02 and abs(float(right[..., -1].mean()) - 1) < 0.02


def test_a_tile_far_out_gets_its_part_exactly_in_half_precision_too() -> None:
    ramp = torch.linspace(0, 1, 1001)[None, None, None].expand(1, 1, 1001, 1001)
    box = torch.tensor([[0.9, 0.9, 0.93, 0.93]])
    with torch.autocast("cpu", torch.bfloat16):
        part = regions(ramp, box, 240, 240)
    wanted = 0.9 + 0.03 * (torch.arange(240) + 0.5) / 240
    assert torch.allclose(part[0, 0, 0].float(), wanted, atol=1e-3)


def test_what_is_present_stays_and_its_surroundings_go_on() -> None:
    pictures = torch.rand(1, 3, 40, 40, generator=DICE)
    assert torch.equal(continued(pictures, torch.ones(1, 1, 40, 40)), pictures)
    present = torch.ones(1, 1, 40, 40)
    present[..., :, 10:30] = 0
    pictures[..., :20], pictures[..., 20:] = 0.2, 0.8
    filled = continued(pictures * present, present)
    assert torch.equal(filled[..., :10], pictures[..., :10]) and torch.equal(filled[..., 30:], pictures[..., 30:])
    inside = filled[0, 0, :, 10:30].mean(0)
    assert bool((inside >= 0.2).all() and (inside <= 0.8).all())
    assert inside[0] < 0.4 and inside[-1] > 0.6
    assert bool((inside.diff() > -0.02).all())  # from the one side to the other


def test_a_thumbnail_of_nothing_is_black_and_finite() -> None:
    images, masks = torch.rand(1, 3, 200, 100, generator=DICE), torch.ones(1, 1, 200, 100)
    small = thumbnails(images, masks, 160)
    assert bool(small.isfinite().all()) and float(small[:, :3].abs().max()) == 0 and float(small[:, 3].min()) == 1


def test_a_thumbnail_does_not_show_what_the_mask_hides() -> None:
    images = torch.rand(1, 3, 200, 100, generator=DICE)
    masks = torch.zeros(1, 1, 200, 100)
    masks[..., 50:120, 30:80] = 1
    hidden = images.clone()
    hidden[..., 50:120, 30:80] = 1
    assert torch.equal(thumbnails(images, masks, 160), thumbnails(hidden, masks, 160))


def test_an_untaught_judge_says_what_the_pixels_say() -> None:
    log_error = torch.tensor([-9.0, -5.0])[:, None, None, None].expand(2, 1, 8, 8)
    pixels = summary(log_error, torch.zeros(2, 3, 8, 8), torch.full((2, 1, 8, 8), -4.0))
    judged = Judge(16, 7)(pixels, torch.rand(2, 16, generator=DICE), torch.rand(2, 7, generator=DICE))
    assert torch.allclose(judged, torch.tensor([-9.0, -5.0]), atol=0.01)


def test_the_judge_is_told_the_same_of_an_image_as_of_a_patch_in_training() -> None:
    pixels = np.random.default_rng(0).random((24, 32, 3)).astype(np.float32)
    for grey in (False, True):
        image = np.repeat(pixels[..., :1], 3, axis=2) if grey else pixels
        before = torch.from_numpy(image.copy()).permute(2, 0, 1)
        result = (before + 0.1 * torch.rand(3, 24, 32, generator=DICE)).clamp(0, 1)
        log_error, lost = torch.rand(24, 32, generator=DICE) - 6, torch.rand(24, 32, generator=DICE) - 0.9
        canvas = Canvas(Request(image), Damage(grey=grey))
        canvas.paint(Tile(0, 0, (0, 0, 24, 32)), result, log_error, lost > 0)
        told = describe(*torch.tensor(canvas.means[:4])[:, None])
        change = tone.luma(result).expand(3, -1, -1) - before if grey else result - before
        assert torch.allclose(told, summary(log_error[None, None], change[None], lost[None, None]), atol=1e-4)
