from __future__ import annotations

import numpy as np
import pytest

from pipeline.restoration.tiles import covering, cut, plan_tiles, spans

SIZES = [(1, 1), (1, 500), (3, 64), (64, 64), (65, 64), (120, 119), (200, 333), (641, 480)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("margin", [0, 8])
def test_every_pixel_is_kept_from_exactly_one_tile(size: tuple[int, int], margin: int) -> None:
    counts = np.zeros(size, int)
    for tile in plan_tiles(*size, size=(64, 64), margin=margin):
        top, left, bottom, right = tile.keep
        counts[top:bottom, left:right] += 1
        assert tile.top <= top < bottom <= tile.top + 64
        assert tile.left <= left < right <= tile.left + 64
    assert (counts == 1).all()


@pytest.mark.parametrize("size", SIZES)
def test_no_kept_pixel_lies_in_the_margin_of_an_inner_edge(size: tuple[int, int]) -> None:
    height, width = size
    for tile in plan_tiles(height, width, size=(64, 64), margin=8):
        top, left, bottom, right = tile.keep
        assert top == 0 or top >= tile.top + 8
        assert left == 0 or left >= tile.left + 8
        assert bottom == height or bottom <= tile.top + 64 - 8
        assert right == width or right <= tile.left + 64 - 8


@pytest.mark.parametrize("margin", [8, 10])
def test_every_tile_starts_on_a_block_of_jpeg(margin: int) -> None:
    for length in range(1, 300):
        for tile in plan_tiles(length, 77, size=(64, 64), margin=margin):
            assert tile.top % 8 == 0
            assert tile.left % 8 == 0


def test_tiles_put_together_again_are_the_image() -> None:
    image = np.random.default_rng(0).integers(0, 256, (150, 97, 3), dtype=np.uint8)
    again = np.zeros_like(image)
    for tile in plan_tiles(150, 97, size=(64, 64), margin=8):
        top, left, bottom, right = tile.keep
        pixels = cut(image, tile, (64, 64))[:, top - tile.top : bottom - tile.top, left - tile.left : right - tile.left]
        again[top:bottom, left:right] = (pixels * 255).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(again, image)


def test_a_small_image_is_mirrored_to_the_tile() -> None:
    image = np.array([[[10], [20], [30]]], np.uint8)
    tile = plan_tiles(1, 3, size=(64, 64), margin=8)[0]
    row = (cut(image, tile, (64, 64))[0, 40] * 255).round().int().tolist()
    assert row[:7] == [10, 20, 30, 20, 10, 20, 30]


def test_tiles_are_counted_as_they_are_planned() -> None:
    for length in range(1, 400, 7):
        for side in (40, 64, 96):
            assert covering(length, side, 8) == len(list(spans(length, side, 8)))


def test_tiles_need_not_be_square() -> None:
    image = np.random.default_rng(0).integers(0, 256, (150, 97, 3), dtype=np.uint8)
    again = np.zeros_like(image)
    for tile in plan_tiles(150, 97, size=(96, 40), margin=8):
        part = cut(image, tile, (96, 40))
        assert part.shape == (3, 96, 40)
        top, left, bottom, right = tile.keep
        kept = part[:, top - tile.top : bottom - tile.top, left - tile.left : right - tile.left]
        again[top:bottom, left:right] = (kept * 255).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(again, image)
