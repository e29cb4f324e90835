"""Pictures that are an expert's own, and what is to be learned of them."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.damage import noise
from pipeline.damage.jpeg import jpeg
from pipeline.damage.mixture import damage
from pipeline.damage.optics import low_resolution
from pipeline.restoration.decoder import TileDecoder
from pipeline.restoration.expert import Router, begin_as
from pipeline.restoration.judge import SMALLEST
from pipeline.restoration.model import CompactModel, are_grey
from pipeline.restoration.precision import autocast
from pipeline.restoration.text import TextEncoder
from pipeline.training.data import EVEN, VIEW, Batch, Mixture, Photo, Sampler, larger, view_of
from pipeline.training.fitting import Fitting, fit_best
from pipeline.training.loop import Plan
from pipeline.training.objective import likelihood, look
from pipeline.training.team import ALONE, Team

KINDS = (("gaussian", 0.36), ("jpeg", 0.3), ("noise", 0.07), ("low_resolution", 0.25), ("clean", 0.02))
"""How often what happens to a picture."""
SECOND = 0.05
"""Share of damaged ones that get noise or JPEG on top."""
SHARP = 0.7
"""Share of pictures drawn among the photos that are larger than a training image: they are at their own resolution."""
PATCHES = ((0.0, 96), (0.6, 128))
"""Pixels of the patches' sides, from which share of the run on: in the same time, small ones teach more at first."""
OWN = Mixture(kinds=KINDS, second=SECOND, plain=0.0, sharp=SHARP)
"""The same of whole pictures."""
LOOKS = 32
"""Pictures from which it is learned what the decoder is told of such ones."""
SLIGHT = 2e-5
"""Mean squared error, 47 dB, below which less hardly counts: undamaged pictures would count most."""
ROUTED = Mixture(
    kinds=(*((kind, share / 2) for kind, share in EVEN.kinds), *((kind, share / 2) for kind, share in KINDS)),
    plain=EVEN.plain,
    mask_withheld=1.0,
    sharp=0.4,
)
"""What the router learns from: of all kinds, and more of those that are the expert's."""
BATCHES = 250
"""Of them."""
ROUTER = Fitting(passes=200, rate=1e-3, decay=0.5)
DROPPED = 0.1
"""Share of what it is told that is withheld at a time."""
MOST = 1.5
"""Logarithm of the errors' ratio, 6.5 dB, beyond which more does not count."""
HARM = 2.0
"""What an error that grows counts to one that shrinks: the decoder is the safe choice."""
HELD_OUT = 8
"""One picture in so many is not learned from: by these it is chosen when to stop."""
IMAGES = 24
"""To validate on."""


class Pairs(NamedTuple):
    """A batch."""

    damaged: Tensor  # [N, 3, P, P]
    truth: Tensor  # [N, 3, P, P]


@torch.no_grad()
def begin(model: CompactModel, sampler: Sampler, text: TextEncoder) -> None:
    """An expert that has learned nothing begins as the decoder does what it is told of pictures that are its `OWN`."""
    assert model.expert is not None
    batch = sampler.batch(0, LOOKS)
    vector = look(model, batch, text(batch.captions)).guide.vector.mean(0)
    begin_as(model.expert, model.decoder, vector)


def patch_at(done: float) -> int:
    """The side of the patches when so much of the run, 0..1, is done."""
    return [side for start, side in PATCHES if start <= done][-1]


def draw(photos: Sequence[Photo], seed: str, size: int, patch: int, device: torch.device, team: Team = ALONE) -> Pairs:
    """This worker's share of a batch of `size` pictures: the same seed and place give the same picture."""
    sharp = larger(photos)
    drawn = [_picture(photos, sharp, patch, random.Random(f"{seed}/{index}"), device) for index in team.share(size)]
    damaged, truths = zip(*drawn, strict=True)
    return Pairs(torch.cat(damaged), torch.cat(truths))


def _picture(
    photos: Sequence[Photo], sharp: Sequence[Photo], patch: int, dice: random.Random, device: torch.device
) -> tuple[Tensor, Tensor]:
    photo = dice.choice(sharp if dice.random() < SHARP else photos)
    view = view_of(photo.pixels, dice, patch)
    if dice.random() < 0.5:  # beside the mirrored ones: all eight ways to lay a picture
        view = view.transpose(1, 2)
    if dice.random() < 0.5:
        view = view.flip(1)
    truth = view[None].to(device).float() / 255
    (kind,) = dice.choices([kind for kind, _ in KINDS], [share for _, share in KINDS])
    further = [dice.choice(["noise", "jpeg"])] if kind != "clean" and dice.random() < SECOND else []
    generator = torch.Generator(device).manual_seed(dice.getrandbits(62))
    return damage(truth, [[kind, *further]], dice, generator).images, truth


def expert_losses(expert: TileDecoder, batch: Pairs) -> dict[str, Tensor]:
    """Each term, unweighted.

    expert: the logarithm of each picture's mean squared error, which PSNR is. expert_error: Gaussian negative
    log-likelihood of the squared error (arXiv:1703.04977), with the error detached.
    """
    with autocast(batch.damaged.device):
        decoded = expert(batch.damaged)
    wrong = batch.damaged + decoded.pixels - batch.truth
    squared = wrong.detach().square().mean(1, keepdim=True)
    return {
        "expert": (wrong.square().mean((1, 2, 3)) + SLIGHT).log().mean(),
        "expert_error": likelihood(squared, decoded.log_error),
    }


