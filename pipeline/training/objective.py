"""What training minimises."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.damage.record import SCALES
from pipeline.damage.tone import luma
from pipeline.restoration.decoder import LEAST_LOG_ERROR, MOST_LOG_ERROR, Decoded
from pipeline.restoration.judge import SMALLEST, summary
from pipeline.restoration.model import CompactModel, GlobalView, are_grey
from pipeline.restoration.text import TextFeatures
from pipeline.restoration.views import CELL, probes, thumbnails
from pipeline.training.data import Batch
from pipeline.training.team import ALONE, Team

WEIGHTS = {
    "pixels": 0.1,
    "coarse": 0.3,
    "colour": 1.0,
    "found": 0.1,
    "undamaged": 0.03,
    "error": 0.02,
    "judge": 0.01,
    "damage": 0.1,
    "clean": 0.03,
    "lost": 0.05,
    "agreement": 0.01,
    "tone": 0.1,
    "tone_error": 0.01,
    "tone_changed": 0.03,
    "tone_fading": 0.01,
    "marks": 0.1,
    "marks_overlap": 0.03,
    "stains": 0.1,
    "stains_found": 0.1,
    "expert": 0.1,
    "expert_error": 0.02,
    "painter": 0.1,
}


EASY_ERROR = 0.015
"""Mean absolute error of a slightly damaged image. Much less than this must not weigh much more: with 0.002 the
undamaged images, whose errors have random signs, drowned what noise and JPEG had to teach. Nor must it be much
more: with 0.05 colours, tones and holes, whose errors are large, drowned it."""


HOLES = 4.0
"""What a missing pixel of the coarse picture counts beyond another."""
LARGE = 0.1
"""Errors above this count by their square: what cannot be known is best filled with its mean."""
RARE = 3.0
"""What a covered pixel counts in finding them: some two in a hundred are."""


class Prediction(NamedTuple):
    """The network's answer to a batch, on one patch an image."""

    view: GlobalView
    decoded: Decoded
    damaged: Tensor  # [N, 3, P, P]
    truth: Tensor  # [N, 3, P, P]
    lost: Tensor  # [N, 1, P, P], 1 where the picture was covered
    told: Tensor  # [N, 1, P, P], 1 where the model was told so
    grey: Tensor  # [N], bool: the damaged image has no colours


def look(model: CompactModel, batch: Batch, text: TextFeatures) -> GlobalView:
    """The global view of a batch."""
    config, images, masks = model.config, batch.damaged.images, batch.masks
    return model.look(
        thumbnails(images, masks, config.thumbnail),
        probes(images, masks, config.probe, config.probes),
        text.tokens,
        text.absent,
        batch.references,
        batch.references_absent,
    )


def predict(
    model: CompactModel,
    batch: Batch,
    text: TextFeatures,
    patch: int,
    dice: Sequence[random.Random],
    looking: bool = True,
) -> Prediction:
    """Look at whole images, decode one patch of each, placed by its own die; `looking`: learn from the look, too."""
    images, masks = batch.damaged.images, batch.masks
    side = images.shape[-1]
    with torch.set_grad_enabled(looking and torch.is_grad_enabled()):
        view = look(model, batch, text)
    last = (side - patch) // CELL
    corners = [(CELL * die.randint(0, last), CELL * die.randint(0, last)) for die in dice]
    boxes = torch.tensor([[top, left, top + patch, left + patch] for top, left in corners], device=images.device) / side

    def cut(planes: Tensor) -> Tensor:
        pairs = zip(planes, corners, strict=True)
        return torch.stack([plane[:, top : top + patch, left : left + patch] for plane, (top, left) in pairs])

    grey = are_grey(images)
    damaged, told = cut(images), cut(masks)
    decoded = model.decode(damaged, told, view.guide, boxes, grey)
    return Prediction(view, decoded, damaged, cut(batch.truth), cut(batch.damaged.masks), told, grey)


def decoder_losses(model: CompactModel, answer: Prediction) -> dict[str, Tensor]:
    """Each term of the decoder's and the judge's, unweighted.

    pixels: the logarithm of each image's mean error (`berhu`), for PSNR is one too: a slightly damaged image counts
    somewhat more than a noisy one. judge: L1 of the logarithm of a patch's mean squared error, from what the model
    knows of it. error: Gaussian negative log-likelihood of the squared error (arXiv:1703.04977), with the error
    detached, so that it never trades quality for confidence. lost: cross-entropy of the covered pixels, where nobody
    told of them; they are few, and count more.
    """
    result, squared = _judgeable(answer)
    log_error = answer.decoded.log_error.clamp(LEAST_LOG_ERROR, MOST_LOG_ERROR)
    pixels = summary(log_error.detach(), result - answer.damaged, answer.decoded.lost.detach())
    judged = model.log_error(pixels, answer.view.guide.vector.detach(), answer.view.found.detach())
    return {
        "pixels": (berhu(answer.decoded.pixels - answer.truth).mean((1, 2, 3)) + EASY_ERROR).log().mean(),
        "judge": (judged - (squared.mean((1, 2, 3)) + SMALLEST).log()).abs().mean(),
        "error": likelihood(squared, answer.decoded.log_error),
        "lost": F.binary_cross_entropy_with_logits(
            answer.decoded.lost, answer.lost, weight=1 - answer.told, pos_weight=answer.lost.new_tensor(RARE)
        ),
    }


