"""The run's summary, counted from the output table itself."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from pipeline.schema import STATUSES

FOUND: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "noise": ("noise_sigma", lambda column: pc.greater(column, 4)),
    "JPEG artefacts": ("jpeg_quality", lambda column: pc.less(column, 85)),
    "blur": ("blur_sigma", lambda column: pc.greater(column, 0.5)),
    "low resolution": ("downscale", lambda column: pc.greater(column, 1.4)),
    "fading": ("fading", lambda column: pc.greater(column, 0.08)),
    "missing parts": ("missing", lambda column: pc.greater(column, 0.003)),
    "no colours": ("grey", lambda column: column),
}
"""When an image counts as damaged in a way: the column, and the test of its values."""
MEANS = ("psnr_before", "psnr_after", "ssim_before", "ssim_after", "expected_psnr")
SCALARS = (
    *("status", "error_stage", "error_type", "image_width", "image_height", "restore_seconds"),
    *(column for column, _ in FOUND.values()),
    *MEANS,
)


@dataclasses.dataclass
class Summary:
    """Totals of a run."""

    run_id: str
    rows: int = 0
    by_status: dict[str, int] = dataclasses.field(default_factory=dict)
    failures: dict[str, int] = dataclasses.field(default_factory=dict)
    """Counts by `stage: type`."""
    damage_found: dict[str, int] = dataclasses.field(default_factory=dict)
    """Rows by kind of damage; one row may count in several."""
    with_truth: int = 0
    psnr_before: float | None = None
    """Means over the rows with a truth, dB."""
    psnr_after: float | None = None
    ssim_before: float | None = None
    ssim_after: float | None = None
    expected_psnr: float | None = None
    """Mean over the rows that were not failed, dB."""
    duplicate_ids: int = 0
    """Ids that more than one row has, in this run's source or with what was read before."""
    files_read: int = 0
    """Input files of which this run has read rows."""
    bytes_read: int = 0
    """Of their row groups with these rows, or of the image files."""
    worse: int = 0
    """Rows with a truth and status `restored` that lost more than 0.1 dB."""
    megapixels: float = 0.0
    """Of all rows that reached the restorer."""
    restore_seconds: float = 0.0
    """Seconds that restoring actors worked."""
    seconds: float = 0.0
    """Seconds from the start of the run to its end."""

    @property
    def measured(self) -> dict[str, Any]:
        """What the run has measured, and the table does not tell."""
        return {name: getattr(self, name) for name in ("seconds", "files_read", "bytes_read", "duplicate_ids")}

    @property
    def seconds_a_megapixel(self) -> float | None:
        """Restoring time a megapixel."""
        return self.restore_seconds / self.megapixels if self.megapixels else None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self) | {"seconds_a_megapixel": self.seconds_a_megapixel}


def summarise(dataset: pads.Dataset, run_id: str, prefix: str = "") -> Summary:
    """Count a table. Only its small columns are read, batch by batch.

    Args:
        dataset: the table.
        run_id: the run it belongs to.
        prefix: the recipe's `output.prefix`.
    """
    summary = Summary(run_id)
    statuses, failures, found = Counter[str](), Counter[str](), Counter[str]()
    sums, counts = dict.fromkeys(MEANS, 0.0), dict.fromkeys(MEANS, 0)
    for batch in dataset.to_batches(columns={name: pads.field(prefix + name) for name in SCALARS}):
        table = pa.Table.from_batches([batch])
        summary.rows += table.num_rows
        statuses.update(table["status"].to_pylist())
        errors = table.filter(pc.equal(table["status"], "failed"))
        failures.update(
            f"{stage}: {kind}"
            for stage, kind in zip(errors["error_stage"].to_pylist(), errors["error_type"].to_pylist(), strict=True)
        )
        for name, (column, test) in FOUND.items():
            found[name] += pc.sum(test(table[column])).as_py() or 0
        for name in MEANS:
            sums[name] += pc.sum(table[name]).as_py() or 0.0
            counts[name] += pc.count(table[name]).as_py()
        lost = pc.and_(
            pc.equal(table["status"], "restored"), pc.less(pc.subtract(table["psnr_after"], table["psnr_before"]), -0.1)
        )
        summary.worse += pc.sum(lost).as_py() or 0
        area = pc.multiply(table["image_width"].cast(pa.float64()), table["image_height"].cast(pa.float64()))
        summary.megapixels += (pc.sum(area).as_py() or 0) / 1e6
        summary.restore_seconds += pc.sum(table["restore_seconds"]).as_py() or 0.0
    summary.by_status = {status: statuses[status] for status in STATUSES if statuses[status]}
    summary.failures = dict(failures.most_common())
    summary.damage_found = {name: count for name, count in found.most_common() if count}
    summary.with_truth = counts["psnr_before"]
    for name in MEANS:
        value = sums[name] / counts[name] if counts[name] else math.nan
        setattr(summary, name, None if math.isnan(value) else value)
    return summary


def as_text(summary: Summary) -> str:
    """The summary as a table for the console."""
    lines = [("rows", f"{summary.rows}")]
    lines += [(f"  {status}", f"{count}") for status, count in summary.by_status.items()]
    lines += [(f"    {cause}", f"{count}") for cause, count in summary.failures.items()]
    if summary.with_truth:
        lines += [
            ("rows with a truth", f"{summary.with_truth}"),
            ("  mean PSNR before / after", f"{_number(summary.psnr_before)} / {_number(summary.psnr_after)} dB"),
            ("  mean SSIM before / after", f"{_number(summary.ssim_before, 4)} / {_number(summary.ssim_after, 4)}"),
            ("  restored, but over 0.1 dB worse", f"{summary.worse}"),
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
    wide = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{wide}}  {value}" for name, value in lines)


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
