"""The expert in use; that it learns is tested with the training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pipeline.restoration.assembly import with_head
from pipeline.restoration.config import ModelConfig
from pipeline.restoration.decoder import Guide, TileDecoder
from pipeline.restoration.expert import Router, begin_as
from pipeline.restoration.model import CompactModel
from pipeline.restoration.request import Request
from pipeline.restoration.restorer import Restorer
from pipeline.restoration.rows import Whole
from pipeline.restoration.tone import Tone
from tests.conftest import noise

SMALL = ModelConfig(width=32, decoder_widths=(8, 8, 16, 16), decoder_blocks=(1, 1, 1, 1))


def routed(all_of_them: bool) -> Restorer:
    """A small model that routes all, or none, of what may be the expert's, which answers otherwise than the decoder."""
    torch.manual_seed(0)
    model = with_head(CompactModel(SMALL), "expert", seed=1)
    assert model.router is not None and model.expert is not None
    torch.nn.init.constant_(model.router.out.bias, 1.0 if all_of_them else -1.0)
    torch.nn.init.normal_(model.expert.leave.weight, std=0.05)
    return Restorer(model, device="cpu")


@pytest.fixture(scope="module")
def by_expert() -> Restorer:
    return routed(True)


@pytest.fixture(scope="module")
def by_decoder() -> Restorer:
    return routed(False)


def same(one: Any, other: Any) -> bool:
    return np.array_equal(one.array, other.array)


def test_what_is_routed_is_the_experts_and_nothing_else(by_expert: Restorer, by_decoder: Restorer) -> None:
    picture, grey = noise(70, 90), np.repeat(noise(70, 90)[..., :1], 3, 2)
    hole = np.zeros((70, 90), np.uint8)
    hole[10:30, 20:50] = 255
    assert not same(by_expert.restore(picture), by_decoder.restore(picture))
    assert same(by_expert.restore(picture, mask=hole), by_decoder.restore(picture, mask=hole))
    assert same(by_expert.restore(grey), by_decoder.restore(grey))
    assert same(by_expert.restore(grey, colourise=True), by_decoder.restore(grey, colourise=True))


def test_a_new_expert_changes_nothing(by_decoder: Restorer) -> None:
    torch.manual_seed(0)
    plain = Restorer(CompactModel(SMALL), device="cpu")
    assert same(plain.restore(noise(70, 90)), by_decoder.restore(noise(70, 90)))


def test_results_do_not_depend_on_what_others_are_routed_to(by_expert: Restorer) -> None:
    grey = np.repeat(noise(300, 90)[..., :1], 3, 2)
    pictures = [noise(70, 90, 1), grey, noise(300, 400, 2), noise(50, 60, 3)]
    together = by_expert.restore_batch([Request(picture) for picture in pictures])
    assert all(same(one, by_expert.restore(picture)) for one, picture in zip(together, pictures, strict=True))


def test_bands_are_the_experts_as_the_whole_is(by_expert: Restorer, by_decoder: Restorer) -> None:
    picture, request = noise(700, 300), Request(noise(1, 1))
    view = by_expert.look_at(Whole(picture), request)
    bands = np.concatenate([band.array for band in by_expert.restore_rows(Whole(picture), request, view)])
    assert np.array_equal(bands, by_expert.restore(picture).array)
    assert not np.array_equal(bands, by_decoder.restore(picture).array)


def test_an_expert_begins_as_a_decoder_that_is_told_the_usual() -> None:
    torch.manual_seed(0)
    decoder, expert = TileDecoder(SMALL).eval(), TileDecoder(SMALL, told=False).eval()
    for name, weight in decoder.named_parameters():
        if "modulate" in name:
            torch.nn.init.normal_(weight, std=0.2)
    with torch.no_grad():
        decoder.enter.weight[:, 3:] = 0  # nor does it look at the coarse picture
    vector, tiles = torch.randn(SMALL.width), torch.rand(2, 3, 160, 160)
    begin_as(expert, decoder, vector)
    guide = Guide(
        torch.zeros(2, 1, SMALL.width),
        torch.zeros(2, 1, dtype=torch.bool),
        vector.expand(2, -1),
        torch.zeros(2, 3, 8, 8),
        *Tone.none(2, torch.device("cpu")),
    )
    planes = torch.cat([tiles, torch.zeros(2, 4, 160, 160)], 1)
    with torch.no_grad():
        told, alone = decoder(planes, guide, torch.zeros(2, 400, 2)), expert(tiles)
    inner = (..., slice(64, -64), slice(64, -64))  # at the edges there is no shift
    torch.testing.assert_close(alone.pixels[inner], told.pixels[inner], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(alone.log_error[inner], told.log_error[inner], atol=1e-4, rtol=1e-3)
    assert bool((alone.lost < 0).all())


def test_a_tone_head_that_comes_later_leaves_the_router_as_it_was() -> None:
    torch.manual_seed(0)
    model = with_head(CompactModel(SMALL), "expert")
    assert model.router is not None
    torch.nn.init.normal_(model.router.out.weight)
    toned = with_head(model, "tone").router
    assert toned is not None
    vector, found = torch.randn(4, SMALL.width), torch.randn(4, 7)
    torch.testing.assert_close(toned(vector, torch.cat([found, torch.randn(4, 3)], 1)), model.router(vector, found))


def test_a_router_that_has_learned_nothing_says_no() -> None:
    router = Router(8, 7)
    assert not router.has_learned
    assert bool((router(torch.randn(20, 8), torch.randn(20, 7)) < 0).all())