class Tried(NamedTuple):
    """Pictures that both decoders have restored."""

    vector: Tensor  # [N, width], of the guide
    found: Tensor  # [N, F], of the global view
    ratio: Tensor  # [N], the logarithm of the expert's mean squared error to the decoder's


def train_router(model: CompactModel, sampler: Sampler, text: TextEncoder, plan: Plan) -> dict[str, float]:
    """Let both decoders restore pictures, and fit the router to which was the better.

    Args:
        model: whose router learns; the rest stays as it is.
        sampler: draws the pictures.
        text: what captions go through.
        plan: batch and seed; if it has fewer steps than `BATCHES`, so many batches do.

    Returns:
        routed: the share of held-out pictures that are the expert's; routed_gain: how much better these are for it, dB.
    """
    assert model.router is not None
    parts = [_tried(model, sampler.batch(step, plan.batch), text) for step in range(min(BATCHES, plan.steps))]
    tried = Tried(*(torch.cat(part).float() for part in zip(*parts, strict=True)))
    held_out = torch.arange(len(tried.ratio), device=tried.ratio.device) % HELD_OUT == 0
    return fit_router(model.router, tried, held_out, plan.seed)


@torch.no_grad()
def _tried(model: CompactModel, batch: Batch, text: TextEncoder) -> Tried:
    """What becomes of a batch, of which no masks and references are told."""
    images = batch.damaged.images
    none = batch._replace(
        masks=torch.zeros_like(batch.masks), references_absent=torch.ones_like(batch.references_absent)
    )
    features = text(batch.captions)
    with autocast(images.device):
        view = look(model, none, features)
        whole = images.new_tensor([[0.0, 0.0, 1.0, 1.0]]).expand(len(images), -1)
        grey = are_grey(images)
        results = [model.refine(images), model.decode(images, none.masks, view.guide, whole, grey)]
    errors = [(result.pixels.float().clamp(0, 1) - batch.truth).square().mean((1, 2, 3)) for result in results]
    by_expert, by_decoder = ((error + SMALLEST).log() for error in errors)
    return Tried(view.guide.vector, view.found, by_expert - by_decoder)


def fit_router(router: Router, tried: Tried, chosen: Tensor, seed: int) -> dict[str, float]:
    """Fit a router so that the errors come out as small as can be; it has what held-out pictures are routed best with.

    It learns anew: of an expert that has learned more since, a router that was sure of some kinds would not see it. By
    cross-entropy weighted by what is won or lost, and not by that itself, whose slope vanishes where it is sure.

    Args:
        router: is fitted.
        tried: to what.
        chosen: [N] bool, which are held out.
        seed: draws the order.

    Returns:
        As `train_router`.
    """
    told = tried.vector, tried.found
    cost = tried.ratio.clamp(-MOST, MOST)
    cost = torch.where(cost > 0, HARM * cost, cost)
    learned = (~chosen).nonzero()[:, 0]

    def loss(rows: Tensor) -> Tensor:
        said = router(*(F.dropout(part[rows], DROPPED) for part in told))
        return F.binary_cross_entropy_with_logits(said, (cost[rows] < 0).float(), cost[rows].abs())

    @torch.no_grad()
    def held_out() -> float:
        return float((cost[chosen] * (router(*(part[chosen] for part in told)) > 0)).mean())

    torch.manual_seed(seed)
    router.load_state_dict(Router(*(part.shape[1] for part in told)).state_dict())
    fit_best(router, loss, held_out, learned, ROUTER, seed)
    with torch.no_grad():
        routed = chosen & (router(*told) > 0)
    gain = -10 / math.log(10) * tried.ratio[routed]
    return {"routed": float(routed.sum() / chosen.sum()), "routed_gain": float(gain.mean()) if len(gain) else 0.0}


class ExpertValidation:
    """The same pictures, damaged the same way, at every interval."""

    def __init__(self, photos: Sequence[Photo], device: torch.device) -> None:
        chosen = random.Random(7).sample(list(photos), min(IMAGES, len(photos)))
        self._truth = torch.stack([photo.pixels[:, :VIEW, :VIEW] for photo in chosen]).to(device).float() / 255
        generator = torch.Generator(device).manual_seed(7)

        def all_of(value: float) -> Tensor:
            return torch.full((len(chosen),), value, device=device)

        self._cases = {
            **{f"noise_{sigma}": noise.gaussian(self._truth, all_of(sigma), generator) for sigma in (15, 25, 50)},
            **{f"jpeg_{quality}": jpeg(self._truth, all_of(quality)) for quality in (10, 30)},
            "low_resolution_4": low_resolution(self._truth, 4.0),
        }

    @torch.no_grad()
    def __call__(self, expert: TileDecoder) -> dict[str, float]:
        """Mean PSNR in dB of each case."""
        found = {}
        for name, images in self._cases.items():
            with autocast(images.device):
                wrong = (images + expert(images).pixels).clamp(0, 1) - self._truth
            found[f"expert_{name}"] = float(-10 * wrong.square().mean((1, 2, 3)).log10().mean())
        return found
