"""Pictures of which something is gone, colours or places, small and many, and what is to be learned of them."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.damage.kinds import ACTIONS
from pipeline.damage.mixture import damage_one
from pipeline.damage.record import Damage
from pipeline.damage.strengths import Strengths
from pipeline.restoration.config import ModelConfig
from pipeline.restoration.model import CompactModel, Shown
from pipeline.restoration.painter import with_painted
from pipeline.restoration.precision import autocast
from pipeline.restoration.text import TextEncoder, TextFeatures
from pipeline.restoration.views import probes, thumbnails
from pipeline.training.data import VIEW, Photo, crop, reference_for, resized, stacked
from pipeline.training.team import ALONE, Team

KINDS: tuple[tuple[Sequence[str], float], ...] = (
    (("grey",), 0.24),
    (("holes",), 0.6),
    (("grey", "holes"), 0.06),
    (("corners",), 0.025),
    (("tears",), 0.025),
    (("folds",), 0.025),
    (("scratches",), 0.025),
)
"""How often what is gone. Colours soon stand still, for want of captioned photographs; fills go on getting better."""
ELSE = 0.15
"""Share of pictures with other damage beside."""
LEAST = 0.65
"""Share of a photo's height, and of its width, that a crop has at least."""
LIGHT = 0.25
"""By how much photographs are made brighter or darker: the power of at most exp(LIGHT), and of its inverse."""
CAPTION_DROPPED = 0.1
"""Share of captions withheld, so that it paints without."""
WORD_DROPPED = 0.1
"""Share of words that the others are short of, so that it does not know photographs by their captions."""
REFERENCE = 0.15
"""Share of pictures shown together with a reference: another crop of the same scene, in colour."""
WRONG_REFERENCE = 0.15
"""Share of references that show another scene: most such are found out before, and left alone."""
EASY = 1e-3
"""Mean squared error of what is good enough: 30 dB. Less hardly counts."""
IMAGES = 64
"""To validate on."""
LARGE_HOLES = 0.8
"""How strong the damage is whose fills are validated, 0 weak to 1 strong."""


class Painted(NamedTuple):
    """A batch."""

    thumbnails: Tensor  # [N, 4, S, S], RGB and the share of missing pixels
    probes: Tensor  # [N, P, 4, s, s]
    truth: Tensor  # [N, 3, S / 4, S / 4]
    grey: Tensor  # [N], bool: the colours are gone
    captions: list[str]
    references: Tensor  # [N, 1, 4, S, S]
    references_absent: Tensor  # [N, 1]


class _Drawn(NamedTuple):
    truth: Tensor  # [1, 3, VIEW, VIEW]
    damaged: Tensor  # [1, 3, VIEW, VIEW]
    mask: Tensor  # [1, 1, VIEW, VIEW]
    record: Damage
    caption: str
    reference: Tensor | None  # [3, S, S]


def draw(
    photos: Sequence[Photo], seed: str, size: int, config: ModelConfig, device: torch.device, team: Team = ALONE
) -> Painted:
    """This worker's share of a batch of `size` pictures: the same seed and place give the same picture."""
    side = config.thumbnail
    drawn = [_picture(photos, random.Random(f"{seed}/{index}"), side, device) for index in team.share(size)]
    return _batch(drawn, config, device)


