"""Training to restore: damaged images, and what they were."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from pipeline.restoration.config import ModelConfig
from pipeline.restoration.model import CompactModel
from pipeline.restoration.precision import autocast
from pipeline.restoration.text import TextEncoder, text_encoder_of
from pipeline.training.checkpoint import read_state
from pipeline.training.data import Batch, Mixture, Photo, Sampler
from pipeline.training.judging import train_judge
from pipeline.training.likeness import least_likeness
from pipeline.training.loaders import moved
from pipeline.training.loop import ALL_CAPTIONS, Plan, Progress, fit, identity_of
from pipeline.training.marking import Marked, MarkValidation, mark_losses
from pipeline.training.marking import draw as draw_marked
from pipeline.training.objective import (
    decoder_losses,
    further_losses,
    look,
    predict,
    total,
    view_losses,
)
from pipeline.training.painting import Painted, PaintValidation, painter_losses
from pipeline.training.painting import draw as draw_painted
from pipeline.training.specialising import (
    OWN,
    ROUTED,
    ExpertValidation,
    Pairs,
    begin,
    expert_losses,
    patch_at,
    train_router,
)
from pipeline.training.specialising import draw as draw_pairs
from pipeline.training.staining import Stained, StainValidation, stain_losses
from pipeline.training.staining import draw as draw_stained
from pipeline.training.team import Team
from pipeline.training.toning import Toned, ToneValidation, tone_losses
from pipeline.training.toning import draw as draw_toned
from pipeline.training.validation import Validation

Part = Literal["all", "tone", "marks", "stains", "judge", "expert", "painter"]
"""Of a model, that can learn by itself."""


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
    tones: int = 48
    """Thumbnails in each such step, of which the tone head learns."""
    marked: int = 12
    """Views in each such step, in which the mark head learns to find marks."""
    part: Part = "all"
    """Of the model that learns; the rest stays as it is. A part alone learns in each step."""
    mixture: Mixture = dataclasses.field(default_factory=Mixture)


class Drawn(NamedTuple):
    """What one step learns from."""

    batch: Batch | None
    """None where a part learns alone."""
    looks: Batch | None
    tones: Toned | None
    marked: Marked | None
    stained: Stained | None
    """Of which the stain head learns."""
    pairs: Pairs | None
    """Of which the expert learns."""
    painted: Painted | None
    """Of which the painter learns."""
    looking: bool
    """The global view learns, too."""
    dice: list[random.Random]
    """One an image of the batch: which patch is taken of it does not depend on who draws it."""


class Restoring:
    """The task."""

    def __init__(
        self,
        model: CompactModel,
        photos: list[Photo],
        held_out: list[Photo],
        text: TextEncoder,
        plan: TrainingPlan,
        device: torch.device,
        drawn_on: torch.device | None = None,
    ) -> None:
        """Batches are damaged on `drawn_on`; None: on `device`."""
        self.model, self.plan, self.text, self.device = model, plan, text, device
        self.team = Team.current()
        self.main: str = "pixels" if plan.part == "all" else plan.part
        self._photos, self._drawn_on = photos, drawn_on or device
        self._sampler = Sampler(photos, plan.mixture, plan.seed, model.config.thumbnail, self._drawn_on, self.team)
        if plan.part != "all":
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name.startswith(f"{plan.part}."))
        self._validations = list(self._measured(held_out)) if held_out and self.team.leads else []

    def _measured(self, held_out: list[Photo]) -> Iterator[Callable[[], dict[str, float]]]:
        """What is measured at every interval: of all, or of the part that learns."""
        model, part, device = self.model, self.plan.part, self.device
        if part == "all":
            yield partial(Validation(held_out, model.config, self.text, device), model)
        if model.tone is not None and part in ("all", "tone"):
            yield partial(ToneValidation(held_out, device), model.tone)
        if model.marks is not None and part in ("all", "marks"):
            yield partial(MarkValidation(held_out, device), model.marks)
        if model.stains is not None and part == "stains":
            yield partial(StainValidation(held_out, device), model.stains)
        if model.expert is not None and part == "expert":
            yield partial(ExpertValidation(held_out, device), model.expert)
        if part == "painter":
            yield partial(PaintValidation(held_out, model.config, self.text, device), model)

    def draw(self, step: int) -> Drawn:
        """See `Task`."""
        plan, model = self.plan, self.model
        of_all, looking = plan.part == "all", plan.part == "all" and step % plan.look_every == 0
        tones = plan.batch if plan.part == "tone" else plan.tones * (looking and model.tone is not None)
        marked = plan.batch if plan.part == "marks" else plan.marked * (looking and model.marks is not None)
        seed, drawn_on, team = f"{plan.seed}/{step}", self._drawn_on, self.team
        return Drawn(
            batch=self._sampler.batch(step, plan.batch) if of_all else None,
            looks=self._sampler.looks(step, plan.looks) if looking and plan.looks else None,
            tones=draw_toned(self._photos, f"{seed}/tone", tones, drawn_on, team) if tones else None,
            marked=draw_marked(self._photos, f"{seed}/marks", marked, drawn_on, team) if marked else None,
            stained=self._stained(step) if plan.part == "stains" else None,
            pairs=self._pairs(step) if plan.part == "expert" else None,
            painted=self._painted(step) if plan.part == "painter" else None,
            looking=looking,
            dice=[random.Random(f"{seed}/{index}/patch") for index in team.share(plan.batch)],
        )

    def _stained(self, step: int) -> Stained:
        return draw_stained(self._photos, f"{self.plan.seed}/{step}/stains", self.plan.batch, self._drawn_on, self.team)

    def _pairs(self, step: int) -> Pairs:
        plan = self.plan
        side = patch_at(step / plan.steps)
        return draw_pairs(self._photos, f"{plan.seed}/{step}/expert", plan.batch, side, self._drawn_on, self.team)

    def _painted(self, step: int) -> Painted:
        seed, size, config = f"{self.plan.seed}/{step}/painter", self.plan.batch, self.model.config
        return draw_painted(self._photos, seed, size, config, self._drawn_on, self.team)

    def losses(self, drawn: Drawn) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Task`; the global view learns in some steps only."""
        drawn, model = moved(drawn, self.device), self.model
        terms: dict[str, Tensor] = {}
        if drawn.batch is not None:
            terms |= self._restored(drawn.batch, drawn)
        if drawn.looks is not None:
            said = self.text(drawn.looks.captions)  # at full precision always: the encoder remembers it
            with autocast(self.device):
                seen = look(model, drawn.looks, said)
            terms |= further_losses(seen, drawn.looks)
        if drawn.tones is not None and model.tone is not None:
            terms |= tone_losses(model.tone, drawn.tones)
        if drawn.marked is not None and model.marks is not None:
            terms |= mark_losses(model.marks, drawn.marked)
        if drawn.stained is not None and model.stains is not None:
            terms |= stain_losses(model.stains, drawn.stained)
        if drawn.pairs is not None and model.expert is not None:
            terms |= expert_losses(model.expert, drawn.pairs)
        if drawn.painted is not None:
            terms |= painter_losses(model, drawn.painted, self.text(drawn.painted.captions))
        return total(terms), terms

    def _restored(self, batch: Batch, drawn: Drawn) -> dict[str, Tensor]:
        """The terms of what the network says of the batch."""
        features = self.text(batch.captions)
        with autocast(self.device):
            answer = predict(self.model, batch, features, self.plan.patch, drawn.dice, drawn.looking)
        terms = decoder_losses(self.model, answer)
        if drawn.looking:
            terms |= view_losses(self.model, batch, answer.view, self.team)
        return terms

    def validate(self) -> dict[str, float]:
        """PSNR by damage."""
        return {name: value for measure in self._validations for name, value in measure().items()}

    def identity(self) -> dict[str, Any]:
        """See `Task`."""
        return _told(self.model, self._photos)


