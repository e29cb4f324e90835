from __future__ import annotations

import dataclasses
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import OutputError, RecipeError, SourceError
from pipeline.lake.tables import open_tables
from pipeline.restoration.config import ModelConfig
from pipeline.restoration.layers import activate
from pipeline.restoration.model import CompactModel
from pipeline.restoration.restorer import Restorer
from pipeline.restoration.text import MiniLMEncoder
from pipeline.training.checkpoint import load_checkpoint, read_state, save_checkpoint
from pipeline.training.data import LOOKS, Mixture, Photo, Sampler, load_photos, mounted, silhouette
from pipeline.training.likeness import least_likeness
from pipeline.training.loop import Progress, _curve
from pipeline.training.objective import decoder_losses, predict, total
from pipeline.training.optimiser import Optimiser
from pipeline.training.restoring import TrainingPlan, train
from pipeline.training.team import Team
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
PLAN = TrainingPlan(steps=6, batch=2, looks=2, patch=32, warm_up=2, checkpoint_every=4)
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
        if step == 5:  # goes on between two looks
            raise Killed
        return original(self, step, size)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Sampler, "batch", batch)
        run(photos, tmp_path / "killed")
    again = run(photos, tmp_path / "killed")
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())


def test_loaders_draw_ahead_and_change_nothing(photos: list[Photo], tmp_path: Path) -> None:
    plan = dataclasses.replace(PLAN, steps=4)
    alone = run(photos, tmp_path / "alone", plan)
    told: list[Progress] = []
    ahead = train(photos, photos[:2], tmp_path / "ahead", TINY, plan, CPU, told.append, loaders=2).state_dict()
    assert all(torch.equal(tensor, ahead[name]) for name, tensor in alone.items())
    assert [progress.step for progress in told] == [4]