def _batch(drawn: Sequence[_Drawn], config: ModelConfig, device: torch.device) -> Painted:
    truths, damaged, masks, records, captions, references = zip(*drawn, strict=True)
    truth, images, mask, side = torch.cat(truths), torch.cat(damaged), torch.cat(masks), config.thumbnail
    shown, absent = stacked(references, side)
    return Painted(
        thumbnails=thumbnails(images, mask, side),
        probes=probes(images, mask, config.probe, config.probes),
        truth=F.interpolate(truth, size=(side // 4, side // 4), mode="area"),
        grey=torch.tensor([record.grey for record in records], device=device),
        captions=list(captions),
        references=shown.to(device),
        references_absent=absent.to(device),
    )


def _picture(photos: Sequence[Photo], dice: random.Random, side: int, device: torch.device) -> _Drawn:
    photo = dice.choice(photos)
    tall, wide = dice.uniform(LEAST, 1.0), dice.uniform(LEAST, 1.0)
    view = _view(crop(photo.pixels, dice, tall, wide), device) ** math.exp(dice.uniform(-LIGHT, LIGHT))
    truth = view.flip(3) if dice.random() < 0.5 else view
    (lost,) = dice.choices([kinds for kinds, _ in KINDS], [share for _, share in KINDS])
    kinds = set(lost)
    if dice.random() < ELSE:
        kinds.add(dice.choice(["noise", "jpeg", "blur", *(["fading"] if "grey" in lost else [])]))
    generator = torch.Generator(device).manual_seed(dice.getrandbits(62))
    image, mask, record = damage_one(truth, [kind for kind in ACTIONS if kind in kinds], dice, generator)
    caption = dice.choice(photo.captions) if photo.captions and dice.random() >= CAPTION_DROPPED else ""
    caption = " ".join(word for word in caption.split() if dice.random() >= WORD_DROPPED)
    reference = None
    if dice.random() < REFERENCE:
        reference = reference_for(photo, photos, WRONG_REFERENCE, side, dice)
    return _Drawn(truth, image, mask, record, caption, reference)


def _view(pixels: Tensor, device: torch.device) -> Tensor:
    """[3, H, W] of uint8 -> [1, 3, VIEW, VIEW] in 0..1."""
    return resized(pixels[None].to(device).float() / 255, VIEW)


def painter_losses(model: CompactModel, batch: Painted, text: TextFeatures) -> dict[str, Tensor]:
    """Each term, unweighted.

    painter: the logarithm of each picture's mean squared error, which PSNR is, of what is gone: where pixels are
    missing all of it, else that of the colours, where these are.
    """
    with autocast(batch.thumbnails.device):
        painted = _painted(model, batch, text)
    return {"painter": (_squared_error(batch, painted) + EASY).log().mean()}


def _painted(model: CompactModel, batch: Painted, text: TextFeatures) -> Tensor:
    shown = Shown(batch.thumbnails, batch.probes, text.tokens, text.absent, batch.references, batch.references_absent)
    return model.paint(shown)


def _squared_error(batch: Painted, painted: Tensor) -> Tensor:
    """The mean squared error of each picture, as far as it was gone: [N]."""
    grey, missing = batch.grey[:, None, None, None], F.avg_pool2d(batch.thumbnails[:, 3:], 4)
    wrong = with_painted(batch.truth, painted, missing, batch.grey) - batch.truth
    gone = torch.where(grey, 1.0, missing)
    return wrong.square().mean(1).sum((1, 2)) / gone.sum((1, 2, 3)).clamp_min(1)


class PaintValidation:
    """The same pictures, damaged the same way, at every interval."""

    def __init__(self, photos: Sequence[Photo], config: ModelConfig, text: TextEncoder, device: torch.device) -> None:
        some = [photo for photo in photos if photo.captions][:IMAGES] or photos[:IMAGES]
        captions = [photo.captions[0] if photo.captions else "" for photo in some]
        truths = [_view(photo.pixels, device) for photo in some]
        self._text = text
        strong = Strengths().at(LARGE_HOLES)

        def case(kind: str, said: Sequence[str]) -> Painted:
            drawn = []
            for index, (truth, caption) in enumerate(zip(truths, said, strict=True)):
                dice = random.Random(f"{kind}/{index}")
                damaged = damage_one(truth, [kind], dice, torch.Generator(device), strong)
                drawn.append(_Drawn(truth, *damaged, caption, None))
            return _batch(drawn, config, device)

        others = [*captions[1:], *captions[:1]]
        self._cases = {
            "painter_grey_caption": case("grey", captions),
            "painter_grey_empty": case("grey", [""] * len(captions)),
            "painter_grey_shuffled": case("grey", others),
            "painter_holes": case("holes", captions),
        }

    @torch.no_grad()
    def __call__(self, model: CompactModel) -> dict[str, float]:
        """Mean PSNR in dB of each case, at the painter's own size."""
        found = {}
        for name, batch in self._cases.items():
            said = self._text(batch.captions)
            with autocast(batch.thumbnails.device):
                painted = _painted(model, batch, said)
            found[name] = float(-10 * _squared_error(batch, painted).log10().mean())
        return found
