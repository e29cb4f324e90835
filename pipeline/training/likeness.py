"""From which likeness on a reference is believed to show what its image shows, measured once a model is trained."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.restoration.model import CompactModel
from pipeline.restoration.views import thumbnails
from pipeline.training.data import Photo, crop

PHOTOS = 400
"""So many are looked at, at most."""
FEWEST = 20
"""With fewer photographs nothing can be said."""
TAKEN = 0.05
"""Share of other scenes' references that are believed."""
TOGETHER = 16
SEED = 11


@torch.inference_mode()
def least_likeness(model: CompactModel, photos: Sequence[Photo]) -> float:
    """The likeness that one in twenty references to another scene reaches; 0 with too few photographs.

    Photographs stand for images, pieces of others for references.
    """
    dice = random.Random(SEED)
    chosen = dice.sample(list(photos), min(PHOTOS, len(photos)))
    if len(chosen) < FEWEST:
        return 0.0
    model.eval()
    others = chosen[1:] + chosen[:1]
    found: list[float] = []
    for start in range(0, len(chosen), TOGETHER):
        here = slice(start, start + TOGETHER)
        images = torch.cat([_thumbnail(model, photo.pixels) for photo in chosen[here]])
        crops = torch.cat(
            [_thumbnail(model, crop(photo.pixels, dice, dice.uniform(0.5, 1.0))) for photo in others[here]]
        )
        found += model.likeness(images, crops).tolist()
    return round(float(np.quantile(found, 1 - TAKEN)), 4)


def _thumbnail(model: CompactModel, pixels: Tensor) -> Tensor:
    """[3, H, W] uint8 -> [1, 4, S, S] where the model is."""
    device = model.agreement_scale.device
    image = pixels[None].to(device).float() / 255
    return thumbnails(image, torch.zeros_like(image[:, :1]), model.config.thumbnail)
