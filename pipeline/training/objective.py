"""What training minimises."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.restoration.decoder import Decoded
from pipeline.restoration.model import DAMAGE_SCALES, CompactModel, GlobalView
from pipeline.restoration.text import TextFeatures
from pipeline.restoration.views import CELL, cell_positions, coarse_regions, probes, thumbnails
from pipeline.training.data import Batch
from pipeline.training.team import ALONE, Team

WEIGHTS = {
    "pixels": 0.1,
    "coarse": 0.3,
    "colour": 1.0,
    "error": 0.01,
    "damage": 0.1,
    "clean": 0.03,
    "lost": 0.02,
    "agreement": 0.01,
}


EASY_ERROR = 0.05
"""Mean absolute error of a usual damaged image. Much less than this must not weigh much more: with 0.002 the
undamaged images, whose errors have random signs, drowned what noise and JPEG had to teach."""


class Prediction(NamedTuple):
    """The network's answer to a batch, on one patch an image."""

    view: GlobalView
    decoded: Decoded
    truth: Tensor  # [N, 3, P, P]
    lost: Tensor  # [N, 1, P, P], 1 where the picture was covered
    told: Tensor  # [N, 1, P, P], 1 where the model was told so


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
    model: CompactModel, batch: Batch, text: TextFeatures, patch: int, dice: Sequence[random.Random]
) -> Prediction:
    """Look at whole images, decode one patch of each, placed by its own die."""
    images, masks = batch.damaged.images, batch.masks
    side = images.shape[-1]
    view = look(model, batch, text)
    last = (side - patch) // CELL
    corners = [(CELL * die.randint(0, last), CELL * die.randint(0, last)) for die in dice]
    boxes = torch.tensor([[top, left, top + patch, left + patch] for top, left in corners], device=images.device) / side

    def cut(planes: Tensor) -> Tensor:
        pairs = zip(planes, corners, strict=True)
        return torch.stack([plane[:, top : top + patch, left : left + patch] for plane, (top, left) in pairs])

    coarse = coarse_regions(view.coarse, boxes, patch)
    grey = (images == images[:, :1]).flatten(1).all(1)
    positions = cell_positions(boxes, patch // CELL)
    told = cut(masks)
    decoded = model.decode(cut(images), told, coarse, view.context, positions, grey)
    return Prediction(view, decoded, cut(batch.truth), cut(batch.damaged.masks), told)


def losses(model: CompactModel, batch: Batch, answer: Prediction, team: Team = ALONE) -> dict[str, Tensor]:
    """Each term, unweighted.

    pixels: the logarithm of each image's L1, for PSNR is one too: a slightly damaged image counts somewhat more
    than a noisy one. coarse: L1 of the thumbnail. error: Gaussian negative log-likelihood of the squared error
    (arXiv:1703.04977), with the error detached, so that it never trades quality for confidence. damage and
    clean: what was done. lost: cross-entropy of the covered pixels, where nobody told of them. agreement: SigLIP
    (arXiv:2303.15343) over the captioned pairs of the batch.
    """
    view, restored = answer.view, answer.decoded.pixels
    squared = (restored.detach() - answer.truth).square().mean(1, keepdim=True)
    log_error = answer.decoded.log_error.clamp(-14, 2)
    wanted = torch.tensor([record.vector() for record in batch.damaged.records], device=squared.device)
    clean = torch.tensor([record.clean for record in batch.damaged.records], device=squared.device)
    scales = wanted.new_tensor(DAMAGE_SCALES)
    small = F.interpolate(batch.truth, size=view.coarse.shape[-2:], mode="area")
    return {
        "pixels": ((restored - answer.truth).abs().mean((1, 2, 3)) + EASY_ERROR).log().mean(),
        "coarse": F.l1_loss(view.coarse, small),
        "error": (squared * torch.exp(-log_error) + log_error).mean(),
        "damage": F.smooth_l1_loss(view.damage / scales, wanted / scales, beta=0.2),
        "clean": F.binary_cross_entropy_with_logits(view.clean, clean.float()),
        "lost": F.binary_cross_entropy_with_logits(answer.decoded.lost, answer.lost, weight=1 - answer.told),
        "agreement": _agreement(model, view, batch.captions, team),
    }


def colour_loss(view: GlobalView, batch: Batch) -> Tensor:
    """How far the coarse picture is from the truth: nearly quadratic, since the mean colour is wanted."""
    small = F.interpolate(batch.truth, size=view.coarse.shape[-2:], mode="area")
    return F.smooth_l1_loss(view.coarse, small, beta=0.2)


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
