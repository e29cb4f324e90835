"""The run's summary: totals, for the console and for `summary.json`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from pipeline.quality.gate import LOST

DAMAGE: dict[str, tuple[str, bool, float]] = {
    "noise": ("noise_sigma", True, 4),
    "JPEG artefacts": ("jpeg_quality", False, 85),
    "blur": ("blur_sigma", True, 0.5),
    "low resolution": ("downscale", True, 1.4),
    "fading": ("fading", True, 0.08),
    "missing parts": ("missing", True, 0.003),
    "stains": ("stained", True, 0.0001),
    "no colours": ("grey", True, 0),
}
"""When an image counts as damaged in a way: if a column's value is above (true) or below a bound."""


@dataclasses.dataclass
class Summary:
    """Totals of a run."""

    run_id: str
    rows: int = 0
    by_status: dict[str, int] = dataclasses.field(default_factory=dict)
    megapixels_by_status: dict[str, float] = dataclasses.field(default_factory=dict)
    failures: dict[str, int] = dataclasses.field(default_factory=dict)
    """Counts by `stage: type`."""
    damage_found: dict[str, int] = dataclasses.field(default_factory=dict)
    """Rows by kind of damage; one row may count in several."""
    scores: dict[str, float] = dataclasses.field(default_factory=dict)
    """Means by column, over the rows that have a value."""
    with_truth: int = 0
    worse: int = 0
    """Rows with a truth and status `restored` that lost more than 0.1 dB."""
    duplicate_ids: int = 0
    """Ids that more than one row has, in this run's source or with what was read before."""
    files_read: int = 0
    """Input files of which this run has read rows."""
    bytes_read: int = 0
    """Of their row groups with these rows, or of the image files."""
    restore_seconds: float = 0.0
    """Seconds that restoring actors ran the model."""
    score_seconds: float = 0.0
    """Seconds that they scored and judged."""
    seconds: float = 0.0
    """Seconds from the start of the run to its end."""
    flow_seconds: float = 0.0
    """Of these, while rows were on their way; of a run that was killed and goes on, only since then."""
    flow_rows: int = 0
    """Rows that came out in this time,"""
    flow_megapixels: float = 0.0
    """and their megapixels."""
    first_seconds: float | None = None
    """Seconds from the start of the run until its first rows came out,"""
    first_at: float | None = None
    """and when that was, in seconds since 1970."""
    steady_speed: float | None = None
    """Megapixels a second from then on until its last ones did."""
    actors: int = 0
    """Restoring actors."""
    device: str = ""
    """Where they ran the model: `cpu` or `cuda`."""
    bare_speed: float | None = None
    """Megapixels a second of the bare model on tiles in memory, on one actor, measured when it has settled."""

    actor_hours: float = 0.0
    """Hours of restoring actors while rows were on their way, in all attempts that ended with a word,"""
    core_hours: float = 0.0
    """and of all cores that were there, in the mean."""
    cost: float | None = None
    """Of these, by the recipe's prices."""
    currency: str = ""
    """Of the cost."""
    estimate: dict[str, Any] | None = None
    """What `--dry-run` had expected of as many rows: `actor_hours`, `core_hours`, `cost`; when it was `made`, and for
    so many `actors` and `cores`."""

    @property
    def measured(self) -> dict[str, Any]:
        """What the run has measured, and the table does not tell."""
        names = (
            *("seconds", "flow_seconds", "flow_rows", "flow_megapixels", "files_read", "bytes_read", "duplicate_ids"),
            *("first_seconds", "first_at", "steady_speed", "actors", "device", "bare_speed"),
            *("actor_hours", "core_hours", "cost", "currency", "estimate"),
        )
        return {name: getattr(self, name) for name in names}

    @property
    def megapixels(self) -> float:
        """Of all rows that came out with an image."""
        return sum(self.megapixels_by_status.values())

    @property
    def speed(self) -> float | None:
        """Megapixels a second while rows were on their way."""
        return self.flow_megapixels / self.flow_seconds if self.flow_seconds and self.flow_megapixels else None

    @property
    def share_of_bare(self) -> float | None:
        """The run's speed as a share of what the bare model would do on as many actors."""
        if self.speed is None or not self.bare_speed or not self.actors:
            return None
        return self.speed / (self.bare_speed * self.actors)

    @property
    def seconds_a_megapixel(self) -> float | None:
        """Restoring time a megapixel."""
        return self.restore_seconds / self.megapixels if self.megapixels else None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        told = ("megapixels", "speed", "share_of_bare", "seconds_a_megapixel")
        return dataclasses.asdict(self) | {name: getattr(self, name) for name in told}


