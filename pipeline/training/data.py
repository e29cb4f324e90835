"""Training images, decoded once and held in memory as uint8, and the batches drawn from them."""

from __future__ import annotations

import dataclasses
import logging
import math
import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pipeline.damage.kinds import TONES
from pipeline.damage.mixture import KINDS, Damaged, damage
from pipeline.damage.tone import luma
from pipeline.errors import RowError, SourceError
from pipeline.imaging.tables import CAPTIONS, ImageTable, captions_of
from pipeline.training.team import ALONE, Team

log = logging.getLogger(__name__)

VIEW = 224
"""Side in pixels of a training image."""
LOOKS = (("grey",), ("holes",), ("grey",), TONES, ("grey",), ("clean",))
"""What the further pictures for the global view are, one after the other. Undamaged ones are as many as those with
another tone: else a picture with nothing else wrong is taken for a faded one."""
SHRUNK, ENLARGED = 0.1, 0.1
"""Shares of crops of large photos that are shrunk, up to all that it holds, and enlarged, by half at most: what a
scanner sees of an old print is softer than a small photo from the web, and noise is taken from it otherwise. With a
quarter of each, the others' noise was learned much later: 0.24 dB behind after 340 steps from scratch."""
MOST = 0.65
"""Share of each side that is left of a large photo, at least, where most of it is shown."""
LARGEST = 768
"""Of larger photos a part of this side is kept."""


class Photo(NamedTuple):
    """One training image."""

    pixels: Tensor  # [3, H, W], uint8, both sides at least VIEW
    captions: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Mixture:
    """How often what happens to a training image; shares of the batches, to be divided by their sum."""

    kinds: tuple[tuple[str, float], ...] = (
        ("gaussian", 0.30),
        ("noise", 0.14),
        ("jpeg", 0.24),
        ("grey", 0.03),
        ("low_resolution", 0.08),
        ("holes", 0.05),
        ("clean", 0.05),
        ("worn", 0.02),
        ("second_order", 0.01),
        ("scratches", 0.02),
        ("blur", 0.012),
        ("fading", 0.02),
        ("motion", 0.006),
        ("halftone", 0.006),
        ("dust", 0.006),
        ("corners", 0.01),
        ("cast", 0.006),
        ("sepia", 0.006),
        ("yellowing", 0.006),
        ("uneven", 0.006),
        ("hairs", 0.006),
        ("folds", 0.006),
        ("tears", 0.012),
        ("foxing", 0.006),
        ("stains", 0.006),
    )
    second: float = 0.1
    """Share of damaged images that get noise or JPEG on top."""
    caption_dropped: float = 0.2
    """Share of captions withheld, so that the model works without."""
    plain: float = 0.1
    """Share of all but greys with something flat in them, a mount or a silhouette, which is no damage."""
    reference: float = 0.25
    """Share of greys and holes shown together with a reference: another crop of the same scene, in colour."""
    wrong_reference: float = 0.3
    """Share of references that show another scene: it must do no harm."""
    mask_withheld: float = 0.5
    """Share of defects whose mask is not given: archives have none."""
    sharp: float = 0.7
    """Share of pictures drawn among the photos that are larger than a training image: they are at their own
    resolution."""


EVEN = Mixture(
    kinds=tuple((kind, 0.3 if kind == "clean" else 0.7 / (len(KINDS) - 1)) for kind in KINDS),
    plain=0.05,
    mask_withheld=1.0,
    sharp=0.15,
)
"""Every kind of damage as often as another, in as many photos as there are: what judge and critic are to know of."""


class Batch(NamedTuple):
    """What one training step needs."""

    damaged: Damaged
    truth: Tensor  # [N, 3, VIEW, VIEW]
    masks: Tensor  # [N, 1, VIEW, VIEW], as given to the model
    captions: list[str]
    references: Tensor  # [N, 1, 4, S, S]
    references_absent: Tensor  # [N, 1]


