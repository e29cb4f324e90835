"""The scorer: all scores that a recipe asks for, of batches of images of any sizes, on one device."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.damage.record import Damage
from pipeline.quality.blind import blind
from pipeline.quality.clip import ClipScore
from pipeline.quality.colour import ciede2000
from pipeline.quality.fidelity import changed, colour_shift, redamaged_error
from pipeline.quality.haarpsi import haarpsi
from pipeline.quality.mdsi import mdsi
from pipeline.quality.naturalness import Brisque
from pipeline.quality.perceptual import Dists, Lpips, fits
from pipeline.quality.scores import decibels, squared_error
from pipeline.quality.strips import PIXELS, floats
from pipeline.quality.structure import structure

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
        self._clip = ClipScore(extras.clip, device) if extras.clip else None
        self._learned: dict[str, Callable[[Tensor, Tensor], Tensor]] = {}
        if extras.lpips:
            self._learned["lpips"] = Lpips(extras.lpips, device)
        if extras.dists:
            self._learned["dists"] = Dists(extras.dists, device)

    def blind(self, images: Sequence[Pixels], captions: Sequence[str | None]) -> list[Scores]:
        """What can be said of each image [H, W, 3] alone: the scores of `quality.blind`, BRISQUE and CLIPScore."""
        scores: list[Scores] = [{} for _ in images]
        for rows, (batch,) in self._alike(images):
            _hand_out(scores, rows, blind(batch))
        if self._brisque is not None:
            for image, found in zip(images, scores, strict=True):
                value = self._brisque(image)
                found |= {} if value is None else {"brisque": value}
        if self._clip is not None:
            told = [(row, caption) for row, caption in enumerate(captions) if caption]
            if told:
                rows = [row for row, _ in told]
                found_scores = self._clip([images[row] for row in rows], [caption for _, caption in told])
                _hand_out(scores, rows, {"clip_score": found_scores})
        return scores

    def fidelity(
        self,
        before: Sequence[Pixels],
        after: Sequence[Pixels],
        damages: Sequence[Damage],
        lost: Sequence[npt.NDArray[np.bool_]],
    ) -> list[Scores]:
        """How far results are from their inputs [H, W, 3], given what was found wrong and what was lost [H, W].

        `change_psnr`: dB, the result against the input. `changed_share`, `colour_shift`: see `quality.fidelity`.
        `redamaged_psnr`: dB, the input against the result with what was found wrong put back.
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
                mask = torch.from_numpy(lost[row]).to(self._device)
                scores[row]["redamaged_psnr"] = decibels(redamaged_error(one[place], other[place], damages[row], mask))
        return scores

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
            if fits(*one.shape[1:3]):
                for name, distance in self._learned.items():
                    found[name] = torch.cat(
                        [distance(floats(x[None]), floats(y[None])) for x, y in zip(one, other, strict=True)]
                    )
            _hand_out(scores, rows, found)
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
            scores[row][name] = value
