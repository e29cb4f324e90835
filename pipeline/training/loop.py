"""The training loop: plain PyTorch, on CPU or GPU, resumable to the step, whatever is trained."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import logging
import math
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pipeline.errors import OutputError
from pipeline.training.checkpoint import load_checkpoint, read_state, save_checkpoint
from pipeline.training.loaders import drawn
from pipeline.training.optimiser import Optimiser
from pipeline.training.team import Team

log = logging.getLogger(__name__)

ALL_CAPTIONS = 3 << 30
"""Bytes of their features that are kept, for they come again and again: 100,000 captions' of MiniLM."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What decides how any run goes; a checkpoint is only continued under the same plan."""

    steps: int = 5000
    batch: int = 16
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


class Task(Protocol):
    """What is trained, with what it learns from."""

    main: str
    """The term of the loss that the live line shows."""

    @property
    def model(self) -> nn.Module:
        """The network."""

    def draw(self, step: int) -> Any:
        """What a step learns from: this worker's share. The same for the same step, whatever ran before."""

    def losses(self, drawn: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss on what was drawn for a step, and its terms, unweighted."""

    def validate(self) -> dict[str, float]:
        """What is measured on held-out images, with the weights that the model has now; may be empty."""

    def identity(self) -> dict[str, Any]:
        """What must be the same for a run to go on, beside the plan; for JSON."""


def fit(
    task: Task,
    folder: Path,
    plan: Plan,
    device: torch.device,
    report: Callable[[Progress], None],
    loaders: int = 0,
) -> None:
    """Train a task's model, or go on training from `folder`'s checkpoint; in the end it has the averaged weights.

    In a process group of torch.distributed all workers call this alike and share every batch; they take the same
    steps as one worker would, and the first of them validates and writes.

    Args:
        task: what is trained.
        folder: for checkpoint and curve; all workers must see it.
        plan: what the run consists of.
        device: this worker's.
        report: called every 20 steps, by the first worker.
        loaders: processes of this worker's that draw ahead (`loaders.drawn`); 0: none.

    Raises:
        OutputError: `folder` holds a checkpoint of another plan.
    """
    team, model = Team.current(), task.model
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    optimiser = Optimiser(model, plan.learning_rate, plan.decay)
    identity = identity_of(plan, task.identity())
    state = read_state(folder) or {"step": 0, "identity": identity, "validation": {}}
    check_identity(folder, state["identity"], identity)
    first, shown = int(state["step"]), dict(state["validation"])
    if first:
        load_checkpoint(folder, model, average, optimiser.parts)
    team.agree(first)
    started, recent = time.monotonic(), 0.0
    seen: dict[str, list[float]] = {}
    steps = range(first, plan.steps)
    for step, told in zip(steps, drawn(task.draw, steps, loaders, device), strict=True):
        terms = team.mean(_step(task, told, optimiser, plan, step, team))
        average_in(average, model, min(plan.average, (1 + step) / (10 + step)))
        recent = terms[task.main] if step == first else 0.98 * recent + 0.02 * terms[task.main]
        done = step + 1
        if not team.leads:
            continue
        for name, term in terms.items():
            seen.setdefault(name, []).append(term)
        if done % plan.checkpoint_every == 0 or done == plan.steps:
            with _weights(model, average):
                shown = task.validate()
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


def identity_of(plan: Plan, told: dict[str, Any]) -> dict[str, Any]:
    """What must be the same for a run to go on; `told` beside the plan."""
    return {"plan": repr(dataclasses.replace(plan, checkpoint_every=0)), **told}


def check_identity(folder: Path, there: dict[str, Any], identity: dict[str, Any]) -> None:
    """Whether what a folder holds is of this run.

    Raises:
        OutputError: it is of another.
    """
    if there != identity:
        raise OutputError(f"{folder} holds a checkpoint of another plan; give another --output, or the same options")


def _step(task: Task, told: Any, optimiser: Optimiser, plan: Plan, step: int, team: Team) -> dict[str, float]:
    loss, terms = task.losses(told)
    loss.backward()  # type: ignore[no-untyped-call]
    team.average_gradients(task.model.parameters())
    torch.nn.utils.clip_grad_norm_(task.model.parameters(), plan.clip)
    optimiser.step(plan.rate(step))
    return {name: float(term.detach()) for name, term in terms.items()}


@torch.no_grad()
def average_in(average: dict[str, Tensor], model: nn.Module, keep: float) -> None:
    """Bring the model's weights into their running average, which keeps so much of what it is."""
    current = model.state_dict()
    torch._foreach_lerp_(list(average.values()), [current[name] for name in average], 1 - keep)


@contextlib.contextmanager
def _weights(model: nn.Module, average: dict[str, Tensor]) -> Iterator[None]:
    """The model with the averaged weights, for as long as it is looked at."""
    current = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(average)
    try:
        yield
    finally:
        model.load_state_dict(current)


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
