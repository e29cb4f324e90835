"""Appraising: how good each image was and is, and what the gate says of it."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from pipeline.quality.cores import Cores
from pipeline.quality.gate import LEAST_FILL, Decision, Evidence, Sighting, decide, expected_gain
from pipeline.quality.scorer import Scorer, Scores
from pipeline.quality.scores import decibels
from pipeline.quality.subjects import Subject, SubjectFinder
from pipeline.recipe import Recipe
from pipeline.restoration.canvas import Restored
from pipeline.restoration.colour import coloured
from pipeline.schema import FOUND, Status

Pixels = npt.NDArray[np.uint8]

CELLS = 96
"""Of the shorter side of an image: three of them are wider than scratches are."""
PLACE = 32
"""Pixels a side of the smallest face that is looked for, about."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One image and what came of it."""

    before: Pixels  # [H, W, 3]
    result: Restored
    caption: str | None = None
    mask: npt.NDArray[np.bool_] | None = None  # [H, W]
    truth: Pixels | None = None  # [H, W, 3]
    coloured: bool = False
    """It was grey, and was to have colours."""
    decision: Decision | None = None
    """A person has seen this very result."""
    broken: str | None = None
    """What is wrong with its file, if that is broken: a person should look then."""


Taken = Literal["nothing", "colours", "result"]
"""What is taken of a result: `colours` goes onto the original's luminance."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What becomes of it."""

    status: Status
    reasons: list[str]
    subjects: list[str]
    scores: dict[str, float | None]
    taken: Taken
    after: Pixels | None
    """What is taken of the result, [H, W, 3], if anything is."""


