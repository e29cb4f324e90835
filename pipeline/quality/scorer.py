"""The scorer: all scores that a recipe asks for, of batches of images of any sizes, on one device."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.damage.record import Damage
from pipeline.quality.blind import blind
from pipeline.quality.colour import ciede2000
from pipeline.quality.fidelity import changed, colour_shift, redamaged_error
from pipeline.quality.haarpsi import haarpsi
from pipeline.quality.mdsi import mdsi
from pipeline.quality.naturalness import Brisque
from pipeline.quality.perceptual import Dists, Lpips, fits
from pipeline.quality.scores import decibels, squared_error
from pipeline.quality.strips import PIXELS, floats
from pipeline.quality.structure import structure

log = logging.getLogger(__name__)

Pixels = npt.NDArray[np.uint8]
Scores = dict[str, float]
"""By name; what cannot be told of an image is absent."""


@dataclasses.dataclass(frozen=True)
class Extras:
    """Scores that need weights or packages of their own."""

    brisque: bool = False
    clip: str | None = None
    """A folder with a CLIP model."""
    lpips: str | None = None
    """A path or URI of weights."""
    dists: str | None = None
    """A path or URI of weights."""


def _exactly(method: Callable[..., list[Scores]]) -> Callable[..., list[Scores]]:
    """On GPUs convolutions are rounded to ten bits else."""

    @functools.wraps(method)
    def run(*arguments: Any) -> list[Scores]:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return method(*arguments)

    return run


class Scorer:
    """Holds what scores need on a device."""

    def __init__(self, device: torch.device, extras: Extras | None = None) -> None:
        """Load what `extras` ask for.

        Raises:
            ModelError: weights are missing or wrong.
            RecipeError: a package is missing.
        """
        extras = extras or Extras()
        self._device = device
        self._brisque = Brisque() if extras.brisque else None
        self._clip: Callable[[Pixels, str], float] | None = None
        if extras.clip:
            from pipeline.quality.clip import ClipScore  # takes a while

            self._clip = ClipScore(extras.clip, device)
        self._learned: dict[str, Callable[[Tensor, Tensor], Tensor]] = {}
        if extras.lpips:
            self._learned["lpips"] = Lpips(extras.lpips, device)
        if extras.dists:
            self._learned["dists"] = Dists(extras.dists, device)

    @_exactly
    def blind(self, images: Sequence[Pixels], captions: Sequence[str | None]) -> list[Scores]:
        """What can be said of each image [H, W, 3] alone: the scores of `quality.blind`, BRISQUE and CLIPScore."""
        scores: list[Scores] = [{} for _ in images]
        for rows, (batch,) in self._alike(images):
            _hand_out(scores, rows, blind(batch))
        for image, caption, found in zip(images, captions, scores, strict=True):
            if self._brisque is not None:
                _try("brisque", found, functools.partial(self._brisque, image))
            if self._clip is not None and caption:
                _try("clip_score", found, functools.partial(self._clip, image, caption))
        return scores

    @_exactly
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
        for rows, (one, other) in self._alike(before, after):
            found = {
                "change_psnr": _decibels(squared_error(one, other)),
                "changed_share": changed(one, other),
                "colour_shift": colour_shift(one, other),
            }
            _hand_out(scores, rows, found)
            for place, row in enumerate(rows):
                damage = damages[row]
                if damage is not None:
                    mask = torch.from_numpy(lost[row]).to(self._device)
                    error = redamaged_error(one[place], other[place], damage, mask)
                    scores[row] |= {} if error is None else {"redamaged_psnr": decibels(error)}
        return scores

    @_exactly
    def against_truth(self, images: Sequence[Pixels], truths: Sequence[Pixels]) -> list[Scores]:
        """How near images [H, W, 3] are to their truths, by the scores of `TRUTH_SCORES`."""
        scores: list[Scores] = [{} for _ in images]
        for rows, (one, other) in self._alike(images, truths):
            ssim, ms_ssim = structure(one, other)
            found = {
                "psnr": _decibels(squared_error(one, other)),
                "haarpsi": haarpsi(one, other),
                "mdsi": mdsi(one, other),
                "ciede2000": ciede2000(one, other),
            }
            found |= {} if ssim is None else {"ssim": ssim}
            found |= {} if ms_ssim is None else {"ms_ssim": ms_ssim}
            _hand_out(scores, rows, found)
            for row, x, y in zip(rows, one, other, strict=True) if fits(*one.shape[1:3]) else ():
                for name, distance in self._learned.items():
                    _try(name, scores[row], functools.partial(distance, floats(x[None]), floats(y[None])))
        return scores

    def _alike(self, *lists: Sequence[Pixels]) -> Iterator[tuple[list[int], list[Tensor]]]:
        """Images of one size together, on the device: their places, and [N, H, W, 3] of each list."""
        by_size: dict[tuple[int, ...], list[int]] = {}
        for row, image in enumerate(lists[0]):
            by_size.setdefault(image.shape, []).append(row)
        for (height, width, *_), rows in by_size.items():
            many = max(1, PIXELS // (height * width))
            for start in range(0, len(rows), many):
                chosen = rows[start : start + many]
                yield (
                    chosen,
                    [torch.from_numpy(np.stack([images[row] for row in chosen])).to(self._device) for images in lists],
                )


def _decibels(errors: Tensor) -> Tensor:
    return errors.new_tensor([decibels(error) for error in errors.tolist()])


def _hand_out(scores: list[Scores], rows: Sequence[int], found: dict[str, Tensor]) -> None:
    for name, values in found.items():
        for row, value in zip(rows, values.tolist(), strict=True):
            if math.isfinite(value):
                scores[row][name] = value


def _try(name: str, scores: Scores, score: Callable[[], Tensor | float | None]) -> None:
    """Add a score that others' code makes; what that cannot do must not cost the row."""
    try:
        value = score()
    except Exception as error:  # whatever a library raises
        log.warning("%s could not be told of an image: %s: %s", name, type(error).__name__, error)
        return
    if value is not None and math.isfinite(float(value)):
        scores[name] = float(value)
