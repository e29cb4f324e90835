"""Pictures of which the tone alone is to be undone, small and many, and what is to be learned of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.damage.kinds import ACTIONS, MARKS, TONES
from pipeline.damage.mixture import damage_one
from pipeline.damage.record import FADING, SCALES, Damage
from pipeline.damage.strengths import LEVELS, Strengths
from pipeline.damage.tone import luma
from pipeline.restoration.judge import SMALLEST
from pipeline.restoration.tone import SIDE, Judged, ToneHead, undone
from pipeline.restoration.views import thumbnails
from pipeline.training.data import Photo, resized, varied
from pipeline.training.team import ALONE, Team

DRAWN = 2 * SIDE
"""Pixels of the sides at which pictures are damaged, before they are made small."""
KINDS: tuple[tuple[Sequence[str] | int, float], ...] = (
    (("uneven",), 0.24),
    (("cast",), 0.12),
    (("sepia",), 0.10),
    (("fading",), 0.12),
    (("yellowing",), 0.07),
    (2, 0.10),
    (3, 0.03),
    ((), 0.22),
)
"""How often which tones are changed; a number: so many of them, drawn anew."""
LEAST = 0.5
"""Share of a photo's sides that a crop has at least."""
GREY = 0.25
"""Share of pictures without colours."""
PLAIN = 0.1
"""Share of pictures with something flat in them."""
ELSE = 0.35
"""Share of pictures with other damage beside; half of their masks are told."""
UNCHANGED = 0.2
"""What a picture whose tone is the original's counts in learning to undo: such are to be left alone, not to be undone
with care."""
EASY = 2e-4
"""Mean squared error of what is good enough: 37 dB. Less hardly counts."""
IMAGES = 64
"""To validate on."""


class Toned(NamedTuple):
    """A batch of thumbnails."""

    damaged: Tensor  # [N, 4, SIDE, SIDE], RGB and the share of missing pixels, as far as it is told
    truth: Tensor  # [N, 3, SIDE, SIDE]
    present: Tensor  # [N, 1, SIDE, SIDE], the share of pixels that are not lost
    changed: Tensor  # [N], 1 where the tone is not the original's
    fading: Tensor  # [N], how much it was changed
    grey: Tensor  # [N], bool


def draw(photos: Sequence[Photo], seed: str, size: int, device: torch.device, team: Team = ALONE) -> Toned:
    """This worker's share of a batch of `size` pictures: the same seed and place give the same picture."""
    return _batch([_picture(photos, random.Random(f"{seed}/{index}"), device) for index in team.share(size)])


