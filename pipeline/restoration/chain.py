"""Several models in a row, with compact as the second opinion that says how good their result is likely to be."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.damage.tone import luma
from pipeline.restoration.canvas import Canvas, Expected, Restored
from pipeline.restoration.colour import STRIP, colour_onto
from pipeline.restoration.others import PictureModel
from pipeline.restoration.request import Pixels, Request
from pipeline.restoration.restorer import TILE, Restorer, RestoresBatches
from pipeline.restoration.tiles import Tile, as_floats
from pipeline.restoration.tuning import Tuning

SMALLEST_ERROR = 1e-6
"""Squared error below which the expectation of a pixel is not told apart."""


class Chain(RestoresBatches):
    """Stands in for `Restorer`.

    Models of others do not say how far off they are. Compact does of its own result, which is about the mean of what
    the original may have been: then any other picture's expected squared error is compact's, and the squared distance
    between the two on top. So all that the gate asks is known of every model's result, on the cautious side: what
    another model sees and compact does not counts as doubt.

    What others cannot do compact does for them: it gives colours, and fills what a mask or the file itself calls lost
    if no model of the chain fills. The result names it then (`Restored.helper`).
    """

    def __init__(
        self,
        judge: Restorer,
        steps: Sequence[PictureModel],
        repairs: bool,
        undamaged_above: float = 1.0,
        sure_gain: float = float("inf"),
    ) -> None:
        """Put models in a row.

        Args:
            judge: looks at every image, and gives the second opinion.
            steps: one takes what the other gives.
            repairs: whether the first of them takes the judge's result, or else the original.
            undamaged_above: images judged undamaged with at least this probability go to the first step as they are,
            sure_gain: unless the judge expects its repair to be better by at least so many dB.
        """
        self.judge, self.steps, self.repairs = judge, tuple(steps), repairs
        self.scale = int(np.prod([step.scale for step in steps]))
        self.device = judge.device
        self._undamaged_above, self._sure_gain = undamaged_above, sure_gain
        parts = [*([judge.name] if repairs else []), *(step.name for step in steps)]
        self.name = " + ".join(parts)
        digests = " ".join([judge.digest, str(repairs), *(step.digest for step in steps)])
        self.digest = hashlib.sha256(digests.encode()).hexdigest()
        licenses = [*([judge.license] if repairs else []), *(step.license for step in steps)]
        self.license = ", ".join(dict.fromkeys(licenses))

    def tune(self, tile: int | Literal["auto"] = TILE, memory_mb: int | None = None) -> Tuning:
        """As `Restorer.tune`, of the judge."""
        return self.judge.tune(tile, memory_mb)

    def bare_speed(self) -> float | None:
        """Not known: models of others have no bare decoder."""
        return None

    def agreement(self, request: Request) -> float | None:
        """As `Restorer.agreement`, by the judge."""
        return self.judge.agreement(request)

    def restore_batch(self, requests: Sequence[Request]) -> list[Restored]:
        """Restore images of any sizes."""
        opinions = self.judge.restore_batch([dataclasses.replace(r, strength=1.0, strengths={}) for r in requests])
        return [self._restored(*pair) for pair in zip(requests, opinions, strict=True)]

    def _restored(self, request: Request, opinion: Restored) -> Restored:
        colours = request.colourise and opinion.damage.grey and not request.keeps_outside
        changed = self._changed(request, opinion)
        needed = request.mask is not None or colours or self._is_damaged(opinion, changed)
        repaired = self.repairs and needed
        picture: Pixels = opinion.array if repaired else request.pixels
        lost, fills = opinion.lost, repaired or any(step.fills for step in self.steps)
        if not fills:
            lost = np.zeros_like(opinion.lost) if request.mask is None else request.mask
            if lost.any():
                picture = np.where(lost[..., None], opinion.array, _as_floats(picture))
        scale, seed, done = 1, _seed(request), list[PictureModel]()
        for step in self.steps:
            if step.fills and not lost.any():
                continue
            there = lost.repeat(scale, 0).repeat(scale, 1) if scale > 1 else lost
            made = step(picture, dataclasses.replace(request, mask=there if there.any() else None), seed)
            answer = made.permute(1, 2, 0).numpy()
            if step.fills and step.scale == 1:  # many draw all of it anew
                answer = np.where(there[..., None], answer, _as_floats(picture))
            picture, scale = answer, scale * step.scale
            done.append(step)
        full = as_floats(picture).clamp(0, 1)
        if colours and not repaired:  # others do not give any
            theirs = torch.from_numpy(opinion.array).permute(2, 0, 1)
            theirs = F.interpolate(theirs[None], scale_factor=scale, mode="bilinear")[0] if scale > 1 else theirs
            full = colour_onto(luma(full), theirs)
        elif opinion.damage.grey and not colours:
            full = luma(full).expand(3, -1, -1)
        result = self._judged(request, opinion, full, scale, changed, lost)
        helps = not self.repairs and (colours or (not fills and bool(lost.any())))
        return dataclasses.replace(
            result,
            seed=seed if any(step.draws for step in done) else None,
            repaired=repaired,
            others=tuple((step.does, float(step.scale)) for step in done if not step.fills),
            helper=self.judge.name if helps else None,
        )

    def _judged(
        self,
        request: Request,
        opinion: Restored,
        full: Tensor,
        scale: int,
        changed: float,
        filled: npt.NDArray[np.bool_],
    ) -> Restored:
        """A result [3, scale * H, scale * W] under what the request forbids, and what the second opinion says of it."""
        height, width = request.pixels.shape[:2]
        canvas, apart = Canvas(request, opinion.damage), 0.0
        for top in range(0, height, STRIP):
            rows = slice(top, min(height, top + STRIP))
            part = full[:, scale * rows.start : scale * rows.stop]
            part = F.avg_pool2d(part[None], scale)[0] if scale > 1 else part
            theirs = torch.from_numpy(opinion.array[rows]).permute(2, 0, 1)
            distance = (part - theirs).square().mean(0)
            if request.keeps_outside and request.mask is not None:
                distance = distance * torch.from_numpy(request.mask[rows])
            apart += float(distance.double().sum())
            error = torch.from_numpy(opinion.uncertainty[rows].astype(np.float32)).square() + distance
            tile = Tile(top, 0, (top, 0, rows.stop, width))
            lost = torch.from_numpy(filled[rows].copy())
            canvas.paint(tile, part, error.clamp_min(SMALLEST_ERROR).log(), lost)
        likely = 10 ** (-opinion.expected_psnr / 10) + apart / (height * width)
        told = opinion.damage, opinion.clean, opinion.agreement
        result = canvas.finish(*told, Expected(likely + canvas.means[-1]), opinion.references_ignored)
        return dataclasses.replace(
            result,
            enlarged=_enlarged(request, result, full, scale) if scale > 1 else None,
            input_error=opinion.mean_error + changed if opinion.input_error is None else opinion.input_error,
        )

    def _is_damaged(self, opinion: Restored, changed: float) -> bool:
        if opinion.clean < self._undamaged_above:
            return True
        gain = 10 * math.log10(1 + changed / max(opinion.mean_error, SMALLEST_ERROR))
        return gain >= self._sure_gain

    def _changed(self, request: Request, opinion: Restored) -> float:
        """Mean squared change from an image to the second opinion on it, of greys where that has invented colours."""
        height, width = request.pixels.shape[:2]
        changed = 0.0
        for top in range(0, height, STRIP):
            here = slice(top, top + STRIP)
            before = as_floats(request.pixels[here]).clamp(0, 1)
            change = torch.from_numpy(opinion.array[here]).permute(2, 0, 1) - before
            change = luma(change[None])[0] if opinion.damage.grey else change
            changed += float(change.square().mean(0).double().sum())
        return float(changed / (height * width))


def _as_floats(picture: Pixels) -> npt.NDArray[np.float32]:
    """[H, W, 3] of any kind in 0..1."""
    floats: npt.NDArray[np.float32] = as_floats(picture).permute(1, 2, 0).numpy()
    return floats


def _seed(request: Request) -> int:
    """The same for the same image and caption."""
    digest = hashlib.sha256(np.ascontiguousarray(request.pixels).tobytes())
    digest.update((request.caption or "").encode())
    return int(digest.hexdigest()[:15], 16)


def _enlarged(request: Request, result: Restored, full: Tensor, scale: int) -> np.ndarray:
    """The large result [sH, sW, 3]; what must not change, or less, is interpolated from the original."""
    strength = request.strength_for(result.damage)
    if strength < 1 or request.keeps_outside:
        plain = F.interpolate(as_floats(request.pixels)[None], scale_factor=scale, mode="bicubic")[0].clamp(0, 1)
        share = torch.full(full.shape[1:], 0.0 if request.keeps_outside else strength)
        lost = torch.from_numpy(result.lost.repeat(scale, 0).repeat(scale, 1))
        full = torch.lerp(plain, full, torch.where(lost, 1.0, share))
    out: np.ndarray = full.permute(1, 2, 0).contiguous().numpy()
    return out