def load_photos(
    tables: Sequence[ImageTable],
    image: str = "image",
    captions: str | None = None,
    memory: int = 8 << 30,
    seed: int = 0,
) -> list[Photo]:
    """Decode images and hold them in memory; those smaller than VIEW are enlarged, of large ones a part is taken.

    Args:
        tables: read in an order drawn from `seed`, until the memory is full.
        image: the column of the images.
        captions: the column of a caption or a list of them; None: `captions` or `caption`, where there is one.
        memory: bytes of decoded pixels at most.
        seed: draws the order, and the part of a large image.

    Raises:
        SourceError: a table has no such column, or none of its images can be decoded.
    """
    dice = random.Random(seed)
    photos: list[Photo] = []
    left_out, held = 0, 0
    for table in dice.sample(tables, len(tables)):
        table.check(image)
        if captions is not None:
            table.check(captions)
        texts = captions or next((name for name in CAPTIONS if name in table.data.schema.names), None)
        for row in table.rows([image, texts] if texts else [image]):
            if held >= memory:
                log.warning("memory is full with %d images, %.1f GB; the rest is not used", len(photos), held / 1e9)
                return photos
            try:
                photos.append(_photo(table.decode(row, image), captions_of(row[texts] if texts else None), dice))
                held += photos[-1].pixels.numel()
            except RowError as error:
                left_out += 1
                log.warning("an image of %s is left out: %s", table.path, error.message)
    if not photos:
        raise SourceError(
            f"no image could be decoded in {', '.join(table.path for table in tables)} ({left_out} tried)"
        )
    if not any(photo.captions for photo in photos):
        log.warning("no image has a caption (columns %s): colours are learned without", captions or CAPTIONS)
    return photos


