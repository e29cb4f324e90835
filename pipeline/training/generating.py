"""Training to generate: captioned pictures, and the flow that leads to them from noise."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import SourceError
from pipeline.restoration.generator import Generator, GeneratorConfig
from pipeline.restoration.precision import autocast
from pipeline.restoration.text import TextEncoder, text_encoder_of
from pipeline.training.data import Photo, resized
from pipeline.training.loop import ALL_CAPTIONS, Plan, Progress, fit
from pipeline.training.team import Team

CLOSEST = 0.8
"""Least share of a photo's shorter side that a crop has."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationPlan(Plan):
    """What a run that learns to generate consists of."""

    batch: int = 64
    learning_rate: float = 1e-3
    caption_dropped: float = 0.1
    """Share of captions withheld: guidance needs a model that knows what pictures look like at all."""


_Drawn = tuple[Tensor, str, random.Random]
"""A picture, its caption or none, and the die that draws the noise."""


class Generating:
    """The task."""

    main = "flow"

    def __init__(
        self,
        model: Generator,
        photos: list[Photo],
        held_out: list[Photo],
        text: TextEncoder,
        plan: GenerationPlan,
        device: torch.device,
    ) -> None:
        """Of the photos those with a caption are used.

        Raises:
            SourceError: none has one.
        """
        self.model, self.plan, self.text, self.device = model, plan, text, device
        self.team = Team.current()
        self._photos = [photo for photo in photos if photo.captions]
        if not self._photos:
            raise SourceError("no image has a caption: there is nothing to learn generating from")
        self._held_out = [photo for photo in held_out if photo.captions][:128] if self.team.leads else []

    def draw(self, step: int) -> list[_Drawn]:
        """See `Task`."""
        return [self._draw(step, index) for index in self.team.share(self.plan.batch)]

    def losses(self, drawn: list[_Drawn]) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Task`."""
        loss = self._flow(drawn)
        return loss, {"flow": loss}

    def _draw(self, step: int, index: int) -> _Drawn:
        dice = random.Random(f"{self.plan.seed}/{step}/{index}/generate")
        photo = dice.choice(self._photos)
        caption = dice.choice(photo.captions) if dice.random() >= self.plan.caption_dropped else ""
        return _picture(photo, self.model.config.side, dice), caption, dice

    def _flow(self, drawn: list[_Drawn]) -> Tensor:
        pictures, captions, dice = zip(*drawn, strict=True)
        truth = 2 * torch.stack(pictures).to(self.device) - 1
        generators = [torch.Generator().manual_seed(die.getrandbits(62)) for die in dice]
        noise = torch.stack([torch.randn(truth.shape[1:], generator=one) for one in generators]).to(self.device)
        # most to learn is in the middle (arXiv:2403.03206)
        time = torch.sigmoid(torch.tensor([die.gauss(0, 1) for die in dice], device=self.device))
        share = time[:, None, None, None]
        features = self.text(captions)
        with autocast(self.device):
            found = self.model((1 - share) * truth + share * noise, time, features.tokens, features.absent)
        return F.mse_loss(found, noise - truth)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """The loss on held-out photos, with their captions and with others'."""
        if not self._held_out:
            return {}
        side = self.model.config.side

        def of(shift: int) -> float:
            texts = [photo.captions[0] for photo in self._held_out]
            dice = [random.Random(f"{index}/held out") for index in range(len(texts))]
            pictures = [_picture(photo, side, die) for photo, die in zip(self._held_out, dice, strict=True)]
            texts = texts[shift:] + texts[:shift]
            return float(self._flow(list(zip(pictures, texts, dice, strict=True))))

        return {"held_out": of(0), "held_out_shuffled": of(1)}

    def identity(self) -> dict[str, Any]:
        """See `Task`."""
        return {
            "config": repr(self.model.config),
            "photos": len(self._photos),
            "pixels": sum(photo.pixels.numel() for photo in self._photos),
            "captions": sum(len(caption) for photo in self._photos for caption in photo.captions),
        }


def train_generator(
    photos: list[Photo],
    held_out: list[Photo],
    folder: Path,
    config: GeneratorConfig,
    plan: GenerationPlan,
    device: torch.device,
    report: Callable[[Progress], None],
    start: Generator | None = None,
    text: TextEncoder | None = None,
    loaders: int = 0,
) -> Generator:
    """Train a model to generate, as `loop.fit` does it; the arguments are those of `restoring.train`.

    Raises:
        OutputError: `folder` holds a checkpoint of another plan.
        SourceError: no photo has a caption.
        RecipeError: the workers cannot share the batch.
    """
    Team.current().check(plan.batch, 0)
    torch.manual_seed(plan.seed)
    model = Generator(config)
    if start is not None:
        model.load_state_dict(start.state_dict())
    text = text or text_encoder_of(config, device, cached_bytes=ALL_CAPTIONS)
    fit(Generating(model, photos, held_out, text, plan, device), folder, plan, device, report, loaders)
    return model


def _picture(photo: Photo, side: int, dice: random.Random) -> Tensor:
    """A square crop, sometimes mirrored: [3, side, side], 0..1."""
    height, width = photo.pixels.shape[1:]
    edge = round(min(height, width) * dice.uniform(CLOSEST, 1.0))
    top, left = dice.randint(0, height - edge), dice.randint(0, width - edge)
    crop = photo.pixels[:, top : top + edge, left : left + edge].float()[None] / 255
    small = resized(crop, side)[0]
    return small.flip(2) if dice.random() < 0.5 else small
