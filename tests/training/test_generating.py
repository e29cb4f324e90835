"""Training a generator: the same loop, another task."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from pipeline.errors import ModelError, SourceError
from pipeline.restoration.generator import Generator, GeneratorConfig
from pipeline.restoration.text import MiniLMEncoder
from pipeline.restoration.weights import load_generator, load_model, save_model
from pipeline.training.data import Photo
from pipeline.training.generating import GenerationPlan, train_generator

CPU = torch.device("cpu")
TINY = GeneratorConfig(side=16, widths=(16, 24), blocks=1, width=32, heads=2)
PLAN = GenerationPlan(steps=6, batch=4, warm_up=2, checkpoint_every=4)


@pytest.fixture(scope="module")
def photos() -> list[Photo]:
    """Red ones and blue ones, whose captions say so."""
    colours = {"a red wall": (220, 30, 30), "a blue wall": (30, 30, 220)}
    return [
        Photo(torch.tensor(colour, dtype=torch.uint8)[:, None, None].expand(3, 230, 240).contiguous(), (caption,))
        for caption, colour in colours.items()
    ] * 4


def run(photos: list[Photo], folder: Path, plan: GenerationPlan = PLAN) -> Generator:
    return train_generator(photos, photos[:2], folder, TINY, plan, CPU, lambda progress: None)


@pytest.mark.slow
def test_it_learns_what_captions_mean(photos: list[Photo], tmp_path: Path) -> None:
    plan = dataclasses.replace(PLAN, steps=400, batch=16, learning_rate=3e-3, warm_up=20, average=0.98)
    model = run(photos, tmp_path, plan).eval()
    text = MiniLMEncoder(TINY.text_tokens, CPU)(["a red wall", "a blue wall"])
    pictures = model.pictures(text.tokens, text.absent, [1, 1], steps=8)
    red, blue = pictures.mean((2, 3))
    assert red[0] > red[2] + 0.2 and blue[2] > blue[0] + 0.2
    curve = (tmp_path / "curve.csv").read_text().splitlines()
    last = dict(zip(curve[0].split(","), curve[-1].split(","), strict=True))
    assert float(last["held_out"]) < float(last["held_out_shuffled"])


def test_a_picture_follows_from_caption_and_seed_alone() -> None:
    torch.manual_seed(0)
    model = Generator(TINY).eval()
    for name, weight in model.named_parameters():  # at first it lets nothing of the words in
        if "modulate" in name or name.endswith("out.weight"):
            torch.nn.init.normal_(weight, std=0.1)
    text, absent = torch.randn(3, 32, 384), torch.zeros(3, 32, dtype=torch.bool)
    absent[2] = True
    together = model.pictures(text, absent, [5, 6, 5], steps=2)
    assert together.shape == (3, 3, 16, 16) and together.min() >= 0 and together.max() <= 1
    alone = model.pictures(text[:1], absent[:1], [5], steps=2)
    assert torch.allclose(alone[0], together[0], atol=1e-2)
    assert not torch.allclose(together[0], together[2], atol=1e-3)
    assert torch.equal(model.pictures(text, absent, [5, 6, 5], steps=2), together)


def test_a_run_goes_on_where_it_was(photos: list[Photo], tmp_path: Path) -> None:
    whole = run(photos, tmp_path / "whole").state_dict()
    run(photos, tmp_path / "parts")
    assert all(
        torch.equal(tensor, whole[name]) for name, tensor in run(photos, tmp_path / "parts").state_dict().items()
    )


def test_without_captions_there_is_nothing_to_learn(photos: list[Photo], tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="caption"):
        run([Photo(photos[0].pixels, ())], tmp_path)


def test_what_it_was_made_for_is_asked(photos: list[Photo], tmp_path: Path) -> None:
    model = Generator(TINY)
    save_model(model, tmp_path, "a card")
    loaded, _ = load_generator(tmp_path)
    assert loaded.config == TINY
    with pytest.raises(ModelError, match="made to generate"):
        load_model(tmp_path)
    with pytest.raises(ModelError, match="made to restore"):
        load_generator("compact")
