"""Training images, decoded once and held in memory as uint8, and the batches drawn from them."""

from __future__ import annotations

import dataclasses
import logging
import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow.dataset as pads
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pipeline.damage.mixture import Damaged, damage
from pipeline.errors import RowError, SourceError
from pipeline.imaging.decode import decode_image

log = logging.getLogger(__name__)

VIEW = 224
"""Side in pixels of a training image."""


class Photo(NamedTuple):
    """One training image."""

    pixels: Tensor  # [3, H, W], uint8, both sides at least VIEW
    captions: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Mixture:
    """How often what happens to a training image; shares of the batches, to be divided by their sum."""

    kinds: tuple[tuple[str, float], ...] = (
        ("noise", 0.34),
        ("jpeg", 0.21),
        ("grey", 0.10),
        ("low_resolution", 0.10),
        ("holes", 0.06),
        ("clean", 0.03),
        ("worn", 0.03),
        ("second_order", 0.02),
        ("scratches", 0.02),
        ("blur", 0.02),
        ("fading", 0.015),
        ("motion", 0.01),
        ("halftone", 0.01),
        ("dust", 0.01),
        ("corners", 0.01),
        ("cast", 0.007),
        ("sepia", 0.007),
        ("yellowing", 0.007),
        ("uneven", 0.007),
        ("hairs", 0.006),
        ("folds", 0.006),
        ("tears", 0.006),
        ("foxing", 0.005),
        ("stains", 0.005),
    )
    second: float = 0.1
    """Share of damaged images that get light noise or JPEG on top."""
    caption_dropped: float = 0.2
    """Share of captions withheld, so that the model works without."""
    reference: float = 0.25
    """Share of greys and holes shown together with another crop of the same scene, in colour."""
    mask_withheld: float = 0.5
    """Share of defects whose mask is not given: archives have none."""


class Batch(NamedTuple):
    """What one training step needs."""

    damaged: Damaged
    truth: Tensor  # [N, 3, VIEW, VIEW]
    masks: Tensor  # [N, 1, VIEW, VIEW], as given to the model
    captions: list[str]
    references: Tensor  # [N, 1, 4, S, S]
    references_absent: Tensor  # [N, 1]


def load_photos(paths: Sequence[str], image: str = "image", captions: str = "captions") -> list[Photo]:
    """Read Parquet tables (paths or folders) and decode every image; those smaller than VIEW are enlarged.

    Raises:
        SourceError: a table has no such image column, or none of its images can be decoded.
    """
    photos, unreadable = [], 0
    for path in paths:
        table = pads.dataset(path, format="parquet")
        if image not in table.schema.names:
            raise SourceError(f"{path} has no column {image!r}; its columns are {', '.join(table.schema.names)}")
        columns = [image] + ([captions] if captions in table.schema.names else [])
        for batch in table.to_batches(columns=columns, batch_size=64):
            for row in batch.to_pylist():
                try:
                    photos.append(_photo(row[image], row.get(captions)))
                except (RowError, TypeError) as error:
                    unreadable += 1
                    log.warning("an image of %s is left out: %s", path, error)
    if not photos:
        raise SourceError(f"no image could be decoded in {', '.join(paths)} ({unreadable} tried)")
    return photos