def kinds_of(row: Mapping[str, Any]) -> list[str]:
    """The kinds of damage that were found in a row."""
    kinds = []
    for name, (column, above, bound) in DAMAGE.items():
        value = row.get(column)
        if value is not None and (value > bound if above else value < bound):
            kinds.append(name)
    return kinds


def as_text(summary: Summary) -> str:
    """The summary as a table for the console."""
    lines = as_lines(summary)
    wide = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{wide}}  {value}" for name, value in lines)


def as_lines(summary: Summary) -> list[tuple[str, str]]:
    """The summary line by line: what, and how much."""
    scores = summary.scores
    lines = [("rows", f"{summary.rows}")]
    lines += [(f"  {status}", f"{count}") for status, count in summary.by_status.items()]
    lines += [(f"    {cause}", f"{count}") for cause, count in summary.failures.items()]
    if summary.with_truth:
        psnr, ssim = (tuple(scores.get(f"{name}_{when}") for when in ("before", "after")) for name in ("psnr", "ssim"))
        lines += [
            ("rows with a truth", f"{summary.with_truth}"),
            ("  mean PSNR before / after", f"{_number(psnr[0])} / {_number(psnr[1])} dB"),
            ("  mean SSIM before / after", f"{_number(ssim[0], 4)} / {_number(ssim[1], 4)}"),
            (f"  restored, but over {LOST} dB worse", f"{summary.worse}"),
        ]
    if summary.files_read:
        lines.append(("files read", f"{summary.files_read} ({summary.bytes_read / 1e6:.1f} MB)"))
    if summary.duplicate_ids:
        lines.append(("ids that come more than once", f"{summary.duplicate_ids}"))
    if summary.damage_found:
        lines += [("damage found", "rows")]
        lines += [(f"  {name}", f"{count}") for name, count in summary.damage_found.items()]
    lines += [
        ("megapixels restored or judged", f"{summary.megapixels:.2f}"),
        ("restoring, seconds a megapixel", _number(summary.seconds_a_megapixel)),
        ("whole run, seconds", f"{summary.seconds:.1f}"),
    ]
    if summary.share_of_bare is not None:
        lines.append(("speed", speed_line(summary)))
    if summary.actor_hours:
        lines.append(("hours of actors / of cores", f"{summary.actor_hours:.3g} / {summary.core_hours:.3g}"))
        if told := summary.estimate:
            hours = f"{told['actor_hours']:.3g} / {told['core_hours']:.3g}"
            lines.append((f"  as estimated {told['made'][:10]}", f"{hours} with {told['actors']} actors"))
    if summary.cost is not None:
        lines.append(("cost", f"{summary.cost:.2f} {summary.currency}"))
        if summary.estimate and summary.estimate["cost"] is not None:
            lines.append(("  as estimated", f"{summary.estimate['cost']:.2f} {summary.currency}"))
    return lines


def speed_line(summary: Summary) -> str:
    """The run's speed against the bare model's."""
    assert summary.speed is not None and summary.bare_speed and summary.share_of_bare is not None
    many = f" on {summary.actors} actors" if summary.actors > 1 else ""
    return (
        f"{summary.speed:.2f} MP/s, {summary.share_of_bare:.0%} of the bare model's "
        f"{summary.bare_speed * summary.actors:.2f} MP/s on {summary.device}{many}"
    )


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
