"""Training to restore: damaged images, and what they were."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.restoration.config import ModelConfig
from pipeline.restoration.model import CompactModel
from pipeline.restoration.precision import autocast
from pipeline.restoration.text import TextEncoder, text_encoder_of
from pipeline.training.data import Mixture, Photo, Sampler
from pipeline.training.likeness import least_likeness
from pipeline.training.loop import ALL_CAPTIONS, Plan, Progress, fit
from pipeline.training.objective import decoder_losses, further_losses, look, predict, total, view_losses
from pipeline.training.team import Team
from pipeline.training.validation import Validation


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingPlan(Plan):
    """What a run that learns to restore consists of."""

    look_every: int = 4
    """The global view is trained in one step of so many, the decoder, which has more to learn, in each; a step of
    the decoder alone costs less than half (1.1 s of 2.5 on two cores)."""
    looks: int = 24
    """Further pictures in each such step, which only the global view sees: that is cheap. See `LOOKS`."""
    patch: int = 128
    """Side in pixels of the patch decoded of each image; a multiple of 8."""
    mixture: Mixture = dataclasses.field(default_factory=Mixture)


class Restoring:
    """The task."""

    main = "pixels"

    def __init__(
        self,
        model: CompactModel,
        photos: list[Photo],
        held_out: list[Photo],
        text: TextEncoder,
        plan: TrainingPlan,
        device: torch.device,
    ) -> None:
        self.model, self.plan, self.text, self.device = model, plan, text, device
        self.team = Team.current()
        self._photos = photos
        self._sampler = Sampler(photos, plan.mixture, plan.seed, model.config.thumbnail, device, self.team)
        self._validation = None
        if held_out and self.team.leads:
            self._validation = Validation(held_out, model.config, text, device)

    def losses(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Task`; the global view learns in some steps only."""
        plan, model = self.plan, self.model
        batch = self._sampler.batch(step, plan.batch)
        features = self.text(batch.captions)
        # one die an image: which patch is taken of it does not depend on who draws it
        dice = [random.Random(f"{plan.seed}/{step}/{index}/patch") for index in self.team.share(plan.batch)]
        looking = step % plan.look_every == 0
        with autocast(self.device):
            answer = predict(model, batch, features, plan.patch, dice, looking)
        terms = decoder_losses(model, answer)
        if looking:
            terms |= view_losses(model, batch, answer.view, self.team)
        if looking and plan.looks:
            further = self._sampler.looks(step, plan.looks)
            said = self.text(further.captions)  # at full precision always: the encoder remembers it
            with autocast(self.device):
                seen = look(model, further, said)
            terms |= further_losses(seen, further)
        return total(terms), terms

    def validate(self) -> dict[str, float]:
        """PSNR by damage."""
        return self._validation(self.model) if self._validation else {}

    def identity(self) -> dict[str, Any]:
        """See `Task`."""
        return {
            "config": repr(self.model.config),
            "photos": len(self._photos),
            "pixels": sum(photo.pixels.numel() for photo in self._photos),
            "captions": sum(len(photo.captions) for photo in self._photos),
        }


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
    """Train a model to restore, as `loop.fit` does it.

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
    Team.current().check(plan.batch, plan.looks)
    torch.manual_seed(plan.seed)
    model = CompactModel(dataclasses.replace(config, reference_likeness=0.0))  # it learns to bear the wrong ones
    if start is not None:
        model.load_state_dict(start.state_dict())
    if compiled:
        model.decoder.compile()
    task = Restoring(
        model, photos, held_out, text or text_encoder_of(config, device, cached_bytes=ALL_CAPTIONS), plan, device
    )
    fit(task, folder, plan, device, report)
    model.config = dataclasses.replace(model.config, reference_likeness=least_likeness(model, held_out or photos))
    return model
