"""Pictures in which marks are to be found, and what is to be learned of them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.damage.kinds import ACTIONS, COVERS, TONES
from pipeline.damage.mixture import damage_one
from pipeline.damage.strengths import Strengths
from pipeline.restoration.marks import LIKELY, MarkHead
from pipeline.training.data import Photo, crop, larger, resized, varied
from pipeline.training.team import ALONE, Team

SIDES = (160, 192, 256, 320)
"""Pixels of the views of a batch; the largest of use are larger, and show marks as wide."""
SHRUNK = (0.4, 1.2)
"""What a view's side is to that at which its picture is damaged."""
LARGEST = 512
"""Pixels of that side at most."""
ENLARGED = 1.3
"""What that side is at most to the shorter one of what is shown of the photo: enlarged, that has no sharp lines."""
COUNTS = ((0, 0.3), (1, 0.45), (2, 0.15), (3, 0.1))
"""How often so many kinds of marks lie on a picture."""
LEAST = 0.6
"""Share of a photo's sides that a crop has at least."""
SHARP = 0.4
"""Share of pictures drawn among the photos that are larger than a training image: they have thin lines of their own."""
GREY = 0.15
"""Share of pictures without colours."""
PLAIN = 0.1
"""Share of pictures with something flat in them."""
BEFORE, AFTER = 0.35, 0.35
"""Shares of pictures with other damage below the marks, and above them."""
BELOW = (*TONES, "foxing", "stains")
ABOVE = ("noise", "jpeg", "blur", "low_resolution", "uneven", "cast")
RARE = 3.0
"""What a covered pixel counts: few are."""
IMAGES = 32
"""To validate on."""


class Marked(NamedTuple):
    """A batch of views."""

    views: Tensor  # [N, 3, S, S]
    covered: Tensor  # [N, 1, S, S], the share of each pixel that is


def draw(photos: Sequence[Photo], seed: str, size: int, device: torch.device, team: Team = ALONE) -> Marked:
    """This worker's share of a batch of `size` pictures: the same seed and place give the same picture."""
    return _batch([_picture(*one) for one in scenes(photos, seed, size, device, team)])


def scenes(
    photos: Sequence[Photo], seed: str, size: int, device: torch.device, team: Team
) -> Iterator[tuple[Tensor, int, random.Random]]:
    """This worker's share of `size` pictures [1, 3, D, D], 0..1, to be damaged and then shown at so many pixels, which
    are the same for all; and the die of each."""
    side = random.Random(seed).choice(SIDES)
    sharp = larger(photos)
    for index in team.share(size):
        dice = random.Random(f"{seed}/{index}")
        yield _scene(photos, sharp, side, dice, device), side, dice


def _batch(drawn: Sequence[tuple[Tensor, Tensor]]) -> Marked:
    views, masks = zip(*drawn, strict=True)
    return Marked(torch.cat(views), torch.cat(masks))


def _picture(image: Tensor, side: int, dice: random.Random) -> tuple[Tensor, Tensor]:
    """A view and its mask."""
    (count,) = dice.choices([count for count, _ in COUNTS], [share for _, share in COUNTS])
    covers = set(dice.sample(COVERS, count))
    below = [dice.choice(BELOW)] if dice.random() < BEFORE else []
    above = {dice.choice(ABOVE)} if dice.random() < AFTER else set()
    return _damaged(image, side, below, [kind for kind in ACTIONS if kind in covers | above], dice)


def _scene(
    photos: Sequence[Photo], sharp: Sequence[Photo], side: int, dice: random.Random, device: torch.device
) -> Tensor:
    photo = dice.choice(sharp if dice.random() < SHARP else photos)
    view = crop(photo.pixels, dice, dice.uniform(LEAST, 1.0)).to(device)
    drawn = min(round(side / dice.uniform(*SHRUNK)), round(ENLARGED * min(view.shape[1:])), LARGEST)
    view = resized(view[None].float(), drawn)[0].clamp(0, 255).round()
    return varied(view, PLAIN, GREY, dice)


def _damaged(
    image: Tensor,
    side: int,
    below: list[str],
    above: list[str],
    dice: random.Random,
    strengths: Strengths | None = None,
) -> tuple[Tensor, Tensor]:
    """The view of an image [1, 3, D, D], and as a mask what lies on it of `above`."""
    generator = torch.Generator(image.device).manual_seed(dice.getrandbits(62))
    if below:
        image, _, _ = damage_one(image, below, dice, generator, strengths)
    image, mask, _ = damage_one(image, above, dice, generator, strengths)
    return resized(image, side).clamp(0, 1), resized(mask, side)


def mark_losses(head: MarkHead, batch: Marked) -> dict[str, Tensor]:
    """Each term, unweighted.

    marks: cross-entropy of the covered pixels. marks_overlap: what is missing to the full overlap with them (soft Dice,
    arXiv:1606.04797), over the batch.
    """
    logits = head(batch.views)
    found = torch.sigmoid(logits)
    shared = (found * batch.covered).sum()
    return {
        "marks": F.binary_cross_entropy_with_logits(logits, batch.covered, pos_weight=logits.new_tensor(RARE)),
        "marks_overlap": 1 - (2 * shared + 1) / (found.sum() + batch.covered.sum() + 1),
    }


class MarkValidation:
    """The same views, marked the same way, at every interval."""

    def __init__(self, photos: Sequence[Photo], device: torch.device) -> None:
        self._cases: dict[str, Marked] = {}
        medium = Strengths().at(0.5)
        side = max(SIDES)
        views = [resized(photo.pixels[None].float().to(device), side) / 255 for photo in photos[:IMAGES]]
        for kind in ("clean", *COVERS):
            dice = [random.Random(f"{kind}/{index}") for index in range(len(views))]
            drawn = [_damaged(view, side, [], [kind], die, medium) for view, die in zip(views, dice, strict=True)]
            self._cases[f"marks_{kind}"] = _batch(drawn)

    @torch.no_grad()
    def __call__(self, head: MarkHead) -> dict[str, float]:
        """The overlap (Dice) of what is covered with what is found, and of clean views the share that seems to be."""
        shares = {}
        for name, batch in self._cases.items():
            found, covered = head(batch.views) > LIKELY, batch.covered > 0.5
            both = found.float().sum() + covered.float().sum()
            overlap = 2 * (found & covered).float().sum() / both.clamp_min(1)
            shares[name] = float(found.float().mean() if name == "marks_clean" else overlap)
        return shares
