"""The gate: is the restored image taken, or the original kept?"""

from __future__ import annotations

import dataclasses
import math

from pipeline.damage.record import Damage
from pipeline.schema import Status


@dataclasses.dataclass(frozen=True)
class Rules:
    """Thresholds, as in the recipe's `scoring`."""

    clean_above: float
    least_change: float
    least_gain: float
    review_below: float
    review_fill: float


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What is known of one image after restoring."""

    damage: Damage
    clean: float
    """Probability that nothing was wrong, 0..1."""
    change_psnr: float
    """The result against the input, dB."""
    expected_psnr: float
    """The result's own, in the likely case, dB."""
    mean_error: float
    """The result's squared error that the model expects on average, 0..1."""
    masked: float | None
    """Share of the area that a mask asked to fill; None without a mask."""

    @property
    def expected_gain(self) -> float:
        """Expected rise of the PSNR in dB.

        For an estimate that is the mean of what the original may have been, the input's squared error is the
        result's plus the squared change between them.
        """
        change = 10 ** (-self.change_psnr / 10)
        return 10 * math.log10((self.mean_error + change) / max(self.mean_error, 1e-12))


def decide(evidence: Evidence, rules: Rules) -> tuple[Status, list[str]]:
    """`restored`, `kept` or `review`, and why."""
    if evidence.masked is not None:
        if not evidence.masked:
            return "kept", ["the mask is empty"]
        if evidence.expected_psnr < rules.review_below:
            return "review", [f"uncertain: {evidence.expected_psnr:.1f} dB expected"]
        return "restored", [f"{evidence.masked:.1%} of the area was filled"]
    if evidence.clean >= rules.clean_above:
        return "kept", [f"judged undamaged (probability {evidence.clean:.2f})"]
    if evidence.change_psnr >= rules.least_change:
        return "kept", [f"almost nothing would change ({evidence.change_psnr:.1f} dB to the original)"]
    if evidence.expected_gain < rules.least_gain:
        return "kept", [f"little to gain ({evidence.expected_gain:.2f} dB expected)"]
    doubts = []
    if evidence.expected_psnr < rules.review_below:
        doubts.append(f"uncertain: {evidence.expected_psnr:.1f} dB expected")
    if evidence.damage.missing > rules.review_fill:
        doubts.append(f"{evidence.damage.missing:.1%} of the area looked missing and was filled")
    return ("review", doubts) if doubts else ("restored", [f"{evidence.expected_gain:.1f} dB gain expected"])
