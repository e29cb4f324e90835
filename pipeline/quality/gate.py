"""The gate: is the restored image taken, the original kept, or a person asked?"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from pipeline.quality.subjects import Kind
from pipeline.recipe import Gate, Rule
from pipeline.schema import Status

CHANGED = 8
"""Steps of 0..255 by which a channel must differ for its pixel to count as changed: less is hardly seen."""
LOST = 0.1
"""dB of PSNR that a restored image may lose against its truth before it counts as worse."""
LEAST_FILL = 0.01
"""Share of a face or text that must have been filled to be worth a word."""
MUCH_FILLED = 0.05
"""Share of an image that must have been filled for what its caption tells of to be in doubt."""
SEEMS = 0.5
"""Probability from which on an image is said to seem undamaged."""
_NEEDED = ("clean_probability", "change_psnr", "expected_psnr", "expected_gain", "missing")


@dataclasses.dataclass(frozen=True)
class Sighting:
    """A face or text, likely, and what became of it."""

    kind: Kind
    expected_psnr: float
    """Of the result there, dB."""
    filled: float
    """Share of it that was filled, 0..1."""
    is_placed: bool = True
    """Whether it was seen in a place; else the caption tells of it, and both numbers are those of the whole image."""


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What is known of one image and its repair, without invented colours; never the truth."""

    scores: Mapping[str, float | None]
    """By their columns: all of `EVIDENCE` that could be told."""
    masked: float | None
    """Share of the area that a mask asked to fill; None without a mask."""
    guessed: float = 0.0
    """Share of the area that was filled unasked, in places too wide to be scratches, cracks or dust."""
    sightings: Sequence[Sighting] = ()
    enlarged: bool = False
    """The result is larger than the input: that was asked for, whatever else there is to gain."""

    def score(self, name: str) -> float:
        """One that is always told."""
        value = self.scores[name]
        assert value is not None
        return value


@dataclasses.dataclass(frozen=True)
class Decision:
    """What a person has decided about a result; it stands above all rules."""

    accepted: bool
    said: str
    """Who, and when."""

    def apply(self, reasons: Sequence[str]) -> tuple[Status, list[str]]:
        """The status that a result with these reasons has."""
        if self.accepted:
            return "restored", [f"accepted by {self.said}", *reasons]
        return "kept", [f"rejected by {self.said}", *reasons]


def expected_gain(change_psnr: float, mean_error: float) -> float:
    """Expected rise of the PSNR in dB, from the change in dB and the result's expected squared error.

    For an estimate that is the mean of what the original may have been, the input's squared error is the result's plus
    the squared change between them.
    """
    change = 10 ** (-change_psnr / 10)
    return 10 * math.log10((mean_error + change) / max(mean_error, 1e-12))


def decide(evidence: Evidence, gate: Gate) -> tuple[Status, list[str]]:
    """`restored`, `kept` or `review`, and why."""
    missing = [name for name in _NEEDED if not math.isfinite(_number(evidence.scores.get(name)))]
    if missing:
        return "review", [f"no {', '.join(missing)} could be told"]
    reasons = _to_keep(evidence, gate)
    if reasons:
        return "kept", reasons
    doubts = _to_review(evidence, gate)
    if doubts:
        return "review", doubts
    if evidence.masked is not None:
        return "restored", [f"{evidence.masked:.1%} of the area was filled"]
    if evidence.enlarged:
        return "restored", ["it was enlarged"]
    return "restored", [f"{evidence.score('expected_gain'):.1f} dB gain expected"]


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _to_keep(evidence: Evidence, gate: Gate) -> list[str]:
    if evidence.enlarged:
        return _matching(evidence, gate.rules, "kept")
    if evidence.masked is not None:  # somebody has asked for it
        return _matching(evidence, gate.rules, "kept") if evidence.masked else ["the mask is empty"]
    clean, change, gain = (evidence.score(name) for name in ("clean_probability", "change_psnr", "expected_gain"))
    worse = evidence.scores.get("worse_probability")
    if worse is None:
        if clean >= gate.clean_above and gain < gate.sure_gain:
            return [f"judged undamaged (probability {clean:.2g})"]
    elif worse > gate.worse_above:
        seems = f", and it seems undamaged ({clean:.2g})" if clean >= SEEMS else ""
        return [f"the result may be worse (probability {worse:.2g}, up to {gate.worse_above:g} is taken){seems}"]
    if change >= gate.least_change:
        return [f"almost nothing would change ({change:.1f} dB to the original)"]
    if gain < gate.least_gain:
        return [f"little to gain ({gain:.2f} dB expected)"]
    return _matching(evidence, gate.rules, "kept")


def _to_review(evidence: Evidence, gate: Gate) -> list[str]:
    doubts = []
    expected = evidence.score("expected_psnr")
    if expected < gate.review_below:
        doubts.append(f"uncertain: {expected:.1f} dB expected")
    change, gain = evidence.score("change_psnr"), evidence.score("expected_gain")
    if evidence.enlarged and change < gate.least_change and gain < 0:
        doubts.append(f"it may be {-gain:.1f} dB farther from the truth than the input")
    if evidence.masked is None and evidence.guessed > gate.review_fill:
        doubts.append(f"{evidence.guessed:.1%} of the area looked missing and was filled, over wide places")
    if evidence.masked is not None and evidence.masked > gate.review_mask:
        doubts.append(f"{evidence.masked:.1%} of the area was filled")
    doubts += _sighted(evidence, gate)
    return doubts + _matching(evidence, gate.rules, "review")


def _sighted(evidence: Evidence, gate: Gate) -> list[str]:
    doubts = []
    for sighting in evidence.sightings:
        what = "a face" if sighting.kind == "face" else "text"
        if sighting.is_placed and sighting.filled > LEAST_FILL:
            doubts.append(f"{what} is likely, and {sighting.filled:.0%} of it was filled")
        elif sighting.filled > MUCH_FILLED:
            doubts.append(f"{what} is likely, and may have been among the {sighting.filled:.0%} that were filled")
        elif sighting.expected_psnr < gate.review_subjects_below:
            doubts.append(f"{what} is likely, and uncertain ({sighting.expected_psnr:.1f} dB expected)")
    return list(dict.fromkeys(doubts))


def _matching(evidence: Evidence, rules: Sequence[Rule], then: Status) -> list[str]:
    reasons = []
    for rule in rules:
        value = evidence.scores.get(rule.score)
        if rule.then != then or value is None:
            continue
        above, below = rule.above, rule.below
        if (above is not None and value > above) or (below is not None and value < below):
            bound = f"above {above:g}" if above is not None else f"below {below:g}"
            reasons.append(rule.reason or f"{rule.score} is {value:.3g}, {bound}")
    return reasons
