"""The training loop: plain PyTorch, on CPU or GPU, resumable to the step."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import logging
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import OutputError
from pipeline.restoration.config import ModelConfig
from pipeline.restoration.model import CompactModel
from pipeline.restoration.text import TextEncoder, text_encoder_of
from pipeline.restoration.weights import autocast
from pipeline.training.checkpoint import load_checkpoint, read_state, save_checkpoint
from pipeline.training.data import Mixture, Photo, Sampler
from pipeline.training.objective import decoder_losses, further_losses, look, predict, total, view_losses
from pipeline.training.optimiser import Optimiser
from pipeline.training.team import Team
from pipeline.training.validation import Validation

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TrainingPlan:
    """Everything that decides what a run yields; a checkpoint is only continued under the same plan."""

    steps: int = 5000
    batch: int = 16
    look_every: int = 3
    """The global view is trained in one step of so many, the decoder, which has more to learn, in each; a step of
    the decoder alone costs two thirds."""
    looks: int = 24
    """Further pictures in each such step, which only the global view sees: that is cheap. See `LOOKS`."""
    patch: int = 128
    """Side in pixels of the patch decoded of each image; a multiple of 8."""
    learning_rate: float = 1.2e-3
    warm_up: int = 200
    decay: float = 0.01
    clip: float = 0.5
    """Largest norm of the gradient."""
    average: float = 0.999
    """Share of the exponential moving average that stays, a step; the average is what ships."""
    seed: int = 1
    start: str = ""
    """SHA-256 of the weights that training starts from; none: from random ones."""
    checkpoint_every: int = 250
    mixture: Mixture = dataclasses.field(default_factory=Mixture)

    def rate(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, then a cosine down to 1 %."""
        if step < self.warm_up:
            return self.learning_rate * (step + 1) / self.warm_up
        done = (step - self.warm_up) / max(1, self.steps - self.warm_up)
        return self.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


@dataclasses.dataclass(frozen=True)
class Progress:
    """What the live line shows."""

    step: int
    steps: int
    loss: float
    validation: dict[str, float]
    patches_per_second: float
    remaining: float
    """Seconds."""


def train(
    photos: list[Photo],
    held_out: list[Photo],
    folder: Path,
    config: ModelConfig,
    plan: TrainingPlan,
    device: torch.device,
    report: Callable[[Progress], None],
    start: CompactModel | None = None,
    compiled: bool = False,
    text: TextEncoder | None = None,
) -> CompactModel:
    """Train, or go on training from `folder`'s checkpoint.

    In a process group of torch.distributed all workers call this alike and share every batch; they take the same
    steps as one worker would, and the first of them validates and writes.

    Args:
        photos: to train on.
        held_out: to validate on; may be empty.
        folder: for checkpoint and curve; all workers must see it.
        config: the model's shape.
        plan: what the run consists of.
        device: this worker's.
        report: called every 20 steps, by the first worker.
        start: weights to begin with, of the same shape.
        compiled: run the decoder through torch.compile.
        text: what captions go through; None: what the shape names.

    Returns:
        The averaged model.

    Raises:
        OutputError: `folder` holds a checkpoint of another plan.
        RecipeError: the workers cannot share the batch.
    """
    team = Team.current()
    team.check(plan.batch, plan.looks)
    torch.manual_seed(plan.seed)
    model = CompactModel(config)
    if start is not None:
        model.load_state_dict(start.state_dict())
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    optimiser = Optimiser(model, plan.learning_rate, plan.decay)
    identity = _identity(config, plan, photos)
    state = read_state(folder) or {"step": 0, "identity": identity, "validation": {}}
    if state["identity"] != identity:
        raise OutputError(f"{folder} holds a checkpoint of another plan; give another --output, or the same options")
    first, shown = int(state["step"]), dict(state["validation"])
    if first:
        load_checkpoint(folder, model, average, optimiser.parts)
    team.agree(first)
    if compiled:
        model.decoder.compile()
    text = text or text_encoder_of(config, device)
    sampler = Sampler(photos, plan.mixture, plan.seed, config.thumbnail, device, team)
    validation = Validation(held_out, config, text, device) if held_out and team.leads else None
    started, recent = time.monotonic(), 0.0
    seen: dict[str, list[float]] = {}
    for step in range(first, plan.steps):
        terms = team.mean(_step(model, sampler, text, optimiser, plan, step, device))
        _average(average, model, min(plan.average, (1 + step) / (10 + step)))
        recent = terms["pixels"] if step == first else 0.98 * recent + 0.02 * terms["pixels"]
        done = step + 1
        if not team.leads:
            continue
        for name, term in terms.items():
            seen.setdefault(name, []).append(term)
        if done % plan.checkpoint_every == 0 or done == plan.steps:
            if validation:
                with _weights(model, average):
                    shown = validation(model)
            state = {"step": done, "identity": identity, "validation": shown}
            save_checkpoint(folder, model, average, optimiser.parts, state)
            means = {name: statistics.fmean(values) for name, values in seen.items()}
            _curve(folder, done, {"rate": plan.rate(step), **means, **shown})
            seen = {}
        if done % 20 == 0 or done == plan.steps:
            seconds = (time.monotonic() - started) / (done - first)
            report(Progress(done, plan.steps, recent, shown, plan.batch / seconds, seconds * (plan.steps - done)))
    if first == plan.steps and team.leads:
        report(Progress(first, plan.steps, 0.0, shown, 0.0, 0.0))
    model.load_state_dict(average)
    return model