def _told(model: CompactModel, photos: list[Photo]) -> dict[str, Any]:
    """What a run is known by, beside its plan."""
    return {
        "config": repr(model.config),
        "photos": len(photos),
        "pixels": sum(photo.pixels.numel() for photo in photos),
        "captions": sum(len(photo.captions) for photo in photos),
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
    loaders: int = 0,
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
        loaders: processes that draw batches ahead, on the CPU; 0: none, batches are drawn on the device.

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
    text = text or text_encoder_of(config, device, cached_bytes=ALL_CAPTIONS)
    if plan.part == "judge":
        sampler = Sampler(photos, plan.mixture, plan.seed, config.thumbnail, torch.device("cpu"))
        identity = identity_of(dataclasses.replace(plan, steps=0), _told(model, photos))  # more steps: more of the same
        train_judge(model, sampler, folder, plan, identity, report, device=device, text_encoder=text)
        model.config = config
        return model
    if plan.part == "expert" and model.router is not None and not model.router.has_learned:
        begin(model.to(device), Sampler(photos, OWN, plan.seed, config.thumbnail, device), text)
    if compiled:
        model.decoder.compile()
    task = Restoring(model, photos, held_out, text, plan, device, torch.device("cpu") if loaders else device)
    fit(task, folder, plan, device, report, loaders)
    if plan.part == "expert" and task.team.leads:
        shown = (read_state(folder) or {}).get("validation", {})
        found = train_router(model, Sampler(photos, ROUTED, plan.seed, config.thumbnail, device), text, plan)
        report(Progress(plan.steps, plan.steps, 0.0, shown | found, 0.0, 0.0))
    alike = config.reference_likeness if plan.part != "all" else least_likeness(model, held_out or photos)
    model.config = dataclasses.replace(model.config, reference_likeness=alike)
    return model