def _batch(drawn: Sequence[tuple[Tensor, Tensor, Tensor, Tensor, bool, Damage]]) -> Toned:
    truths, damaged, masks, told, changed, records = zip(*drawn, strict=True)
    images = torch.cat(damaged)
    nothing = torch.zeros_like(images[:, :1])
    return Toned(
        damaged=thumbnails(images, torch.cat(told), SIDE),
        truth=thumbnails(torch.cat(truths), nothing, SIDE)[:, :3],
        present=1 - F.avg_pool2d(torch.cat(masks), DRAWN // SIDE),
        changed=images.new_tensor([float(one) for one in changed]),
        fading=images.new_tensor([record.fading for record in records]),
        grey=torch.tensor([record.grey for record in records], device=images.device),
    )


def _picture(
    photos: Sequence[Photo], dice: random.Random, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor, bool, Damage]:
    """Truth, damaged picture, mask, as much of it as is told, whether its tone was changed, and the record."""
    pixels = dice.choice(photos).pixels
    tall, wide = (round(length * dice.uniform(LEAST, 1.0)) for length in pixels.shape[1:])
    top, left = dice.randint(0, pixels.shape[1] - tall), dice.randint(0, pixels.shape[2] - wide)
    view = _small(pixels[:, top : top + tall, left : left + wide].to(device))
    truth = varied(view, PLAIN, GREY, dice)
    (tones,) = dice.choices([kinds for kinds, _ in KINDS], [share for _, share in KINDS])
    kinds = set(dice.sample(TONES, tones) if isinstance(tones, int) else tones)
    changed = bool(kinds)
    if dice.random() < ELSE:
        kinds.add(dice.choice([dice.choice(MARKS), "noise", "jpeg", "blur", "halftone"]))
    generator = torch.Generator(device).manual_seed(dice.getrandbits(62))
    image, mask, record = damage_one(truth, [kind for kind in ACTIONS if kind in kinds], dice, generator)
    told = mask if dice.random() < 0.5 else torch.zeros_like(mask)
    if record.grey:  # a screen of black dots holds no colours, and it is not asked for them
        truth = luma(truth).expand_as(truth)
    return truth, image, mask, told, changed, record


def tone_losses(head: ToneHead, batch: Toned) -> dict[str, Tensor]:
    """Each term, unweighted.

    tone: the logarithm of each picture's mean squared error, what is lost left out, for PSNR is one too. tone_error:
    L1 of that logarithm, and of the one without. tone_changed and tone_fading: what was done.
    """
    judged = head(batch.damaged)
    error, left = squared_error(batch, judged), _mean_error(batch, batch.damaged[:, :3])
    weight = torch.where(batch.changed > 0, 1.0, UNCHANGED)
    wrong = (judged.log_error - (error.detach() + SMALLEST).log()).abs()
    return {
        "tone": (weight * (error + EASY).log()).mean(),
        "tone_error": (wrong + (judged.log_left - (left + SMALLEST).log()).abs()).mean(),
        "tone_changed": F.binary_cross_entropy_with_logits(judged.changed, batch.changed),
        "tone_fading": F.smooth_l1_loss(judged.fading / SCALES[FADING], batch.fading / SCALES[FADING], beta=0.2),
    }


def squared_error(batch: Toned, judged: Judged) -> Tensor:
    """The mean squared error of each picture with its tone undone: [N]."""
    gain = F.interpolate(judged.tone.gain, size=batch.truth.shape[-2:], mode="bilinear", align_corners=False)
    result = undone(batch.damaged[:, :3], gain, judged.tone.affine, batch.grey)
    return _mean_error(batch, result)


def _mean_error(batch: Toned, result: Tensor) -> Tensor:
    squared = (result - batch.truth).square().mean(1, keepdim=True) * batch.present
    return squared.sum((1, 2, 3)) / batch.present.sum((1, 2, 3)).clamp_min(1)


class ToneValidation:
    """The same thumbnails, damaged the same way, at every interval."""

    def __init__(self, photos: Sequence[Photo], device: torch.device) -> None:
        truth = torch.stack([_small(photo.pixels) for photo in photos[:IMAGES]]).to(device) / 255
        self._cases: dict[str, Toned] = {}
        nothing = torch.zeros_like(truth[:, :1])
        for kind in (*TONES, "clean"):
            for level in ("medium", "strong") if kind != "clean" else ("clean",):
                strengths = Strengths().at(LEVELS.get(level, 0.0))
                drawn = []
                for index, image in enumerate(truth):
                    dice = random.Random(f"{kind}/{index}")
                    one, mask, record = damage_one(image[None], [kind], dice, torch.Generator(device), strengths)
                    drawn.append((image[None], one, mask, nothing[:1], kind != "clean", record))
                self._cases[f"tone_{kind}" if kind == level else f"tone_{kind}_{level}"] = _batch(drawn)

    @torch.no_grad()
    def __call__(self, head: ToneHead) -> dict[str, float]:
        """Mean PSNR in dB of each case, once its tone is undone: always, whether it was changed or not."""
        return {
            name: float(-10 * squared_error(batch, head(batch.damaged)).log10().mean())
            for name, batch in self._cases.items()
        }


def _small(pixels: Tensor) -> Tensor:
    """[3, H, W] of uint8 -> [3, DRAWN, DRAWN], whole numbers as floats."""
    return resized(pixels[None].float(), DRAWN)[0].round()
