"""The judge learns what became of whole pictures, restored as they are in use.

A picture is restored once, and what the judge is told of it is kept: a network as small then sees all of them many
times over in a minute.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.damage.tone import luma
from pipeline.restoration.judge import SMALLEST, Judge, describe
from pipeline.restoration.model import CompactModel
from pipeline.restoration.request import Request
from pipeline.restoration.restorer import Restorer, View
from pipeline.training.data import VIEW, Batch, Sampler
from pipeline.training.loop import Plan, Progress, check_identity

KNOWN = "judged.safetensors"
"""In a run's folder: what was found out so far."""
HELD_OUT = 8
"""One picture in so many is not learned from: by these it is chosen when to stop."""
PASSES = 300
BATCH = 256
RATE, DECAY = 2e-3, 0.5
DROPPED = 0.1
"""Share of what is known that is withheld at a time."""


class Known(NamedTuple):
    """What the judge is told of some pictures' results, and how good those are."""

    pixels: Tensor  # [N, 4], by `judge.describe`
    vector: Tensor  # [N, width], of the guide
    found: Tensor  # [N, F], of the global view
    error: Tensor  # [N], mean squared, of the greys where there are no colours


class _Listening(Restorer):
    """Keeps what its judge is told."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.told: list[tuple[Tensor, Tensor, Tensor]] = []

    def likely_error(self, means: Sequence[float], view: View, request: Request) -> float:
        self.told.append((describe(*torch.tensor(means)[:, None])[0], view.guide.vector, view.found))
        return super().likely_error(means, view, request)


def train_judge(
    model: CompactModel,
    sampler: Sampler,
    folder: Path,
    plan: Plan,
    identity: dict[str, Any],
    report: Callable[[Progress], None],
    **options: Any,
) -> None:
    """Restore `plan.steps` batches of pictures, or go on with that, and fit the model's judge to what became of them.

    Args:
        model: whose judge learns; the rest stays as it is.
        sampler: draws the pictures.
        folder: where what is found out is kept.
        plan: steps, batch, seed.
        identity: of the run, by `loop.identity_of`.
        report: called now and then.
        options: as for `Restorer`.

    Raises:
        OutputError: `folder` holds what another run has found out.
    """
    done, parts = _read(folder, identity)
    restorer = _Listening(model, tile=VIEW, **options)
    started, first = time.monotonic(), done
    while done < plan.steps:
        parts.append(_restored(restorer, sampler.batch(done, plan.batch)))
        done += 1
        if done % plan.checkpoint_every == 0 or done == plan.steps:
            parts = [_together(parts)]
            _write(folder, identity, done, parts[0])
        if done % 20 == 0:
            seconds = (time.monotonic() - started) / (done - first)
            report(Progress(done, plan.steps, 0.0, {}, plan.batch / seconds, seconds * (plan.steps - done)))
    found = fit_judge(model.judge, _together(parts), plan.seed)
    report(Progress(plan.steps, plan.steps, found["judge"], found, 0.0, 0.0))


def _restored(restorer: _Listening, batch: Batch) -> Known:
    """What the judge is told of a batch, restored with captions and without masks and references."""
    restorer.told = []
    pictures = batch.damaged.images.permute(0, 2, 3, 1).cpu().numpy()
    both = zip(pictures, batch.captions, strict=True)
    results = restorer.restore_batch([Request(picture, caption=caption or None) for picture, caption in both])
    errors = []
    for result, truth in zip(results, batch.truth.cpu(), strict=True):
        difference = torch.from_numpy(result.array).permute(2, 0, 1)[None] - truth[None]
        errors.append((luma(difference) if result.damage.grey else difference).square().mean())
    pixels, vectors, found = (torch.stack(part).float().cpu() for part in zip(*restorer.told, strict=True))
    return Known(pixels, vectors, found, torch.stack(errors))


def fit_judge(judge: Judge, known: Known, seed: int) -> dict[str, float]:
    """Fit the judge to the logarithm of the errors, by L1; it has what held-out pictures are judged best with.

    Returns:
        judge: the loss of those, in decibels; judge_before: what it was.
    """
    device = next(judge.parameters()).device
    given, wanted = [part.to(device) for part in known[:3]], (known.error.to(device) + SMALLEST).log()
    chosen = torch.arange(len(wanted), device=device) % HELD_OUT == 0
    order = torch.Generator().manual_seed(seed)

    def loss(rows: Tensor, dropped: float = 0.0) -> Tensor:
        pixels, vector, found = (part[rows] for part in given)
        told = pixels, F.dropout(vector, dropped), F.dropout(found, dropped)
        out: Tensor = (judge(*told) - wanted[rows]).abs().mean()
        return out

    def held_out() -> float:
        with torch.no_grad():
            return float(loss(chosen)) * 10 / math.log(10)

    torch.manual_seed(seed)
    judge.requires_grad_(True)
    optimiser = torch.optim.AdamW(judge.parameters(), RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, PASSES)
    learned = (~chosen).nonzero()[:, 0]
    before = least = held_out()
    best = copy.deepcopy(judge.state_dict())
    for _ in range(PASSES):
        for rows in torch.split(learned[torch.randperm(len(learned), generator=order)], BATCH):
            optimiser.zero_grad()
            loss(rows, DROPPED).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        schedule.step()
        if (now := held_out()) < least:
            least, best = now, copy.deepcopy(judge.state_dict())
    judge.load_state_dict(best)
    return {"judge": least, "judge_before": before}


def _together(parts: Sequence[Known]) -> Known:
    return Known(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _read(folder: Path, identity: dict[str, Any]) -> tuple[int, list[Known]]:
    """How many steps were done, and what they have found out."""
    path = folder / KNOWN
    if not path.exists():
        return 0, []
    with safe_open(path, "pt") as file:
        told = json.loads(file.metadata()["run"])
        known = Known(*(file.get_tensor(name) for name in Known._fields))
    check_identity(folder, told["identity"], identity)
    return told["step"], [known]


def _write(folder: Path, identity: dict[str, Any], step: int, known: Known) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    fresh = (folder / KNOWN).with_suffix(".new")
    save_file(known._asdict(), fresh, {"run": json.dumps({"identity": identity, "step": step})})
    fresh.replace(folder / KNOWN)
