"""Does the gate do no harm? Undamaged images and images damaged in every way, their masks not told."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from pipeline.damage.mixture import KINDS, damage_one
from pipeline.damage.planes import as_pixels, as_planes
from pipeline.evaluation.tables import Sample
from pipeline.quality.appraise import Appraiser, Case
from pipeline.quality.gate import LOST
from pipeline.quality.scores import psnr
from pipeline.recipe import Recipe
from pipeline.restoration.request import Request
from pipeline.restoration.restorer import RestoresBatches
from pipeline.schema import Status

IMPROVABLE = 1.0
"""dB that a result must gain for its image to count as improvable."""
TOGETHER = 8


class Outcome(NamedTuple):
    """One image."""

    id: str
    kind: str
    status: Status
    before: float
    """PSNR of the input, dB."""
    after: float
    """PSNR of the result that was proposed, dB."""

    @property
    def gain(self) -> float:
        """dB."""
        return self.after - self.before


@dataclasses.dataclass(frozen=True)
class Harm:
    """What the gate let through, and what it kept."""

    outcomes: tuple[Outcome, ...]

    @property
    def restored(self) -> list[Outcome]:
        """Taken without a question."""
        return [one for one in self.outcomes if one.status == "restored"]

    @property
    def harmed(self) -> list[Outcome]:
        """Of these, those that lost more than `LOST`."""
        return [one for one in self.restored if one.gain < -LOST]

    @property
    def clean(self) -> list[Outcome]:
        """The undamaged."""
        return [one for one in self.outcomes if one.kind == "clean"]

    @property
    def improvable(self) -> list[Outcome]:
        """Those whose result gained `IMPROVABLE` or more."""
        return [one for one in self.outcomes if one.gain >= IMPROVABLE]

    @property
    def harmed_share(self) -> float:
        """Of the restored."""
        return _share(self.harmed, self.restored)

    @property
    def kept_share(self) -> float:
        """Of the undamaged, those that kept their bytes."""
        return _share([one for one in self.clean if one.status == "kept"], self.clean)

    @property
    def taken_share(self) -> float:
        """Of the improvable, those that were restored."""
        return _share([one for one in self.improvable if one.status == "restored"], self.improvable)


def _share(part: Sequence[Outcome], whole: Sequence[Outcome]) -> float:
    return len(part) / len(whole) if whole else float("nan")


def gate(restorer: RestoresBatches, samples: Sequence[Sample], recipe: Recipe | None = None, seed: int = 0) -> Harm:
    """Every second image undamaged, the others damaged by one kind after the other at random strengths."""
    appraiser = Appraiser(recipe or Recipe(), restorer.device)
    outcomes: list[Outcome] = []
    cases = _cases(samples, seed)
    while batch := list(itertools.islice(cases, TOGETHER)):
        results = restorer.restore_batch([request for *_, request in batch])
        verdicts = appraiser(
            [
                Case(request.pixels, result, request.caption)
                for (*_, request), result in zip(batch, results, strict=True)
            ]
        )
        for (sample, kind, request), result, verdict in zip(batch, results, verdicts, strict=True):
            before, after = psnr(request.pixels, sample.pixels), psnr(result.pixels, sample.pixels)
            outcomes.append(Outcome(sample.id, kind, verdict.status, before, after))
    return Harm(tuple(outcomes))


def _cases(samples: Sequence[Sample], seed: int) -> Iterator[tuple[Sample, str, Request]]:
    kinds = [kind for kind in KINDS if kind not in ("clean", "grey")]
    for index, sample in enumerate(samples):
        dice = random.Random(f"{seed}/gate/{index}")
        kind = kinds[index // 2 % len(kinds)] if index % 2 else "clean"
        generator = torch.Generator().manual_seed(dice.getrandbits(62))
        image, _, _ = damage_one(as_planes(sample.pixels), [kind], dice, generator)
        caption = sample.captions[0] if sample.captions else None
        yield sample, kind, Request(as_pixels(image), caption=caption)
