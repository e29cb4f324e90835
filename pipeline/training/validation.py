"""PSNR on held-out photos, damage by damage, while a model is trained; of masks it knows what its mark head finds."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from pipeline.damage import noise, tone
from pipeline.damage.jpeg import jpeg
from pipeline.damage.mixture import KINDS, damage
from pipeline.damage.strengths import Strengths
from pipeline.restoration.config import ModelConfig
from pipeline.restoration.marks import LIKELY
from pipeline.restoration.model import CompactModel
from pipeline.restoration.precision import autocast
from pipeline.restoration.text import TextEncoder
from pipeline.restoration.views import probes, thumbnails
from pipeline.training.data import VIEW, Photo

IMAGES = 16
FEW = 8
"""Images on which each kind of damage is tried."""


class Validation:
    """The same images, damaged the same way, at every interval."""

    def __init__(self, photos: list[Photo], config: ModelConfig, text: TextEncoder, device: torch.device) -> None:
        chosen = random.Random(7).sample(photos, min(IMAGES, len(photos)))
        truth = torch.stack([photo.pixels[:, :VIEW, :VIEW] for photo in chosen]).to(device).float() / 255
        generator = torch.Generator(device).manual_seed(7)
        count = len(chosen)
        self.config, self.device, self.truth = config, device, truth
        captions = [photo.captions[0] if photo.captions else "" for photo in chosen]
        empty = [""] * count
        grey = tone.black_and_white(truth)
        self.cases: dict[str, tuple[Tensor, list[str]]] = {
            "noise_25": (noise.gaussian(truth, torch.full((count,), 25.0, device=device), generator), empty),
            "jpeg_10": (jpeg(truth, torch.full((count,), 10.0, device=device)), empty),
            "grey_caption": (grey, captions),
            "grey_empty": (grey, empty),
            "grey_shuffled": (grey, captions[1:] + captions[:1]),
            "untouched": (truth, empty),
        }
        for kind in KINDS:
            if kind not in ("clean", "grey"):
                few = truth[:FEW]
                dice, middling = random.Random(7), Strengths().at(0.5)
                images = damage(few, [[kind]] * len(few), dice, generator, middling).images
                self.cases[kind] = (images, empty[: len(few)])
        self.text = text

    @torch.no_grad()
    def __call__(self, model: CompactModel) -> dict[str, float]:
        """Mean PSNR in dB of each case; greys are judged with their luminance kept."""
        return {name: self._case(model, name, *case) for name, case in self.cases.items()}

    def _case(self, model: CompactModel, name: str, images: Tensor, captions: list[str]) -> float:
        config = self.config
        count = len(images)
        masks = torch.zeros_like(images[:, :1])
        if model.marks is not None:
            masks = (model.marks(images.clamp(0, 1)) > LIKELY).float()
        features = self.text(captions)
        boxes = torch.tensor([[0.0, 0, 1, 1]], device=self.device).expand(count, -1)
        with autocast(self.device):
            view = model.look(
                thumbnails(images, masks, config.thumbnail),
                probes(images, masks, config.probe, config.probes),
                features.tokens,
                features.absent,
                images.new_zeros(count, 0, 4, config.thumbnail, config.thumbnail),
                torch.zeros(count, 0, dtype=torch.bool, device=self.device),
            )
            grey = torch.full((count,), name.startswith("grey"), device=self.device)
            decoded = model.decode(images, masks, view.guide, boxes, grey)
        restored = decoded.pixels
        if name.startswith("grey"):
            restored = restored - tone.luma(restored) + images
        errors = (restored.clamp(0, 1) - self.truth[:count]).square().mean((1, 2, 3))
        return float(-10 * errors.log10().mean())
