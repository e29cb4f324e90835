"""Which tests are made on which set, and what is concluded from them."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from pipeline.damage.mixture import KINDS
from pipeline.damage.record import Damage
from pipeline.damage.strengths import LEVELS
from pipeline.evaluation import baselines, protocols
from pipeline.evaluation.baselines import Baseline, baseline_psnr
from pipeline.evaluation.gate import Harm, gate
from pipeline.evaluation.protocols import Case, Result, Score, measure
from pipeline.evaluation.statistics import Interval, paired_difference, spearman
from pipeline.evaluation.tables import PUBLISHED, Sample
from pipeline.restoration.restorer import RestoresBatches

log = logging.getLogger(__name__)

DAMAGED_IMAGES = 16
"""Images of a set on which every kind of damage is tried at every strength."""
DAMAGED_SIDE = 256
"""Their sides at most, in pixels: the middle is taken."""
UNDAMAGED = "undamaged"
MEDIAN: tuple[str, Baseline] = ("median 5x5", baselines.median)


@dataclasses.dataclass(frozen=True)
class Trial:
    """One line of a table."""

    name: str
    cases: Callable[[], Iterator[Case]]
    score: Score | None = None
    baselines: tuple[tuple[str, Baseline], ...] = ()
    kind: str = ""
    """Of the damage, where the test is one of several strengths of it."""
    level: str = ""
    """Of `LEVELS`."""


@dataclasses.dataclass(frozen=True)
class Line:
    """A test with its result, and what the baselines reach."""

    trial: Trial
    result: Result
    baselines: dict[str, list[float]]

    @property
    def name(self) -> str:
        """Of the test."""
        return self.trial.name


def by_level(lines: Sequence[Line]) -> dict[str, dict[str, Result]]:
    """The results of tests at several strengths: by kind of damage, then by level."""
    found: dict[str, dict[str, Result]] = {}
    for line in lines:
        if line.trial.level:
            found.setdefault(line.trial.kind, {})[line.trial.level] = line.result
    return found


@dataclasses.dataclass(frozen=True)
class Calibration:
    """How well the model knows what is wrong and what it can do."""

    name: str
    unit: str
    truth: list[float]
    predicted: list[float]

    @property
    def correlation(self) -> float:
        """Spearman's."""
        return spearman(self.truth, self.predicted)

    @property
    def error(self) -> float:
        """Mean absolute, in `unit`."""
        return float(np.mean(np.abs(np.subtract(self.truth, self.predicted))))


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """All that was measured."""

    lines: dict[str, list[Line]]
    """By set."""
    comparisons: dict[str, dict[str, Interval]]
    """By set: what captions and references are worth, in dB."""
    calibrations: list[Calibration]
    harms: dict[str, Harm]
    """By set without a published protocol: what the gate did."""

    def as_json(self) -> dict[str, Any]:
        """For `evaluation.json`: every figure, image by image."""
        return {
            "sets": {name: [_line_json(line) for line in lines] for name, lines in self.lines.items()},
            "comparisons": {
                name: {what: {k: _number(v) for k, v in i._asdict().items()} for what, i in found.items()}
                for name, found in self.comparisons.items()
            },
            "calibrations": [
                {"name": c.name, "unit": c.unit, "spearman": _number(c.correlation), "mean_error": _number(c.error)}
                | {"truth": c.truth, "predicted": c.predicted}
                for c in self.calibrations
            ],
            "gate": {
                name: {
                    "harmed": _number(h.harmed_share),
                    "clean_kept": _number(h.kept_share),
                    "taken": _number(h.taken_share),
                }
                | {"each": [one._asdict() for one in h.outcomes]}
                for name, h in self.harms.items()
            },
        }


def evaluate(restorer: RestoresBatches, sets: dict[str, list[Sample]]) -> Evaluation:
    """Make the tests that belong to each set (`trials_of`) and draw the conclusions.

    Baselines are left out where OpenCV is not installed.
    """
    lines: dict[str, list[Line]] = {}
    harms: dict[str, Harm] = {}
    for name, samples in sets.items():
        if name not in PUBLISHED:
            log.info("%s: the gate", name)
            harms[name] = gate(restorer, samples)
        lines[name] = []
        for test in trials_of(name, samples):
            log.info("%s: %s", name, test.name)
            lines[name].append(_line(restorer, test))
    comparisons = {name: found for name, content in lines.items() if (found := _comparisons(content))}
    calibrations = _calibrations([line.result for found in lines.values() for line in found])
    return Evaluation(lines, comparisons, calibrations, harms)


def trials_of(name: str, samples: Sequence[Sample]) -> list[Trial]:
    """The published protocol of a set by its name; colours and missing areas, and every kind of damage, of others."""
    if name == "kodak24":
        told = (MEDIAN, ("NLM, told sigma", baselines.non_local_means))
        tests = [
            Trial(f"noise, sigma {sigma}", partial(protocols.denoise, samples, sigma), baselines=told)
            for sigma in (15, 25, 50)
        ]
        return [*tests, _undamaged(samples)]
    if name == "live1":
        tests = [
            Trial(f"JPEG, quality {quality}", partial(protocols.jpeg, samples, quality), baselines=(MEDIAN,))
            for quality in (10, 20, 30, 40)
        ]
        return [*tests, _undamaged(samples)]
    if name == "set5":
        return [
            Trial(f"low resolution, x{n}, Y", partial(protocols.upscale, samples, n), protocols.luma_psnr(n))
            for n in (2, 3, 4)
        ]
    return [*_colours(samples), _missing(samples), *_every_kind(samples)]