def _step(
    model: CompactModel,
    sampler: Sampler,
    text: TextEncoder,
    optimiser: Optimiser,
    plan: TrainingPlan,
    step: int,
    device: torch.device,
) -> dict[str, float]:
    batch = sampler.batch(step, plan.batch)
    features = text(batch.captions)
    # one die an image: which patch is taken of it does not depend on who draws it
    dice = [random.Random(f"{plan.seed}/{step}/{index}/patch") for index in sampler.team.share(plan.batch)]
    looking = step % plan.look_every == 0
    with autocast(device):
        answer = predict(model, batch, features, plan.patch, dice, looking)
    terms = decoder_losses(model, answer)
    if looking:
        terms |= view_losses(model, batch, answer.view, sampler.team)
    if looking and plan.looks:
        further = sampler.looks(step, plan.looks)
        said = text(further.captions)  # at full precision always: the encoder remembers it
        with autocast(device):
            seen = look(model, further, said)
        terms |= further_losses(seen, further)
    total(terms).backward()  # type: ignore[no-untyped-call]
    sampler.team.average_gradients(model.parameters())
    torch.nn.utils.clip_grad_norm_(model.parameters(), plan.clip)
    optimiser.step(plan.rate(step))
    return {name: float(term.detach()) for name, term in terms.items()}


@torch.no_grad()
def _average(average: dict[str, Tensor], model: CompactModel, keep: float) -> None:
    current = model.state_dict()
    torch._foreach_lerp_(list(average.values()), [current[name] for name in average], 1 - keep)


@contextlib.contextmanager
def _weights(model: CompactModel, average: dict[str, Tensor]) -> Iterator[None]:
    """The model with the averaged weights, for as long as it is looked at."""
    current = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(average)
    try:
        yield
    finally:
        model.load_state_dict(current)


def _identity(config: ModelConfig, plan: TrainingPlan, photos: list[Photo]) -> dict[str, Any]:
    """What must be the same for a run to go on."""
    return {
        "config": repr(config),
        "plan": repr(dataclasses.replace(plan, checkpoint_every=0)),
        "photos": len(photos),
        "pixels": sum(photo.pixels.numel() for photo in photos),
        "captions": sum(len(photo.captions) for photo in photos),
    }


def _curve(folder: Path, step: int, values: dict[str, float]) -> None:
    """Add a step to `curve.csv`, for any plotting program; steps that are done again take the place of the old."""
    path = folder / "curve.csv"
    rows: list[dict[str, Any]] = []
    if path.exists():
        with path.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if int(row["step"]) < step]
    rows.append({"step": step, **{name: f"{value:.6g}" for name, value in values.items()}})
    names = list(dict.fromkeys(name for row in rows for name in row))
    fresh = path.with_suffix(".new")
    with fresh.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        writer.writerows(rows)
    fresh.replace(path)
