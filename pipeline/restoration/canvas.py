"""The result: where an image's tiles come together, and what is handed over."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from pipeline.damage.record import Damage
from pipeline.damage.tone import luma
from pipeline.restoration.colour import STRIP, colour_onto
from pipeline.restoration.decoder import LEAST_LOG_ERROR
from pipeline.restoration.request import Request
from pipeline.restoration.tiles import Tile, as_floats, sent


@dataclasses.dataclass(frozen=True)
class Restored:
    """What came of one image."""

    array: npt.NDArray[np.float32]
    """[H, W, 3], 0..1; outside a mask whatever the input was."""
    damage: Damage
    """What was found to be wrong with it."""
    clean: float
    """Estimated probability that nothing was, 0..1."""
    uncertainty: npt.NDArray[np.float16]
    """[H, W]: expected root-mean-square error of each pixel of the result, in 0..1."""
    lost: npt.NDArray[np.bool_]
    """[H, W]: where the picture was missing, covered or stained: the mask that was given, or else what was found."""
    expected_psnr: float
    """What the result's PSNR is likely to be, in dB (100 at most); that of its greys, if the image has no colours."""
    mean_error: float
    """Mean of the squared errors that the pixels expect, 0..1: what the result is wrong by on average, where
    `expected_psnr` is what it is in the likely case."""
    agreement: float | None
    """How well caption and picture agree, 0..1; None without a caption. Not comparable with CLIPScore."""
    enlarged: npt.NDArray[np.float32] | None = None
    """[sH, sW, 3], 0..1, of a model that enlarges s times: then `array` is what it shows at the original's size."""
    input_error: float | None = None
    """Mean squared error to expect of the input, of a result that is not the mean of what the original may have been:
    that of such a mean follows from its change."""
    references_ignored: int = 0
    """How many references were left alone, since they seem to show something else."""
    seed: int | None = None
    """Of what was drawn at random; None: nothing was."""
    worse: float | None = None
    """Estimated probability that the result is farther from the truth than the input was, by 0.1 dB or more; None: not
    known, or a mask has asked for it."""
    repaired: bool = True
    """Whether a model of ours saw to the damage that was found; else only `others` did anything."""
    others: tuple[tuple[str, float], ...] = ()
    """What models of others did, each with a measure of it."""
    helper: str | None = None
    """The model that the recipe does not name and that gave colours or filled what the others cannot."""

    @property
    def notes(self) -> list[str]:
        """What is worth a word in its row."""
        if not self.references_ignored:
            return []
        return [f"references ignored that seem to show something else: {self.references_ignored}"]

    @functools.cached_property
    def image(self) -> Image.Image:
        """The result as a PIL image, RGB."""
        return Image.fromarray(self.pixels)

    @property
    def pixels(self) -> npt.NDArray[np.uint8]:
        """The result as [H, W, 3] uint8."""
        return self.samples(np.uint8)

    def samples(self, kind: type[np.uint8 | np.uint16], full: bool = False) -> npt.NDArray[Any]:
        """The result as [H, W, 3] of whole numbers, of which the largest is white; `full`: as large as it was made."""
        array = self.enlarged if full and self.enlarged is not None else self.array
        out = np.empty(array.shape, kind)
        for top in range(0, len(out), STRIP):
            out[top : top + STRIP] = np.rint(array[top : top + STRIP].clip(0, 1) * np.iinfo(kind).max)
        return out


LEAST_ERROR = 1e-10
"""Mean squared error of 100 dB: what is less is not told from it."""


class Expected(NamedTuple):
    """What a result is likely to be, by whoever judges it."""

    error: float
    """Its mean squared error."""
    worse: float | None = None
    """As `Restored.worse`."""

    @property
    def psnr(self) -> float:
        """As `Restored.expected_psnr`."""
        return float(-10 * np.log10(max(self.error, LEAST_ERROR)))


class Band(NamedTuple):
    """Restored rows of a large image; what they hold is as `Restored` has it."""

    top: int
    array: npt.NDArray[np.float32]
    uncertainty: npt.NDArray[np.float16]
    lost: npt.NDArray[np.bool_]
    sums: list[float]
    """Over its pixels: what `judge.describe` wants to know, then of what is doubtful (see `error_before`), then of the
    squared difference that was withheld."""


class Part(NamedTuple):
    """What is kept of a tile, as it goes into the result."""

    array: Tensor  # [H, W, 3], float32, 0..1
    uncertainty: Tensor  # [H, W], float16
    lost: Tensor  # [H, W], bool
    sums: Tensor  # [6], float64: what `Band.sums` says


