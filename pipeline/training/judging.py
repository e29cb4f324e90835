"""Judge and critic learn what became of whole pictures, restored as they are in use.

A picture is restored once, and what they are told of it is kept: networks as small then see all of them many times over
in minutes.
"""

from __future__ import annotations

import copy
import json
import math
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.damage.planes import as_pixels
from pipeline.damage.tone import luma
from pipeline.restoration.critic import CELLS, LOST, Critic, Opinion, pair_of
from pipeline.restoration.judge import SMALLEST, SPREAD, USUAL, Judge
from pipeline.restoration.model import CompactModel
from pipeline.restoration.precision import autocast
from pipeline.restoration.request import Request
from pipeline.restoration.restorer import Restorer, View
from pipeline.restoration.rows import Rows
from pipeline.restoration.tiles import as_floats
from pipeline.training.data import Sampler
from pipeline.training.fitting import Fitting, fit_best
from pipeline.training.loop import Plan, Progress, average_in, check_identity

KNOWN = "judged-{:06}.safetensors"
"""In a run's folder: what was found out up to so many batches since the file before."""
HELD_OUT = 8
"""One picture in so many is not learned from: by these it is chosen when to stop."""
LARGE = 0.2
"""Larger pictures to each training view: what is shown of them is smaller, and marks in them are thinner there."""
BATCH = 256
"""Results that the critic is asked about at a time."""
JUDGE = Fitting(passes=300, rate=2e-3, decay=0.5)
DROPPED = 0.1
"""Share of what is known that is withheld at a time."""
CRITIC_PASSES = 10
CRITIC_BATCH = 64
CRITIC_RATE, CRITIC_DECAY = 2e-3, 0.05
RISE = 0.1
"""Share of the steps in which the critic's rate rises; then it falls."""
KEPT = 0.998
"""What a step leaves of the averaged weights."""
FLIPPED = 0.5, 0.3
"""Shares of batches that are mirrored, and turned upside down."""
HARDLY = 10**-4.5
"""Squared change, 45 dB: a result as near to its original is not taken anyway, and counts `FAINTLY` for the critic."""
FAINTLY = 0.2
ERROR_WEIGHT, GAIN_WEIGHT, CELLS_WEIGHT = 0.2, 0.3, 0.1
"""What the critic's other answers count beside whether a result is the worse: they teach it where to look."""
MOST_LOST, MOST_GAINED = -3.0, 5.0
"""Logarithms of errors' ratios beyond which no more is learned: -13 and 22 dB."""


class Known(NamedTuple):
    """What judge and critic are told of some pictures' results, and how good those are."""

    pixels: Tensor  # [N, 4], by `judge.describe`
    vector: Tensor  # [N, width], of the guide
    found: Tensor  # [N, F], of the global view
    pairs: Tensor  # [N, 6, S, S], by `critic.pair_of`, uint8
    error_before: Tensor  # [N], mean squared, of the greys where there are no colours
    error: Tensor  # [N], the same of the results
    cells: Tensor  # [N, 2, CELLS, CELLS], float16: the logarithms of both, place by place


