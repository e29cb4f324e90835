"""The scorer: all scores that a recipe asks for, of batches of images of any sizes, on one device."""

from __future__ import annotations

import functools
import itertools
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.damage.record import Damage
from pipeline.quality.blind import blind
from pipeline.quality.colour import ciede2000
from pipeline.quality.cores import Cores
from pipeline.quality.fidelity import changed, colour_shift, redamaged_error
from pipeline.quality.haarpsi import haarpsi
from pipeline.quality.mdsi import mdsi
from pipeline.quality.naturalness import Brisque
from pipeline.quality.perceptual import Dists, Lpips, fits
from pipeline.quality.scores import decibels, squared_error
from pipeline.quality.strips import floats
from pipeline.quality.structure import structure
from pipeline.recipe import Scoring

log = logging.getLogger(__name__)

_TOGETHER = 250_000
"""Pixels of images of one size that are scored together."""

Pixels = npt.NDArray[np.uint8]
Scores = dict[str, float]
"""By name; what cannot be told of an image is absent."""


class Scorer:
    """Holds what scores need on a device."""

    def __init__(self, device: torch.device, wanted: Scoring | None = None, cores: Cores | None = None) -> None:
        """Load what the recipe asks for, beside the scores that need nothing; `cores` are shared with others.

        Raises:
            ModelError: weights are missing or wrong.
            RecipeError: a package is missing.
        """
        wanted = wanted or Scoring()
        self._device = device
        self._cores = cores or Cores()
        self._brisque = Brisque() if wanted.brisque else None
        self._clip: Callable[[Pixels, str], float] | None = None
        if wanted.clip:
            from pipeline.quality.clip import ClipScore  # takes a while

            self._clip = ClipScore(wanted.clip, device)
        self._learned: dict[str, Callable[[Tensor, Tensor], Tensor]] = {}
        if wanted.lpips:
            self._learned["lpips"] = Lpips(wanted.lpips, device)
        if wanted.dists:
            self._learned["dists"] = Dists(wanted.dists, device)

    def blind(self, images: Sequence[Pixels], captions: Sequence[str | None]) -> list[Scores]:
        """What can be said of each image [H, W, 3] alone: the scores of `quality.blind`, BRISQUE and CLIPScore."""
        scores: list[Scores] = [{} for _ in images]
        alike = [([scores[row] for row in rows], batch) for rows, (batch,) in self._alike(images)]
        self._run(functools.partial(_hand_out, [into], blind, batch) for into, batch in alike)
        for image, caption, found in zip(images, captions, scores, strict=True):
            if self._brisque is not None:
                _try("brisque", found, functools.partial(self._brisque, image))
            if self._clip is not None and caption:
                _try("clip_score", found, functools.partial(self._clip, image, caption))
        return scores

    def fidelity(
        self,
        before: Sequence[Pixels],
        after: Sequence[Pixels],
        damages: Sequence[Damage | None],
        lost: Sequence[npt.NDArray[np.bool_]],
    ) -> list[Scores]:
        """How far results are from their inputs [H, W, 3], given what was found wrong and what was lost [H, W].

        `change_psnr`: dB, the result against the input. `changed_share`, `colour_shift`: see `quality.fidelity`.
        `redamaged_psnr`: dB, the input against the result with what was found wrong put back; where `damages` has None
        it is not told.
        """
        scores: list[Scores] = [{} for _ in before]
        tasks: list[Callable[[], None]] = []
        for rows, (one, other) in self._alike(before, after):
            tasks.append(functools.partial(_hand_out, [[scores[row] for row in rows]], _distance, one, other))
            for place, row in enumerate(rows):
                damage = damages[row]
                if damage is not None:
                    mask = torch.from_numpy(lost[row]).to(self._device)
                    tasks.append(functools.partial(_explain, scores[row], one[place], other[place], damage, mask))
        self._run(tasks)
        return scores

    def against_truth(self, images: Sequence[Sequence[Pixels]], truths: Sequence[Pixels]) -> list[list[Scores]]:
        """How near images [H, W, 3] are to their truths, by the scores of `TRUTH_SCORES`.

        Of each truth there may be several, such as input and output; what is needed of the truth is made once.
        """
        scores: list[list[Scores]] = [[{} for _ in versions] for versions in images]
        tasks: list[Callable[[], None]] = []
        learned: list[tuple[Scores, Tensor, Tensor]] = []
        for many in sorted({len(versions) for versions in images}):
            alike = [row for row, versions in enumerate(images) if len(versions) == many]
            versions_of = ([images[row][number] for row in alike] for number in range(many))
            lists = [[truths[row] for row in alike], *versions_of]
            for places, (truth, *versions) in self._alike(*lists):
                into = [[scores[alike[place]][number] for place in places] for number in range(many)]
                batch = torch.stack(versions) if versions else truth[None][:0]
                tasks += [functools.partial(_hand_out, into, part, batch, truth) for part in _PARTS if versions]
                if self._learned and fits(*truth.shape[1:3]):
                    for places_of, version in zip(into, versions, strict=True):
                        pairs = zip(places_of, version, truth, strict=True)
                        learned += [(one, floats(x[None]), floats(y[None])) for one, x, y in pairs]
        self._run(tasks)
        for found, x, y in learned:
            for name, distance in self._learned.items():
                _try(name, found, functools.partial(distance, x, y))
        return scores

    def _run(self, tasks: Iterable[Callable[[], None]]) -> None:
        """On CPUs each task on a core of its own: they are made of too many small steps to share one among cores."""
        # Convolutions are rounded to ten bits on GPUs else.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            if self._device.type == "cpu":
                self._cores.run(tasks)
            else:
                for task in tasks:
                    task()

    def _alike(self, *lists: Sequence[Pixels]) -> Iterator[tuple[list[int], list[Tensor]]]:
        """Images of one size together, on the device: their places, and [N, H, W, 3] of each list."""
        by_size: dict[tuple[int, ...], list[int]] = {}
        for row, image in enumerate(lists[0]):
            by_size.setdefault(image.shape, []).append(row)
        for (height, width, *_), rows in by_size.items():
            many = max(1, _TOGETHER // (height * width))
            for start in range(0, len(rows), many):
                chosen = rows[start : start + many]
                yield (
                    chosen,
                    [torch.from_numpy(np.stack([images[row] for row in chosen])).to(self._device) for images in lists],
                )


def _distance(one: Tensor, other: Tensor) -> dict[str, Tensor]:
    return {
        "change_psnr": _decibels(squared_error(one, other)),
        "changed_share": changed(one, other),
        "colour_shift": colour_shift(one, other),
    }


def _explain(scores: Scores, before: Tensor, after: Tensor, damage: Damage, lost: Tensor) -> None:
    error = redamaged_error(before, after, damage, lost)
    if error is not None:
        scores["redamaged_psnr"] = decibels(error)


def _structure(images: Tensor, truths: Tensor) -> dict[str, Tensor]:
    ssim, ms_ssim = structure(images, truths)
    found = {"ssim": ssim, "ms_ssim": ms_ssim}
    return {name: value for name, value in found.items() if value is not None}


def _perceived(images: Tensor, truths: Tensor) -> dict[str, Tensor]:
    return {"haarpsi": haarpsi(images, truths), "mdsi": mdsi(images, truths)}


def _colours(images: Tensor, truths: Tensor) -> dict[str, Tensor]:
    psnr = torch.stack([_decibels(squared_error(one, truths)) for one in images])
    return {"psnr": psnr, "ciede2000": ciede2000(images, truths)}


_PARTS = (_structure, _perceived, _colours)
"""Each takes images [K, N, H, W, 3] and truths [N, H, W, 3], and gives [K, N] for each score."""


def _decibels(errors: Tensor) -> Tensor:
    return errors.new_tensor([decibels(error) for error in errors.tolist()])


def _hand_out(into: Sequence[Sequence[Scores]], score: Callable[..., dict[str, Tensor]], *batch: Tensor) -> None:
    """Score a batch, and give each of its images, [K][N], what is its own of [K, N] (or [N], where K is 1)."""
    for name, values in score(*batch).items():
        for found, value in zip(itertools.chain(*into), values.flatten().tolist(), strict=True):
            if math.isfinite(value):
                found[name] = value


def _try(name: str, scores: Scores, score: Callable[[], Tensor | float | None]) -> None:
    """Add a score that others' code makes; what that cannot do must not cost the row."""
    try:
        value = score()
    except Exception as error:  # whatever a library raises
        log.warning("%s could not be told of an image: %s: %s", name, type(error).__name__, error)
        return
    if value is not None and math.isfinite(float(value)):
        scores[name] = float(value)