def test_what_fails_in_a_loader_is_told(photos: list[Photo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> object:
        raise SourceError("no picture today")

    monkeypatch.setattr(Sampler, "batch", fail)
    with pytest.raises(SourceError, match="no picture today"):
        train(photos, [], tmp_path, TINY, PLAN, CPU, lambda progress: None, loaders=1)


def test_a_finished_run_is_told_again_not_done_again_and_refused_to_other_plans(
    photos: list[Photo], tmp_path: Path
) -> None:
    first = run(photos, tmp_path)
    with pytest.raises(OutputError, match="another plan"):
        run(photos, tmp_path, dataclasses.replace(PLAN, learning_rate=1e-5))
    with pytest.raises(OutputError, match="another plan"):
        run(photos[:4], tmp_path)  # other images
    with pytest.raises(OutputError, match="another plan"):
        train(photos, [], tmp_path, dataclasses.replace(TINY, width=32), PLAN, CPU, lambda progress: None)
    curve = (tmp_path / "curve.csv").read_text()
    told: list[Progress] = []
    again = train(photos, photos[:2], tmp_path, TINY, PLAN, CPU, told.append).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert (tmp_path / "curve.csv").read_text() == curve
    assert [progress.step for progress in told] == [6] and "noise_25" in told[0].validation


def test_the_curve_stays_a_table_when_steps_and_columns_come_again(tmp_path: Path) -> None:
    _curve(tmp_path, 10, {"pixels": 1.0})
    _curve(tmp_path, 20, {"pixels": 2.0})
    _curve(tmp_path, 20, {"pixels": 3.0, "noise_25": 28.0})  # after a kill, with images to validate on
    assert (tmp_path / "curve.csv").read_text().split() == ["step,pixels,noise_25", "10,1,", "20,3,28"]


def test_training_without_bfloat16(photos: list[Photo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.restoration.precision.half_precision", lambda device: torch.float32)
    weights = run(photos, tmp_path, dataclasses.replace(PLAN, steps=2))
    assert all(bool(tensor.isfinite().all()) for tensor in weights.values())


def test_the_checkpoint_and_curve_are_plain_files(photos: list[Photo], tmp_path: Path) -> None:
    run(photos, tmp_path)
    assert json.loads((tmp_path / "checkpoint/state.json").read_text())["step"] == 6
    lines = (tmp_path / "curve.csv").read_text().splitlines()
    assert lines[0].startswith("step,rate,pixels") and "noise_25" in lines[0] and len(lines) == 3
    assert {path.suffix for path in (tmp_path / "checkpoint").iterdir()} == {".safetensors", ".json"}


def test_a_checkpoint_is_cut_into_pieces_of_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.training.checkpoint.PIECE", 100_000)
    model = CompactModel(TINY).to(memory_format=torch.channels_last)
    optimiser = Optimiser(model, rate=1e-3, decay=0.0)
    average = {name: tensor.clone() + 1 for name, tensor in model.state_dict().items()}
    save_checkpoint(tmp_path, model, average, optimiser.parts, {"step": 1})
    largest = max(tensor.nbytes for tensor in average.values()) + 10_000
    pieces = list((tmp_path / "checkpoint").glob("model-*.safetensors"))
    assert len(pieces) > 1 and all(path.stat().st_size < 100_000 + largest for path in pieces)
    other = CompactModel(TINY)
    read = {name: torch.zeros_like(tensor) for name, tensor in average.items()}
    assert read_state(tmp_path) == {"step": 1} and read_state(tmp_path / "elsewhere") is None
    load_checkpoint(tmp_path, other, read, optimiser.parts)
    assert all(torch.equal(tensor, read[name]) for name, tensor in average.items())
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in model.state_dict().items())


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


def test_some_references_show_another_scene(photos: list[Photo]) -> None:
    def differences(wrong: float) -> list[float]:
        mixture = Mixture(kinds=(("grey", 1.0),), second=0, reference=1.0, wrong_reference=wrong)
        batch = Sampler(plain, mixture, 1, 32, CPU).batch(0, 40)
        reds, shown = batch.truth[:, 0].mean((1, 2)), batch.references[:, 0, 0].mean((1, 2))
        return (reds - shown).abs().tolist()

    plain = [Photo(torch.full((3, 230, 240), 40 * n, dtype=torch.uint8), ("a",)) for n in range(6)]
    assert max(differences(0.0)) < 0.01
    assert 0.1 < sum(red > 0.01 for red in differences(0.3)) / 40 < 0.5


def test_further_looks_are_at_what_the_global_view_alone_can_tell(photos: list[Photo]) -> None:
    looks = Sampler(photos, Mixture(second=0), 1, 32, CPU).looks(0, 2 * len(LOOKS))
    for start in (0, len(LOOKS)):
        done = dict(enumerate(looks.damaged.records[start : start + len(LOOKS)]))
        holes, tone, clean = done.pop(1), done.pop(3), done.pop(5)
        assert all(grey.grey for grey in done.values()) and tone.fading > 0 and clean.clean
        assert bool(looks.damaged.masks[start + 1].any()) and not holes.grey


@pytest.mark.parametrize("looking", [True, False])
def test_the_global_view_learns_only_when_it_is_asked_to(photos: list[Photo], looking: bool) -> None:
    model = CompactModel(TINY).to(memory_format=torch.channels_last)
    batch = Sampler(photos, Mixture(), 3, TINY.thumbnail, CPU).batch(0, 2)
    text = MiniLMEncoder(TINY.text_tokens, CPU)(batch.captions)
    with torch.no_grad():  # at first it lets nothing of the context in
        model.decoder.attention.out.weight.normal_()
    answer = predict(model, batch, text, 32, [random.Random(n) for n in range(2)], looking)
    total(decoder_losses(model, answer)).backward()
    learning = {
        name.split(".")[0]
        for name, weight in model.named_parameters()
        if weight.grad is not None and (not looking or bool(weight.grad.any()))
    }
    decoder, view = {"decoder", "judge"}, {"image_encoder", "fusion", "coarse_head"}
    assert decoder | view <= learning if looking else learning == decoder


def test_one_in_twenty_references_to_another_scene_is_believed() -> None:
    pictures = [Photo(torch.from_numpy(noise(90, 80, seed)).permute(2, 0, 1), ()) for seed in range(60)]
    torch.manual_seed(0)
    model = CompactModel(TINY).eval()
    least = least_likeness(model, pictures)
    assert 0 < least < 1 and least_likeness(model, pictures) == least
    assert least_likeness(model, pictures[:5]) == 0, "too few to tell"
    trusting = CompactModel(TINY).eval()
    trusting.load_state_dict(model.state_dict())
    model.config = dataclasses.replace(TINY, reference_likeness=least)
    thumbnails = torch.rand(4, 4, TINY.thumbnail, TINY.thumbnail)
    thumbnails[:, 3] = 0
    around = (torch.rand(4, 1, 4, TINY.probe, TINY.probe), torch.zeros(4, 1, TINY.text_width))
    others = torch.stack([thumbnails, 1 - thumbnails.flip(3)], dim=1)
    others[:, 1, 3] = 0
    view = model.look(thumbnails, *around, torch.ones(4, 1, dtype=torch.bool), others, torch.zeros(4, 2).bool())
    assert view.trusted[:, 0].all(), "the image itself is like itself"
    told = trusting.look(thumbnails, *around, torch.ones(4, 1, dtype=torch.bool), others, ~view.trusted)
    assert torch.equal(view.guide.vector, told.guide.vector)


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
    tables = open_tables([str(write_table(rows))])
    photos = load_photos(tables)
    assert [tuple(photo.pixels.shape) for photo in photos] == [(3, 224, 350), (3, 300, 260)]
    assert photos[0].captions == ("a", "b")
    with pytest.raises(SourceError, match="picture"):
        load_photos(tables, image="picture")
    with pytest.raises(SourceError, match="titel"):
        load_photos(tables, captions="titel")


def test_photos_named_by_uri_are_read_and_large_ones_cut(write_table, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    pixels = noise(900, 240)
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans/one.png").write_bytes(encoded(pixels))
    rows = [{"image": "scans/one.png", "caption": "a long one"}, {"image": "../elsewhere.png", "caption": "no"}]
    path = write_table(rows, "table.parquet")
    (photo,) = load_photos(open_tables([str(path)]), captions="caption")
    assert photo.pixels.shape == (3, 768, 240) and photo.captions == ("a long one",)
    part = photo.pixels.permute(1, 2, 0).numpy()
    assert any((pixels[top : top + 768] == part).all() for top in range(133))


def test_memory_bounds_what_is_loaded(write_table) -> None:  # type: ignore[no-untyped-def]
    rows = [{"image": encoded(noise(224, 224, n))} for n in range(5)]
    assert len(load_photos(open_tables([str(write_table(rows))]), memory=2 * 224 * 224 * 3)) == 2


def test_workers_draw_the_images_that_one_would(photos: list[Photo]) -> None:
    alone = Sampler(photos, Mixture(), 3, 32, CPU).batch(5, 4)
    team = [Sampler(photos, Mixture(), 3, 32, CPU, Team(rank, 2)).batch(5, 4) for rank in range(2)]
    for index in range(4):
        shared = team[index % 2]
        assert torch.equal(alone.truth[index], shared.truth[index // 2])
        assert torch.equal(alone.damaged.images[index], shared.damaged.images[index // 2])
        assert alone.captions[index] == shared.captions[index // 2]

    alone = Sampler(photos, Mixture(), 3, 32, CPU).looks(5, 6)
    team = [Sampler(photos, Mixture(), 3, 32, CPU, Team(rank, 2)).looks(5, 6) for rank in range(2)]
    assert all(torch.equal(alone.truth[n], team[n % 2].truth[n // 2]) for n in range(6))
    assert [record.grey for record in alone.damaged.records] == [
        team[n % 2].damaged.records[n // 2].grey for n in range(6)
    ]


def test_a_parameter_that_nobody_used_stays_without_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.training.team.dist.all_reduce", lambda tensor: tensor.mul_(2))  # both have the same
    used, unused = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    used.grad = torch.full((3,), 5.0)
    Team(0, 2).average_gradients([used, unused])
    assert unused.grad is None and torch.equal(used.grad, torch.full((3,), 5.0))


def test_workers_must_be_able_to_share_a_batch() -> None:
    Team(0, 2).check(16, 0)
    with pytest.raises(RecipeError, match="multiples of --workers"):
        Team(0, 2).check(16, 3)
    with pytest.raises(RecipeError, match="multiples of --workers"):
        Team(0, 3).check(16, 12)


def test_training_starts_from_given_weights(photos: list[Photo], tmp_path: Path) -> None:
    first = run(photos, tmp_path / "first")
    start = CompactModel(TINY)
    start.load_state_dict(first)
    plan = dataclasses.replace(PLAN, steps=1, learning_rate=1e-9, start="digest")
    tuned = train(photos, [], tmp_path / "tuned", TINY, plan, CPU, lambda progress: None, start).state_dict()
    assert all(torch.allclose(tensor, first[name], atol=1e-6) for name, tensor in tuned.items())
    with pytest.raises(OutputError, match="another plan"):
        run(photos, tmp_path / "tuned", dataclasses.replace(PLAN, steps=1, learning_rate=1e-9))


@pytest.mark.slow
def test_no_unit_of_a_new_model_falls_silent(photos: list[Photo], tmp_path: Path) -> None:
    plan = dataclasses.replace(PLAN, steps=40, batch=4, learning_rate=2e-3, checkpoint_every=40)
    model = train(photos, [], tmp_path, TINY, plan, CPU, lambda progress: None)
    shares: list[torch.Tensor] = []

    def watch(features: torch.Tensor) -> torch.Tensor:
        shares.append((features > 0).float().mean((0, 2, 3)))
        return activate(features)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.restoration.layers.activate", watch)
        Restorer(model, device="cpu", tile=64, margin=8).restore(photos[0].pixels.permute(1, 2, 0).numpy())
    silent = torch.cat([(share < 0.001).float() for share in shares])
    assert len(shares) >= 10 and float(silent.mean()) < 0.1


@pytest.mark.parametrize("alter", [mounted, silhouette])
def test_flat_parts_are_flat_and_leave_the_rest_as_it_is(photos: list[Photo], alter: Any) -> None:
    for seed in range(6):
        view = photos[0].pixels[:, :64, :64]
        out = alter(view, random.Random(seed))
        changed = (out != view).any(0)
        assert out.dtype == view.dtype and 0.01 < float(changed.float().mean()) < 0.99
        tones = out[:, changed].T.unique(dim=0, return_counts=True)[1]
        assert int(tones.max()) > 0.3 * int(changed.sum())  # one tone, but for soft edges


def test_training_needs_no_ray_and_none_of_the_archive_codecs() -> None:
    """On machines with PyTorch, Pillow and pyarrow alone."""
    code = """
import sys
for name in ("ray", "imagecodecs", "tifffile", "simplejpeg"):
    sys.modules[name] = None
import pipeline.restoration.restorer, pipeline.training.restoring, pipeline.training.generating, pipeline.damage.mixture
from pipeline.imaging.decode import decode_image, rgb
from tests.conftest import encoded, noise
assert rgb(decode_image(encoded(noise(9, 9), "JPEG"))).shape == (9, 9, 3)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