def likelihood(squared: Tensor, log_error: Tensor) -> Tensor:
    """Gaussian negative log-likelihood (arXiv:1703.04977) of squared errors, given the logarithms that are expected.

    Both [N, 1, H, W]; where the errors have no gradients, quality is never traded for confidence.
    """
    believed = log_error.clamp(LEAST_LOG_ERROR, MOST_LOG_ERROR)
    return (squared * torch.exp(-believed) + believed).mean()


def _judgeable(answer: Prediction) -> tuple[Tensor, Tensor]:
    """Results [N, 3, P, P] as they are judged, and their squared errors [N, 1, P, P]; both without gradients.

    Of grey pictures the greys are judged, for their colours are invented anyway.
    """
    grey = answer.grey[:, None, None, None]

    def seen(images: Tensor) -> Tensor:
        return torch.where(grey, luma(images).expand_as(images), images)

    result = seen(answer.decoded.pixels.detach().clamp(0, 1))
    return result, (result - seen(answer.truth)).square().mean(1, keepdim=True)


def view_losses(model: CompactModel, batch: Batch, view: GlobalView, team: Team = ALONE) -> dict[str, Tensor]:
    """Each term of the global view's, unweighted.

    coarse: L1 of the thumbnail. damage and clean: what was done.
    agreement: SigLIP (arXiv:2303.15343) over the captioned pairs of the batch.
    """
    small = F.interpolate(batch.truth, size=view.guide.coarse.shape[-2:], mode="area")
    return {
        "coarse": F.l1_loss(view.guide.coarse, small),
        "damage": _damage_loss(view, batch),
        "clean": _clean_loss(view, batch),
        "agreement": _agreement(model, view, batch.captions, team),
    }


def further_losses(view: GlobalView, batch: Batch) -> dict[str, Tensor]:
    """Each term of the further looks, unweighted.

    colour: how far the coarse picture is from the truth, nearly quadratic, since the mean colour is wanted; holes count
    more. found and undamaged: as `view_losses` has damage and clean.
    """
    size = view.guide.coarse.shape[-2:]
    small = F.interpolate(batch.truth, size=size, mode="area")
    weight = 1 + HOLES * F.interpolate(batch.damaged.masks, size=size, mode="area")
    wrong = weight * F.smooth_l1_loss(view.guide.coarse, small, beta=0.2, reduction="none")
    return {
        "colour": wrong.mean(),
        "found": _damage_loss(view, batch),
        "undamaged": _clean_loss(view, batch),
    }


def _damage_loss(view: GlobalView, batch: Batch) -> Tensor:
    wanted = torch.tensor([record.vector() for record in batch.damaged.records], device=view.damage.device)
    scales = wanted.new_tensor(SCALES)
    return F.smooth_l1_loss(view.damage / scales, wanted / scales, beta=0.2)


def _clean_loss(view: GlobalView, batch: Batch) -> Tensor:
    clean = torch.tensor([float(record.clean) for record in batch.damaged.records], device=view.clean.device)
    return F.binary_cross_entropy_with_logits(view.clean, clean)


def berhu(difference: Tensor) -> Tensor:
    """Absolute up to LARGE, quadratic above it (reverse Huber, arXiv:1606.00373)."""
    size = difference.abs()
    return torch.where(size <= LARGE, size, (size.square() + LARGE**2) / (2 * LARGE))


def _agreement(model: CompactModel, view: GlobalView, captions: list[str], team: Team) -> Tensor:
    has = torch.tensor([bool(caption) for caption in captions], device=view.image_feature.device)
    rows = team.gather(has.float()) > 0
    images, texts = team.gather(view.image_feature)[rows], team.gather(view.text_feature)[rows]
    if len(images) < 2:
        return images.sum() * 0
    scale, bias = model.agreement_scale
    logits = scale.exp() * images @ texts.T + bias
    sign = 2 * torch.eye(len(images), device=logits.device) - 1
    return -F.logsigmoid(sign * logits).sum() / len(images)


def total(terms: dict[str, Tensor]) -> Tensor:
    """The weighted sum."""
    return torch.stack([WEIGHTS[name] * term for name, term in terms.items()]).sum()
