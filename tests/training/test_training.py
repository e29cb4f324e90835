from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import ConservatorError, SourceError
from pipeline.restoration.config import ModelConfig
from pipeline.restoration.model import CompactModel
from pipeline.training.data import Mixture, Photo, Sampler, load_photos
from pipeline.training.loop import Progress, TrainingPlan, train
from pipeline.training.optimiser import Optimiser
from tests.conftest import encoded, noise

TINY = ModelConfig(
    name="tiny",
    thumbnail=32,
    probe=32,
    encoder_widths=(8, 8, 16),
    width=16,
    fusion_layers=1,
    heads=2,
    agreement_width=8,
    decoder_widths=(8, 8, 16, 16),
    decoder_blocks=(1, 1, 1, 1),
)
PLAN = TrainingPlan(steps=6, batch=2, patch=32, warm_up=2, checkpoint_every=3)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def photos() -> list[Photo]:
    pictures = [torch.from_numpy(noise(230, 240, seed)).permute(2, 0, 1) for seed in range(6)]
    return [Photo(pixels, ("a picture of blots",) if n % 2 else ()) for n, pixels in enumerate(pictures)]


def run(photos: list[Photo], folder: Path, plan: TrainingPlan = PLAN) -> dict[str, torch.Tensor]:
    return train(photos, photos[:2], folder, TINY, plan, CPU, lambda progress: None).state_dict()


def test_every_weight_that_has_a_gradient_is_moved() -> None:
    model = CompactModel(TINY).to(memory_format=torch.channels_last)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimiser = Optimiser(model, rate=1e-3, decay=0.0)
    for weight in model.parameters():
        weight.grad = torch.randn_like(weight)
    optimiser.step(rate=1e-3)
    assert [name for name, weight in model.named_parameters() if torch.equal(weight, before[name])] == []
    assert all(weight.grad is None for weight in model.parameters())


def test_a_killed_run_goes_on_to_the_same_weights(photos: list[Photo], tmp_path: Path) -> None:
    whole = run(photos, tmp_path / "whole")

    class Killed(BaseException):
        pass

    original = Sampler.batch

    def batch(self: Sampler, step: int, size: int) -> object:
        if step == 4:
            raise Killed
        return original(self, step, size)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Sampler, "batch", batch)
        run(photos, tmp_path / "killed")
    again = run(photos, tmp_path / "killed")
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())


def test_a_checkpoint_of_another_plan_is_refused(photos: list[Photo], tmp_path: Path) -> None:
    run(photos, tmp_path)
    with pytest.raises(ConservatorError, match="another plan"):
        run(photos, tmp_path, dataclasses.replace(PLAN, learning_rate=1e-5))


def test_the_checkpoint_and_curve_are_plain_files(photos: list[Photo], tmp_path: Path) -> None:
    run(photos, tmp_path)
    assert json.loads((tmp_path / "checkpoint/state.json").read_text())["step"] == 6
    lines = (tmp_path / "curve.csv").read_text().splitlines()
    assert lines[0].startswith("step,rate,pixels") and "noise_25" in lines[0] and len(lines) == 3
    assert {path.suffix for path in (tmp_path / "checkpoint").iterdir()} == {".safetensors", ".json"}


def test_a_batch_depends_on_seed_and_step_alone(photos: list[Photo]) -> None:
    one, other = (Sampler(photos, Mixture(), 3, 32, CPU) for _ in range(2))
    other.batch(0, 4)
    assert torch.equal(one.batch(7, 4).damaged.images, other.batch(7, 4).damaged.images)
    assert not torch.equal(one.batch(7, 4).truth, one.batch(8, 4).truth)


def test_captions_masks_and_references_are_sometimes_withheld(photos: list[Photo]) -> None:
    kinds = (("scratches", 0.5), ("grey", 0.5))
    sampler = Sampler(photos, Mixture(kinds=kinds, second=0), 1, 32, CPU)
    batch = sampler.batch(0, 60)
    given = [bool(mask.any()) for mask, true in zip(batch.masks, batch.damaged.masks, strict=True) if true.any()]
    assert any(given) and not all(given)
    assert "" in batch.captions and "a picture of blots" in batch.captions
    shown = (~batch.references_absent[:, 0]).tolist()
    grey = [record.grey for record in batch.damaged.records]
    assert any(shown) and all(g for g, s in zip(grey, shown, strict=True) if s)


def test_training_lowers_the_loss(photos: list[Photo], tmp_path: Path) -> None:
    mixture = Mixture(kinds=(("noise", 1.0),), second=0)
    plan = dataclasses.replace(PLAN, steps=120, batch=4, learning_rate=3e-3, checkpoint_every=60, mixture=mixture)
    shown: list[Progress] = []
    train(photos, photos, tmp_path, TINY, plan, CPU, shown.append)
    first, last = shown[0], shown[-1]
    assert last.loss < first.loss - 0.1  # a logarithm
    assert last.validation["noise_25"] > 20.7  # the input has 20.2
    assert last.remaining == 0 and last.patches_per_second > 0


def test_photos_are_read_from_tables_and_unreadable_ones_left_out(write_table, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    small = np.ascontiguousarray(noise(64, 100))
    rows = [
        {"image": encoded(small), "captions": ["a", "b"]},
        {"image": b"broken", "captions": []},
        {"image": encoded(noise(300, 260), "JPEG"), "captions": []},
    ]
    path = write_table(rows)
    photos = load_photos([str(path)])
    assert [tuple(photo.pixels.shape) for photo in photos] == [(3, 224, 350), (3, 300, 260)]
    assert photos[0].captions == ("a", "b")
    with pytest.raises(SourceError, match="picture"):
        load_photos([str(path)], image="picture")