def _undamaged(samples: Sequence[Sample]) -> Trial:
    return Trial(UNDAMAGED, partial(protocols.damaged, samples, "clean", 0.0))


def _colours(samples: Sequence[Sample]) -> list[Trial]:
    colourful = [sample for sample in samples if not _is_grey(sample)]
    if len(colourful) < 2:
        return []
    captioned = [sample for sample in colourful if sample.captions]
    has_several = any(len(sample.captions) > 1 for sample in captioned)
    captions = [name for name in protocols.CAPTIONS if name != "all" or has_several] if len(captioned) > 1 else []
    return [Trial(f"greys, captions {c}", partial(protocols.colourise, captioned, c)) for c in captions] + [
        Trial(f"greys, references {r}", partial(protocols.colourise, colourful, "empty", r))
        for r in protocols.REFERENCES
    ]


def _missing(samples: Sequence[Sample]) -> Trial:
    others = (("Telea", baselines.telea), ("Navier-Stokes", baselines.navier_stokes))
    return Trial("20 % missing, under the mask", partial(protocols.inpaint, samples, 0.2), baselines=others)


def _every_kind(samples: Sequence[Sample]) -> list[Trial]:
    few = [_middle(sample) for sample in samples[:DAMAGED_IMAGES]]
    kinds = [(kind, kind.replace("_", " ")) for kind in KINDS if kind not in ("clean", "grey")]
    tests = [
        Trial(f"{shown}, {name}", partial(protocols.damaged, few, kind, level), kind=shown, level=name)
        for kind, shown in kinds
        for name, level in LEVELS.items()
    ]
    return [_undamaged(few), *tests]


def _line(restorer: RestoresBatches, test: Trial) -> Line:
    result = measure(restorer, test.cases(), test.score)
    found = test.baselines if baselines.available() else ()
    return Line(test, result, {name: baseline_psnr(test.cases(), baseline, test.score) for name, baseline in found})


def _comparisons(lines: Sequence[Line]) -> dict[str, Interval]:
    by_name = {line.name: line.result.each for line in lines}
    pairs = {
        "true captions over empty": ("greys, captions true", "greys, captions empty"),
        "true captions over shuffled": ("greys, captions true", "greys, captions shuffled"),
        "true captions over wrong": ("greys, captions true", "greys, captions wrong"),
        "all true captions over empty": ("greys, captions all", "greys, captions empty"),
        "all true captions over the first": ("greys, captions all", "greys, captions true"),
        "same scene as reference over none": ("greys, references same", "greys, references none"),
        "another scene as reference over none": ("greys, references other", "greys, references none"),
    }
    found = {
        what: paired_difference(by_name[one], by_name[other])
        for what, (one, other) in pairs.items()
        if one in by_name and other in by_name
    }
    for line in lines:
        found |= {
            f"{line.name}: over {name}": paired_difference(line.result.each, values)
            for name, values in line.baselines.items()
        }
    return found


def _calibrations(results: Sequence[Result]) -> list[Calibration]:
    """Over all images of all tests that say something of it."""
    outcomes = [outcome for result in results for outcome in result.outcomes]
    judged = [(o, o.done) for o in outcomes if o.done is not None and not o.done.clean]
    noisy = [(o, done) for o, done in judged if done == Damage(noise_sigma=done.noise_sigma)]
    compressed = [(o, done) for o, done in judged if done == Damage(jpeg_quality=done.jpeg_quality)]
    pairs = {
        ("PSNR of the result", "dB"): [(o.whole_psnr, o.expected_psnr) for o, _ in judged],
        ("sigma of the noise", "of 255"): [(done.noise_sigma, o.found.noise_sigma) for o, done in noisy],
        ("JPEG quality", "of 100"): [(done.jpeg_quality, o.found.jpeg_quality) for o, done in compressed],
    }
    return [
        Calibration(name, unit, [true for true, _ in values], [predicted for _, predicted in values])
        for (name, unit), values in pairs.items()
        if values
    ]


def _middle(sample: Sample) -> Sample:
    height, width = sample.pixels.shape[:2]
    tall, wide = min(height, DAMAGED_SIDE), min(width, DAMAGED_SIDE)
    top, left = (height - tall) // 2, (width - wide) // 2
    return sample._replace(pixels=np.ascontiguousarray(sample.pixels[top : top + tall, left : left + wide]))


def _is_grey(sample: Sample) -> bool:
    return bool((sample.pixels == sample.pixels[..., :1]).all())


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _line_json(line: Line) -> dict[str, Any]:
    result = line.result
    means = {"images": len(result.outcomes), "input_psnr": result.input_psnr, "psnr": result.psnr, "gain": result.gain}
    return {
        "name": line.name,
        **means,
        "ssim": _number(result.ssim),
        "overlap": result.overlap,
        "baselines": {name: float(np.mean(values)) for name, values in line.baselines.items()},
        "each": [{"id": o.id, "input_psnr": o.input_psnr, "psnr": o.psnr, "ssim": o.ssim} for o in result.outcomes],
    }
