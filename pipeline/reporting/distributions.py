"""How scores are distributed before and after, counted batch by batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.schema import paired

BINS = 40


@dataclasses.dataclass(frozen=True)
class Axis:
    """What a chart shows."""

    title: str
    low: float
    """Values below count with it; so do those above `high`."""
    high: float
    better: str = ""
    """Which way is better, in words; empty: neither."""
    unit: str = ""


PAIRED = {
    "psnr": Axis("PSNR to the truth", 10, 50, "higher is better", "dB"),
    "ssim": Axis("SSIM to the truth", 0, 1, "higher is better"),
    "ms_ssim": Axis("MS-SSIM to the truth", 0, 1, "higher is better"),
    "haarpsi": Axis("HaarPSI to the truth", 0, 1, "higher is better"),
    "mdsi": Axis("MDSI to the truth", 0, 0.6, "lower is better"),
    "ciede2000": Axis("colour difference to the truth", 0, 20, "lower is better", "CIEDE2000"),
    "lpips": Axis("LPIPS to the truth", 0, 1, "lower is better"),
    "dists": Axis("DISTS to the truth", 0, 0.6, "lower is better"),
    "noise": Axis("noise", 0, 50, "lower is better", "of 255"),
    "blockiness": Axis("JPEG blocks", 0, 0.8, "lower is better"),
    "sharpness": Axis("sharpness", 0, 1),
    "contrast": Axis("contrast", 0, 0.4),
    "colourfulness": Axis("colourfulness", 0, 120),
    "clipped": Axis("clipped pixels", 0, 0.3, "lower is better", "share"),
    "brisque": Axis("BRISQUE", 0, 100, "lower is better"),
    "clip_score": Axis("CLIPScore", 0, 50, "higher is better"),
}
"""Scores of input and output; charts come in this order."""
SINGLE = {
    "expected_psnr": Axis("PSNR that the model expects", 10, 50, "higher is better", "dB"),
    "expected_gain": Axis("PSNR gain that the model expects", 0, 20, "higher is better", "dB"),
    "clean_probability": Axis("probability that nothing was wrong", 0, 1),
    "change_psnr": Axis("result against input", 10, 60, "", "dB"),
    "changed_share": Axis("pixels that would change visibly", 0, 1, "", "share"),
    "colour_shift": Axis("colour shift of the whole", 0, 20, "", "CIEDE2000"),
    "redamaged_psnr": Axis("input against the result damaged again", 10, 60, "higher is better", "dB"),
    "caption_agreement": Axis("agreement of caption and picture", 0, 1, "higher is better"),
}
"""Of the result that was proposed, whether it was taken or not."""


def columns() -> list[str]:
    """All that is counted."""
    return [*paired(tuple(PAIRED)), *SINGLE]


class Distribution:
    """A histogram of one column."""

    def __init__(self, axis: Axis) -> None:
        self.axis = axis
        self.counts: npt.NDArray[np.int64] = np.zeros(BINS, np.int64)
        self.sum = 0.0

    def add(self, column: pa.ChunkedArray) -> None:
        """Count a column's values; nulls do not."""
        values = column.drop_null().cast(pa.float64()).to_numpy()
        values = values[np.isfinite(values)]
        self.sum += float(values.sum())
        places = (values - self.axis.low) / (self.axis.high - self.axis.low) * BINS
        self.counts += np.bincount(places.clip(0, BINS - 1).astype(np.int64), minlength=BINS)

    @property
    def total(self) -> int:
        """Values counted."""
        return int(self.counts.sum())

    @property
    def mean(self) -> float | None:
        """None of nothing."""
        return self.sum / self.total if self.total else None

    @property
    def median(self) -> float | None:
        """To within a bin; None of nothing."""
        if not self.total:
            return None
        below = np.cumsum(self.counts)
        place = int(np.searchsorted(below, self.total / 2))
        inside = (self.total / 2 - (below[place] - self.counts[place])) / self.counts[place]
        return float(self.axis.low + (place + inside) * (self.axis.high - self.axis.low) / BINS)


class Distributions:
    """Of all columns that a table has."""

    def __init__(self, names: list[str]) -> None:
        """`names` of the table's columns, without prefix."""
        axes = {f"{name}_{when}": axis for name, axis in PAIRED.items() for when in ("before", "after")} | SINGLE
        self._found = {name: Distribution(axis) for name, axis in axes.items() if name in names}

    def add(self, table: pa.Table) -> None:
        """Count a batch."""
        for name, distribution in self._found.items():
            distribution.add(table[name])

    def means(self) -> dict[str, float]:
        """By column, of those with values."""
        return {name: found.mean for name, found in self._found.items() if found.mean is not None}

    def charts(self) -> Mapping[str, tuple[Axis, dict[str, Distribution]]]:
        """By score: its axis, and its distributions by their names; those with values."""
        charts: dict[str, tuple[Axis, dict[str, Distribution]]] = {}
        for name, axis in PAIRED.items():
            both = {when: self._found.get(f"{name}_{when}") for when in ("before", "after")}
            found = {when: one for when, one in both.items() if one is not None and one.total}
            if found:
                charts[name] = (axis, found)
        for name, axis in SINGLE.items():
            one = self._found.get(name)
            if one is not None and one.total:
                charts[name] = (axis, {"result": one})
        return charts