class Canvas:
    """Where an image's tiles come together, under what its request forbids to change."""

    def __init__(self, request: Request, damage: Damage) -> None:
        """For what is asked of an image with this damage."""
        height, width = request.pixels.shape[:2]
        self._request = request
        self._grey = damage.grey
        self._strength = request.strength_for(damage)
        self._array = np.empty((height, width, 3), np.float32)
        self._uncertainty = np.empty((height, width), np.float16)
        self._lost = np.empty((height, width), np.bool_)
        self._sums = torch.zeros(6, dtype=torch.float64)

    def paint(self, tile: Tile, restored: Tensor, log_error: Tensor, lost: Tensor) -> None:
        """Place a tile that lies in the CPU's memory, as `blend` takes it."""
        self.place(tile, self.blend(tile, restored, log_error, lost))

    def place(self, tile: Tile, part: Part) -> None:
        """Put in its place what `blend` has made of a tile; it must have come to the CPU's memory."""
        top, left, bottom, right = tile.keep
        here = (slice(top, bottom), slice(left, right))
        self._array[here], self._uncertainty[here] = part.array.numpy(), part.uncertainty.numpy()
        self._lost[here] = part.lost.numpy()
        self._sums += part.sums

    def blend(self, tile: Tile, restored: Tensor, log_error: Tensor, lost: Tensor) -> Part:
        """What becomes of a tile under the request, on the tile's device.

        Args:
            tile: its place.
            restored: [3, H, W], 0..1.
            log_error: [H, W], the logarithm of the squared error to expect.
            lost: [H, W], bool.
        """
        request, device = self._request, restored.device
        top, left, bottom, right = tile.keep
        inner = (slice(top - tile.top, bottom - tile.top), slice(left - tile.left, right - tile.left))
        here = (slice(top, bottom), slice(left, right))
        after, log_error = restored[:, inner[0], inner[1]], log_error[inner]
        error = log_error.exp()
        before = as_floats(request.pixels[here], device)
        if self._grey and request.colourise and not request.keeps_outside:
            luminance = before[:1] if request.keep_luminance else luma(after)
            after = colour_onto(luminance, after)
        elif self._grey:
            after = luma(after).expand(3, -1, -1)
        after = after.clamp(0, 1)
        lost = lost[inner]
        if request.mask is not None:  # a given mask always wins
            told = sent(torch.from_numpy(request.mask[here].copy()), device)
            lost = told if request.only_mask else lost | told
        if request.keeps_outside:
            after = torch.where(lost, after, before)
            error = torch.where(lost, error, 0.0)
        change = luma(after) - before[:1] if self._grey else after - before
        change = change.square().mean(0)
        doubt = torch.zeros_like(error)
        if request.certainty is not None:  # where nothing was lost, the change is the error
            sure = sent(torch.from_numpy(request.certainty[here].astype(np.float32)), device)
            doubt = torch.where(told, (1 - sure) * change, 0.0)
            error = torch.where(told, sure * error + doubt, error)
        parts, withheld = (error, log_error, change, lost, doubt), torch.zeros_like(error)
        if self._strength < 1 and not request.keeps_outside:
            weaker = torch.lerp(before.clamp(0, 1), after, torch.where(lost, 1.0, self._strength))
            # the full result is the mean of what the original may be: from there errors add up
            withheld = (after - weaker).square().mean(0)
            after, error = weaker, error + withheld
        sums = torch.stack([part.double().sum() for part in (*parts, withheld)])
        return Part(after.permute(1, 2, 0), error.sqrt().half(), lost, sums)

    def leave(self) -> None:
        """The original is the result, for certain."""
        pixels = self._request.pixels
        for top in range(0, len(pixels), STRIP):
            here = slice(top, top + STRIP)
            self._array[here] = as_floats(pixels[here]).clamp(0, 1).permute(1, 2, 0).numpy()
        self._uncertainty[:], self._lost[:] = 0, False
        self._sums[1] = LEAST_LOG_ERROR * self._uncertainty.size

    @property
    def array(self) -> npt.NDArray[np.float32]:
        """The result so far, as `Restored.array`."""
        return self._array

    @property
    def means(self) -> list[float]:
        """What `judge.describe` wants to know, over the whole image, and the last two of `Band.sums`."""
        return (self._sums / self._uncertainty.size).tolist()

    def band(self, top: int, kept: slice) -> Band:
        """The painted rows of a canvas that holds a band of a larger image, which begin there at `top`."""
        return Band(top, self._array[kept], self._uncertainty[kept], self._lost[kept], self._sums.tolist())

    def finish(
        self, damage: Damage, clean: float, agreement: float | None, expected: Expected, references_ignored: int = 0
    ) -> Restored:
        """All tiles are painted; what the global view found goes with them, and what is expected of the result."""
        error, _, change, _, doubt, withheld = self.means
        return Restored(
            array=self._array,
            damage=dataclasses.replace(damage, missing=float(self._lost.mean())),
            clean=clean,
            uncertainty=self._uncertainty,
            lost=self._lost,
            expected_psnr=expected.psnr,
            mean_error=max(error + withheld, LEAST_ERROR),
            agreement=agreement,
            references_ignored=references_ignored,
            input_error=error_before(error, change, doubt),
            worse=expected.worse,
        )


def error_before(error: float, change: float, doubt: float) -> float | None:
    """What `Restored.input_error` is, from means over all pixels; None if nothing is doubtful.

    Args:
        error: expected squared error of the result.
        change: squared difference of result and input.
        doubt: what of that is likely to be wrong: as probably as a pixel was not lost, the input is right there.
    """
    return max(error + change - 2 * doubt, LEAST_ERROR) if doubt else None