def _photo(pixels: Any, captions: tuple[str, ...], dice: random.Random) -> Photo:
    height, width = pixels.shape[:2]
    top, left = (dice.randint(0, max(0, length - LARGEST)) for length in (height, width))
    picture = Image.fromarray(np.ascontiguousarray(pixels[top : top + LARGEST, left : left + LARGEST]))
    scale = VIEW / min(picture.size)
    if scale > 1:
        size = (max(VIEW, round(picture.width * scale)), max(VIEW, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    return Photo(torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous(), captions)


def larger(photos: Sequence[Photo]) -> Sequence[Photo]:
    """Those larger than a training image, which are at their own resolution; all, if there are none."""
    return [photo for photo in photos if min(photo.pixels.shape[1:]) > VIEW] or photos


class Sampler:
    """Draws batches: the same seed, step and place give the same image, whatever ran before and whoever draws it."""

    def __init__(
        self,
        photos: list[Photo],
        mixture: Mixture,
        seed: int,
        thumbnail: int,
        device: torch.device,
        team: Team = ALONE,
    ) -> None:
        self.mixture = mixture
        self.seed = seed
        self.thumbnail = thumbnail
        self.device = device
        self.team = team
        self._captioned = [photo for photo in photos if photo.captions] or photos
        self._sharp = larger(photos)
        self._all = photos
        self._kinds, self._shares = zip(*mixture.kinds, strict=True)

    def batch(self, step: int, size: int) -> Batch:
        """This worker's share of the batch of `size` images of this step."""
        return self._draw((), f"{self.seed}/{step}", size)

    def looks(self, step: int, size: int) -> Batch:
        """Its share of `size` further pictures, such as the global view learns most from: see `LOOKS`."""
        return self._draw(LOOKS, f"{self.seed}/{step}/look", size)

    def large(self, step: int, size: int) -> list[tuple[Tensor, Damaged, str]]:
        """`size` pictures of larger photos, all or most of each: truth [1, 3, H, W], what became of it, a caption."""
        drawn = (self._image((), random.Random(f"{self.seed}/{step}/large/{index}"), True) for index in range(size))
        return [(truth, damaged, caption) for truth, damaged, _, caption, _ in drawn]

    def _draw(self, kinds: Sequence[Sequence[str]], seed: str, size: int) -> Batch:
        drawn = [
            self._image(kinds[index % len(kinds)] if kinds else (), random.Random(f"{seed}/{index}"))
            for index in self.team.share(size)
        ]
        truths, damaged, masks, captions, references = zip(*drawn, strict=True)
        shown, absent = stacked(references, self.thumbnail)
        done = Damaged(
            torch.cat([one.images for one in damaged]),
            torch.cat([one.masks for one in damaged]),
            [record for one in damaged for record in one.records],
        )
        return Batch(
            done, torch.cat(truths), torch.cat(masks), list(captions), shown.to(self.device), absent.to(self.device)
        )

    def _image(
        self, among: Sequence[str], dice: random.Random, large: bool = False
    ) -> tuple[Tensor, Damaged, Tensor, str, Tensor | None]:
        """Truth [1, 3, VIEW, VIEW], what became of it, the mask that is told, a caption, and a reference [3, S, S].

        The kind is one of `among`, alike; if that is empty, as the mixture says. `large`: all or most of a larger
        photo, [1, 3, H, W].
        """
        mixture = self.mixture
        kind = dice.choice(among) if among else dice.choices(self._kinds, self._shares)[0]
        photo = dice.choice(self._sharp) if large else self._pick(kind, dice)
        view = crop(photo.pixels, dice, dice.uniform(MOST, 1.0)) if large else view_of(photo.pixels, dice)
        if kind != "grey" and dice.random() < mixture.plain:
            view = dice.choice([mounted, silhouette])(view, dice)
        truth = view[None].to(self.device).float() / 255
        kinds = [kind]
        if kind != "clean" and dice.random() < mixture.second:
            kinds.append(dice.choice(["noise", "jpeg"]))
        generator = torch.Generator(self.device).manual_seed(dice.getrandbits(62))
        damaged = damage(truth, [kinds], dice, generator)
        withheld = dice.random() < mixture.mask_withheld
        told = torch.zeros_like(damaged.masks) if withheld else damaged.masks
        caption = dice.choice(photo.captions) if photo.captions and dice.random() >= mixture.caption_dropped else ""
        reference = None
        if kind in ("grey", "holes") and dice.random() < mixture.reference:
            reference = reference_for(photo, self._captioned, mixture.wrong_reference, self.thumbnail, dice)
        return truth, damaged, told, caption, reference

    def _pick(self, kind: str, dice: random.Random) -> Photo:
        if kind in ("grey", "holes"):
            return dice.choice(self._captioned)
        return dice.choice(self._sharp if dice.random() < self.mixture.sharp else self._all)


def reference_for(photo: Photo, others: Sequence[Photo], wrong: float, side: int, dice: random.Random) -> Tensor:
    """Another crop of a photo's scene, or, a share `wrong` of them, of that of one of the others: [3, side, side]."""
    scene = dice.choice(others) if dice.random() < wrong else photo
    return resized(crop(scene.pixels, dice, dice.uniform(0.5, 1.0)).float()[None] / 255, side)[0]


def stacked(references: Sequence[Tensor | None], side: int) -> tuple[Tensor, Tensor]:
    """References [3, side, side], one a picture or none, as a batch has them: [N, 1, 4, side, side]; absent [N, 1]."""
    shown, absent = torch.zeros(len(references), 1, 4, side, side), torch.ones(len(references), 1, dtype=torch.bool)
    for index, reference in enumerate(references):
        if reference is not None:
            shown[index, 0, :3], absent[index, 0] = reference, False
    return shown, absent


def resized(images: Tensor, side: int) -> Tensor:
    """[N, C, H, W] -> [N, C, side, side], squeezed, without aliases."""
    if images.shape[-2:] == (side, side):
        return images
    return F.interpolate(images, size=(side, side), mode="bilinear", antialias=True, align_corners=False)


def crop(pixels: Tensor, dice: random.Random, share: float, wide: float | None = None) -> Tensor:
    """A random crop with `share` of each side, or, if `wide` is given, with so much of the width."""
    height, width = pixels.shape[1:]
    tall, broad = max(1, round(height * share)), max(1, round(width * (share if wide is None else wide)))
    top, left = dice.randint(0, height - tall), dice.randint(0, width - broad)
    return pixels[:, top : top + tall, left : left + broad]


def view_of(pixels: Tensor, dice: random.Random, side: int = VIEW) -> Tensor:
    """A square crop, VIEW pixels a side at most, half the time mirrored; large photos: some shrunk or enlarged."""
    height, width = pixels.shape[1:]
    scale = 1.0
    if min(height, width) > VIEW:
        smallest, die = VIEW / min(height, width), dice.random()
        if die < SHRUNK:
            scale = dice.uniform(smallest, 1.0)
        elif die < SHRUNK + ENLARGED:
            scale = dice.uniform(1.0, 1.5)
    tall, wide = (min(length, math.ceil(side / scale)) for length in (height, width))
    top, left = dice.randint(0, height - tall), dice.randint(0, width - wide)
    view = pixels[:, top : top + tall, left : left + wide]
    if (tall, wide) != (side, side):
        size = (side, side)
        view = F.interpolate(view[None], size=size, mode="bicubic", antialias=True, align_corners=False)[0]
    return view.flip(2) if dice.random() < 0.5 else view


def varied(view: Tensor, plain: float, grey: float, dice: random.Random) -> Tensor:
    """A picture [3, H, W] in 0..255, half the time mirrored, as [1, 3, H, W] in 0..1.

    `plain` and `grey` are the shares of pictures with something flat in them, and without colours.
    """
    if dice.random() < 0.5:
        view = view.flip(2)
    if dice.random() < plain:
        view = dice.choice([mounted, silhouette])(view, dice)
    truth = view[None] / 255
    if dice.random() < grey:
        truth = luma(truth).expand_as(truth).clone()
    return truth


def mounted(view: Tensor, dice: random.Random) -> Tensor:
    """Bars of one tone along one to four sides of [3, H, W], as of a mount, a frame or a slide."""
    tone = dice.choice([0, 255, dice.randint(0, 40), dice.randint(200, 255), dice.randint(0, 255)])
    tint = torch.tensor([[[min(255, max(0, tone + dice.randint(-12, 12)))]] for _ in range(3)], dtype=view.dtype)
    height, width = view.shape[1:]
    inside = torch.zeros(1, height, width, dtype=torch.bool)
    sides = set(dice.sample(range(4), dice.randint(1, 4)))
    top, bottom, left, right = (dice.uniform(0.02, 0.25) * (side in sides) for side in range(4))
    inside[
        :, round(top * height) : height - round(bottom * height), round(left * width) : width - round(right * width)
    ] = 1
    return torch.where(inside, view, tint)


def silhouette(view: Tensor, dice: random.Random) -> Tensor:
    """The darkest or the brightest parts of [3, H, W] as one flat tone: against the light, or a blown sky."""
    luma = F.avg_pool2d(view.float().mean(0)[None, None], 7, stride=1, padding=3, count_include_pad=False)[0]
    dark = dice.random() < 0.6
    limit = luma.quantile(dice.uniform(0.1, 0.45) if dark else dice.uniform(0.6, 0.9))
    flat = (luma < limit if dark else luma > limit).float()[None]
    flat = F.avg_pool2d(flat, 3, stride=1, padding=1, count_include_pad=False)[0]  # edges as a lens draws them
    tone = dice.uniform(0, 30) if dark else dice.uniform(225, 255)
    return torch.lerp(view.float(), torch.full_like(flat, tone), flat).round().to(view.dtype)