class _Listening(Restorer):
    """Keeps what its judge and its critic are told."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.told: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def opinion(self, before: Rows, after: Rows, known: Sequence[float], view: View) -> None:
        pair = (255 * pair_of(before, after, view.damage.grey, self.device)).round().to(torch.uint8)
        self.told.append((*self._known(known, view), pair[None]))


def train_judge(
    model: CompactModel,
    sampler: Sampler,
    folder: Path,
    plan: Plan,
    identity: dict[str, Any],
    report: Callable[[Progress], None],
    **options: Any,
) -> None:
    """Restore `plan.steps` batches of pictures, or go on with that, and fit judge and critic to what became of them.

    A run that is over goes on, too, where more steps are asked for.

    Args:
        model: whose judge learns, and the critic that it must have; the rest stays as it is.
        sampler: draws the pictures.
        folder: where what is found out is kept.
        plan: steps, batch, seed.
        identity: of the run, by `loop.identity_of`.
        report: called now and then.
        options: as for `Restorer`.

    Raises:
        OutputError: `folder` holds what another run has found out.
    """
    assert model.critic is not None
    done, parts = _read(folder, identity)
    restorer = _Listening(model, **options)
    started, first = time.monotonic(), done
    fresh: list[Known] = []
    while done < plan.steps:
        fresh.append(_restored(restorer, _pictures(sampler, done, plan.batch)))
        done += 1
        if done % plan.checkpoint_every == 0 or done == plan.steps:
            parts.append(_together(fresh))
            fresh = []
            _write(folder, identity, done, parts[-1])
        if done % 20 == 0:
            seconds = (time.monotonic() - started) / (done - first)
            report(Progress(done, plan.steps, 0.0, {}, plan.batch / seconds, seconds * (plan.steps - done)))
    known = _together(parts)
    held_out = torch.arange(len(known.error)) % HELD_OUT == 0
    found = fit_judge(model.judge, known, held_out, plan.seed)

    def shown(step: int, steps: int, loss: float) -> None:
        seconds = (time.monotonic() - started) / step
        report(Progress(step, steps, loss, found, CRITIC_BATCH / seconds, seconds * (steps - step)))

    started = time.monotonic()
    found |= fit_critic(model.critic, known, held_out, plan.seed, shown)
    report(Progress(plan.steps, plan.steps, found["judge"], found, 0.0, 0.0))


class _Picture(NamedTuple):
    """A damaged picture, as its file would hold it."""

    pixels: npt.NDArray[np.uint8]  # [H, W, 3]
    truth: Tensor  # [1, 3, H, W]
    caption: str | None


def _pictures(sampler: Sampler, step: int, size: int) -> list[_Picture]:
    """Those of a step: so many training views, and larger ones."""
    batch = sampler.batch(step, size)
    views = zip(torch.split(batch.damaged.images, 1), torch.split(batch.truth, 1), batch.captions, strict=True)
    large = ((damaged.images, truth, told) for truth, damaged, told in sampler.large(step, round(size * LARGE)))
    return [_Picture(as_pixels(image), truth, told or None) for image, truth, told in (*views, *large)]


def _restored(restorer: _Listening, pictures: Sequence[_Picture]) -> Known:
    """What is told of pictures, restored without masks and references."""
    restorer.told = []
    results = restorer.restore_batch([Request(picture.pixels, caption=picture.caption) for picture in pictures])
    errors = []
    for picture, result in zip(pictures, results, strict=True):
        for image in (picture.pixels, result.pixels):
            difference = as_floats(image)[None] - picture.truth
            squared = (luma(difference) if result.damage.grey else difference).square()
            errors.append(squared.mean((0, 1), keepdim=True))
    told = [torch.cat(part).cpu() for part in zip(*restorer.told, strict=True)]
    pixels, vectors, found = (part.float() for part in told[:3])
    before, after = torch.stack([error.mean() for error in errors]).view(-1, 2).unbind(1)
    cells = torch.cat([F.adaptive_avg_pool2d(error, CELLS) for error in errors]).view(-1, 2, CELLS, CELLS)
    return Known(pixels, vectors, found, told[3], before, after, (cells + SMALLEST).log().half())


def fit_judge(judge: Judge, known: Known, chosen: Tensor, seed: int) -> dict[str, float]:
    """Fit the judge to the logarithm of the errors, by L1; it has what held-out pictures are judged best with.

    Args:
        judge: is fitted.
        known: to what.
        chosen: [N] bool, which are held out.
        seed: draws the order.

    Returns:
        judge: the loss of those, in decibels; judge_before: what it was.
    """
    device = next(judge.parameters()).device
    given, wanted = [part.to(device) for part in known[:3]], (known.error.to(device) + SMALLEST).log()
    chosen = chosen.to(device)

    def loss(rows: Tensor, dropped: float = 0.0) -> Tensor:
        pixels, vector, found = (part[rows] for part in given)
        told = pixels, F.dropout(vector, dropped), F.dropout(found, dropped)
        out: Tensor = (judge(*told) - wanted[rows]).abs().mean()
        return out

    def held_out() -> float:
        with torch.no_grad():
            return float(loss(chosen)) * 10 / math.log(10)

    learned = (~chosen).nonzero()[:, 0]
    before, least = fit_best(judge, lambda rows: loss(rows, DROPPED), held_out, learned, JUDGE, seed)
    return {"judge": least, "judge_before": before}


def fit_critic(
    critic: Critic, known: Known, chosen: Tensor, seed: int, report: Callable[[int, int, float], None]
) -> dict[str, float]:
    """Fit the critic to which results are worse than their input; it has averaged weights in the end, or, if it judges
    held-out pictures no better by them, those that it had.

    Args:
        critic: is fitted.
        known: to what.
        chosen: [N] bool, which are held out.
        seed: draws order and mirroring.
        report: called now and then with the step, how many there will be, and the loss.

    Returns:
        critic: cross-entropy on the held-out; critic_before: what it was.
    """
    device = next(critic.parameters()).device
    numbers = torch.cat([known.pixels, known.vector, known.found], dim=1)
    learned = (~chosen).nonzero()[:, 0]
    ratio = (known.error_before.clamp_min(1e-10) / known.error.clamp_min(1e-10)).log()
    worse = (ratio < -LOST * math.log(10) / 10).float()
    gain, log_error = ratio.clamp(MOST_LOST, MOST_GAINED), (known.error + SMALLEST).log()
    weight = FAINTLY + ((SPREAD * known.pixels[:, 2] + USUAL).exp() > HARDLY).float()

    def answers(rows: Tensor, flips: Sequence[int] = (), dropped: float = 0.0) -> Opinion:
        pairs, told = known.pairs[rows].to(device).float() / 255, F.dropout(numbers[rows].to(device), dropped)
        with autocast(device):
            out: Opinion = critic(pairs.flip(*flips) if flips else pairs, told)
        return out

    def loss(out: Opinion, rows: Tensor, flips: Sequence[int]) -> Tensor:
        wrong, wanted = weight[rows].to(device), [part[rows].to(device) for part in (worse, gain, log_error)]
        terms = F.binary_cross_entropy_with_logits(out.worse, wanted[0], reduction="none")
        terms = wrong * (terms + GAIN_WEIGHT * (out.gain - wanted[1]).abs())
        terms = terms + ERROR_WEIGHT * (out.log_error - wanted[2]).abs()
        cells = known.cells[rows].to(device).float()
        cells = cells.flip(*flips) if flips else cells
        won, wins = ((one[:, 0] - one[:, 1]).clamp(MOST_LOST, MOST_GAINED) for one in (out.cells, cells))
        placed = (out.cells - cells).abs().mean((1, 2, 3)) + (won - wins).abs().mean((1, 2))
        return (terms + CELLS_WEIGHT * placed).mean()

    def held_out() -> float:
        critic.eval()
        with torch.no_grad():
            said = torch.cat([answers(rows).worse for rows in torch.split(chosen.nonzero()[:, 0], BATCH)])
        return float(F.binary_cross_entropy_with_logits(said.cpu(), worse[chosen]))

    torch.manual_seed(seed)
    order, dice = torch.Generator().manual_seed(seed), random.Random(seed)
    first, before = copy.deepcopy(critic.state_dict()), held_out()
    critic.usual.copy_(numbers[learned].mean(0))
    critic.spread.copy_(numbers[learned].std(0) + 1e-3)
    critic.requires_grad_(True)
    critic.train()
    average = copy.deepcopy(critic.state_dict())
    optimiser = torch.optim.AdamW(critic.parameters(), CRITIC_RATE, weight_decay=CRITIC_DECAY)
    steps = CRITIC_PASSES * -(-len(learned) // CRITIC_BATCH)
    rise = max(RISE, 2 / steps)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, CRITIC_RATE, total_steps=steps, pct_start=rise)
    step, recent = 0, 0.0
    for _ in range(CRITIC_PASSES):
        for rows in torch.split(learned[torch.randperm(len(learned), generator=order)], CRITIC_BATCH):
            flips = [axis for axis, share in zip((3, 2), FLIPPED, strict=True) if dice.random() < share]
            optimiser.zero_grad()
            now = loss(answers(rows, flips, DROPPED), rows, flips)
            now.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(critic.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            step, recent = step + 1, float(now.detach()) if step == 0 else 0.98 * recent + 0.02 * float(now.detach())
            average_in(average, critic, min(KEPT, step / (step + 10)))
            if step % 100 == 0:
                report(step, steps, recent)
    critic.load_state_dict(average)
    least = held_out()
    if least >= before:
        critic.load_state_dict(first)
    return {"critic": min(least, before), "critic_before": before}


def _together(parts: Sequence[Known]) -> Known:
    return Known(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _read(folder: Path, identity: dict[str, Any]) -> tuple[int, list[Known]]:
    """How many steps were done, and what they have found out."""
    done, parts = 0, []
    for path in sorted(folder.glob(KNOWN.replace("{:06}", "*"))):
        with safe_open(path, "pt") as file:
            told = json.loads(file.metadata()["run"])
            parts.append(Known(*(file.get_tensor(name) for name in Known._fields)))
        check_identity(folder, told["identity"], identity)
        done = told["step"]
    return done, parts


def _write(folder: Path, identity: dict[str, Any], step: int, known: Known) -> None:
    """Put down what was found out since the last time."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / KNOWN.format(step)
    fresh = path.with_suffix(".new")
    told = {name: tensor.contiguous() for name, tensor in known._asdict().items()}
    save_file(told, fresh, {"run": json.dumps({"identity": identity, "step": step})})
    fresh.replace(path)