def _photo(data: object, captions: object) -> Photo:
    if isinstance(data, dict):
        data = data["bytes"]
    if not isinstance(data, bytes):
        raise TypeError(f"expected bytes, found {type(data).__name__}")
    picture = Image.fromarray(decode_image(data).rgb)
    scale = VIEW / min(picture.size)
    if scale > 1:
        picture = picture.resize(
            (round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC
        )
    texts = [captions] if isinstance(captions, str) else list(captions) if isinstance(captions, list) else []
    return Photo(torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous(), tuple(texts))


class Sampler:
    """Draws batches: the same seed and step give the same batch, whatever ran before."""

    def __init__(self, photos: list[Photo], mixture: Mixture, seed: int, thumbnail: int, device: torch.device) -> None:
        self.mixture = mixture
        self.seed = seed
        self.thumbnail = thumbnail
        self.device = device
        self._captioned = [photo for photo in photos if photo.captions] or photos
        self._sharp = [photo for photo in photos if min(photo.pixels.shape[1:]) > VIEW] or photos
        self._all = photos

    def batch(self, step: int, size: int) -> Batch:
        """The batch of `size` images of this step."""
        dice = random.Random(f"{self.seed}/{step}")
        names, weights = zip(*self.mixture.kinds, strict=True)
        return self._draw(dice.choices(names, weights, k=size), dice, step)

    def greys(self, step: int, size: int) -> Batch:
        """`size` captioned pictures without colours: here it shows what a caption says."""
        return self._draw(["grey"] * size, random.Random(f"{self.seed}/{step}/grey"), step)

    def _draw(self, drawn: list[str], dice: random.Random, step: int) -> Batch:
        generator = torch.Generator(self.device).manual_seed(self.seed * 1_000_003 + step)
        kinds = [[kind, *self._second(kind, dice)] for kind in drawn]
        photos = [self._pick(kind, dice) for kind in drawn]
        truth = torch.stack([_view(photo.pixels, dice) for photo in photos]).to(self.device).float() / 255
        damaged = damage(truth, kinds, dice, generator)
        masks = damaged.masks.clone()
        for mask in masks:
            if dice.random() < self.mixture.mask_withheld:
                mask.zero_()
        captions = [
            dice.choice(photo.captions) if photo.captions and dice.random() >= self.mixture.caption_dropped else ""
            for photo in photos
        ]
        references, absent = self._references(drawn, photos, dice)
        return Batch(damaged, truth, masks, captions, references, absent)

    def _second(self, kind: str, dice: random.Random) -> list[str]:
        if kind == "clean" or dice.random() >= self.mixture.second:
            return []
        return [dice.choice(["noise", "jpeg"])]

    def _pick(self, kind: str, dice: random.Random) -> Photo:
        if kind in ("grey", "holes"):
            return dice.choice(self._captioned)
        return dice.choice(self._sharp if dice.random() < 0.5 else self._all)

    def _references(self, kinds: list[str], photos: list[Photo], dice: random.Random) -> tuple[Tensor, Tensor]:
        side = self.thumbnail
        references = torch.zeros(len(kinds), 1, 4, side, side)
        absent = torch.ones(len(kinds), 1, dtype=torch.bool)
        for index, (kind, photo) in enumerate(zip(kinds, photos, strict=True)):
            if kind in ("grey", "holes") and dice.random() < self.mixture.reference:
                crop = _crop(photo.pixels, dice, dice.uniform(0.5, 1.0)).float()[None] / 255
                small = F.interpolate(crop, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
                references[index, 0, :3] = small[0]
                absent[index, 0] = False
        return references.to(self.device), absent.to(self.device)


def _crop(pixels: Tensor, dice: random.Random, share: float) -> Tensor:
    """A random crop with `share` of each side."""
    height, width = pixels.shape[1:]
    tall, wide = max(1, round(height * share)), max(1, round(width * share))
    top, left = dice.randint(0, height - tall), dice.randint(0, width - wide)
    return pixels[:, top : top + tall, left : left + wide]


def _view(pixels: Tensor, dice: random.Random) -> Tensor:
    """A VIEW x VIEW crop, half the time mirrored; large photos are sometimes shrunk first."""
    height, width = pixels.shape[1:]
    if min(height, width) > VIEW and dice.random() < 0.5:
        share = dice.uniform(VIEW / min(height, width), 1.0)
        size = (max(VIEW, round(height * share)), max(VIEW, round(width * share)))
        pixels = F.interpolate(pixels[None], size=size, mode="bilinear", antialias=True, align_corners=False)[0]
        height, width = size
    top, left = dice.randint(0, height - VIEW), dice.randint(0, width - VIEW)
    view = pixels[:, top : top + VIEW, left : left + VIEW]
    return view.flip(2) if dice.random() < 0.5 else view