class Appraiser:
    """Scores and the gate, on a device."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        """Load what the recipe's scores need.

        Raises:
            ModelError: weights are missing or wrong.
            RecipeError: a package is missing.
        """
        self._gate = recipe.gate
        self._cores = Cores()
        self._scorer = Scorer(device, recipe.scoring, self._cores)
        self._finder = SubjectFinder(recipe.gate.find_text)

    def __call__(self, cases: Sequence[Case]) -> list[Verdict]:
        """A verdict on each."""
        captions, results = [case.caption for case in cases], [case.result for case in cases]
        befores, proposed = [case.before for case in cases], [result.pixels for result in results]
        repairs = [_grey(after) if case.coloured else after for case, after in zip(cases, proposed, strict=True)]
        blind = self._scorer.blind([*befores, *proposed], [*captions, *captions])
        before, after = blind[: len(cases)], blind[len(cases) :]
        damages = [None if case.mask is not None else case.result.damage for case in cases]
        fidelity = self._scorer.fidelity(befores, repairs, damages, [result.lost for result in results])
        measured = [
            {**_named(one, "before"), **_named(other, "after"), **far}
            for one, other, far in zip(before, after, fidelity, strict=True)
        ]
        # What takes long here is to look for faces, on one core each.
        verdicts = self._cores.run(
            functools.partial(self._decide, case, pixels, scores)
            for case, pixels, scores in zip(cases, proposed, measured, strict=True)
        )
        outputs = [before[row] if verdict.after is None else after[row] for row, verdict in enumerate(verdicts)]
        for row, verdict in enumerate(verdicts):
            if verdict.after is not None and verdict.after is not proposed[row]:
                (outputs[row],) = self._scorer.blind([verdict.after], [captions[row]])
            verdict.scores.update(_named(outputs[row], "after"))
        self._compare(cases, verdicts)
        return verdicts

    def _decide(self, case: Case, proposed: Pixels, measured: Scores) -> Verdict:
        result = case.result
        told = {
            **{name: getattr(result.damage, name) for name in FOUND},
            "clean_probability": result.clean,
            "caption_agreement": result.agreement,
            "expected_psnr": result.expected_psnr,
            "expected_gain": _gain(result, measured["change_psnr"]),
            "worse_probability": result.worse,
            **measured,
        }
        scores = {name: value if value is not None and math.isfinite(value) else None for name, value in told.items()}
        masked = None if case.mask is None else float(case.mask.mean())
        guessed = _wide(result.lost) if case.mask is None else 0.0
        evidence = Evidence(scores, masked, guessed, enlarged=result.enlarged is not None)
        status, reasons = decide(evidence, self._gate)
        if status != "kept":
            try:
                evidence = dataclasses.replace(evidence, sightings=self._sightings(case))
                status, reasons = decide(evidence, self._gate)
            except Exception as error:  # a detector's surprise must not cost the row
                trouble = f"faces and text could not be looked for ({type(error).__name__}: {error})"
                status, reasons = "review", [*(reasons if status == "review" else ()), trouble]
        taken: Taken = "nothing" if status == "kept" else "result"
        if case.coloured:  # the repair was judged without the colours
            taken = "colours" if status == "kept" else "result"
            status, reasons = "review", [*reasons, "colours are invented"]
        if case.broken is not None:
            taken = "result" if taken == "nothing" else taken
            status, reasons = "review", [*(reasons if status == "review" else ()), case.broken]
        if case.decision is not None:
            status, reasons = case.decision.apply(reasons)
            taken = "nothing" if status == "kept" else "result" if taken == "nothing" else taken
        after = None if taken == "nothing" else proposed
        if taken == "colours":
            after = coloured(case.before, proposed)
        subjects: list[str] = sorted({sighting.kind for sighting in evidence.sightings})
        return Verdict(status, reasons, subjects, scores, taken, after)

    def _sightings(self, case: Case) -> list[Sighting]:
        """Looking takes a while, and is done where it can matter."""
        result = case.result
        filled = result.lost.mean() > LEAST_FILL / 10
        if not filled and _worst(result) >= self._gate.review_subjects_below:
            return []
        return [_sighting(case, subject) for subject in self._finder(case.before, case.caption)]

    def _compare(self, cases: Sequence[Case], verdicts: Sequence[Verdict]) -> None:
        """Input and output with the truth, where it is known; what was kept is what it was."""
        known = [(case, verdict) for case, verdict in zip(cases, verdicts, strict=True) if case.truth is not None]
        versions = [[case.before] if verdict.after is None else [case.before, verdict.after] for case, verdict in known]
        truths = [case.truth for case, _ in known if case.truth is not None]
        for (_, verdict), found in zip(known, self._scorer.against_truth(versions, truths), strict=True):
            verdict.scores.update(_named(found[0], "before") | _named(found[-1], "after"))


def _named(scores: Scores, when: str) -> Scores:
    return {f"{name}_{when}": value for name, value in scores.items()}


def _sighting(case: Case, subject: Subject) -> Sighting:
    """What became of a subject: how sure the model is where it lies, compared with the whole."""
    result = case.result
    if subject.box is None:
        return Sighting(subject.kind, result.expected_psnr, float(result.lost.mean()), is_placed=False)
    top, left, bottom, right = subject.box
    here = (slice(top, max(bottom, top + 1)), slice(left, max(right, left + 1)))
    error = float(np.square(result.uncertainty[here].astype(np.float32)).mean())
    return Sighting(subject.kind, _local_psnr(result, error), float(result.lost[here].mean()))


def _local_psnr(result: Restored, error: float) -> float:
    """What is expected where the pixels expect this squared error, given what is expected of the whole."""
    return result.expected_psnr - decibels(result.mean_error) + decibels(error)


def _worst(result: Restored) -> float:
    """The expected PSNR of the worst place of `PLACE` pixels a side, in dB."""
    height, width = result.uncertainty.shape
    rows, columns = (range(0, length, PLACE) for length in (height, width))
    worst = 0.0
    for top in rows:
        errors = np.square(result.uncertainty[top : top + PLACE].astype(np.float32)).mean(0)
        sums = np.add.reduceat(errors, columns)
        worst = max(worst, float((sums / np.diff([*columns, width])).max()))
    return _local_psnr(result, worst)


def _wide(lost: npt.NDArray[np.bool_]) -> float:
    """Share of the area that lies in lost places at least three cells wide; the shorter side has `CELLS`.

    [H, W] is brought to cells, of which those count that are lost as a whole, and opened by a square of 3 x 3.
    """
    side = max(1, min(lost.shape) // CELLS)
    rows, columns = (length // side for length in lost.shape)
    cells = lost[: rows * side, : columns * side].reshape(rows, side, columns, side).all((1, 3))
    if min(rows, columns) < 3:
        return 0.0
    cores = sliding_window_view(cells, (3, 3)).all((2, 3))
    wide = sliding_window_view(np.pad(cores, 2), (3, 3)).any((2, 3))
    return float(wide.sum() * side**2 / lost.size)


def _gain(result: Restored, change_psnr: float) -> float:
    if result.input_error is None:
        return expected_gain(change_psnr, result.mean_error)
    return decibels(result.mean_error) - decibels(result.input_error)


def _grey(rgb: Pixels) -> Pixels:
    """[H, W, 3] without its colours."""
    return np.repeat(np.asarray(Image.fromarray(rgb).convert("L"))[..., None], 3, axis=2)
