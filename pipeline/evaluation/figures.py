"""An evaluation as pictures, by matplotlib."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from pipeline.damage.strengths import LEVELS
from pipeline.evaluation.suite import Evaluation, by_level


def available() -> bool:
    """matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def draw(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Write `calibration.png`, `comparisons.png` and `damage.png`, as far as there is something to show.

    Returns:
        The files.
    """
    figures = [("calibration", _calibration), ("comparisons", _comparisons), ("damage", _damage)]
    return [path for name, make in figures if (path := make(evaluation, folder / f"{name}.png"))]


def _figure(rows: int, columns: int, width: float, height: float):  # type: ignore[no-untyped-def]
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _calibration(evaluation: Evaluation, path: Path) -> Path | None:
    if not evaluation.calibrations:
        return None
    figure, axes = _figure(1, len(evaluation.calibrations), 4 * len(evaluation.calibrations), 4)
    for axis, found in zip(axes[0], evaluation.calibrations, strict=True):
        both = [*found.truth, *found.predicted]
        axis.plot([min(both), max(both)], [min(both), max(both)], color="0.6", linewidth=1)
        axis.scatter(found.truth, found.predicted, s=5, alpha=0.35, linewidths=0)
        axis.set(title=found.name, xlabel=f"true ({found.unit})", ylabel=f"predicted ({found.unit})")
    figure.savefig(path)
    return path


def _comparisons(evaluation: Evaluation, path: Path) -> Path | None:
    rows = [(f"{name}: {what}", i) for name, found in evaluation.comparisons.items() for what, i in found.items()]
    if not rows:
        return None
    figure, axes = _figure(1, 1, 9, 1 + 0.32 * len(rows))
    axis = axes[0][0]
    for place, (_, interval) in enumerate(rows):
        axis.plot([interval.low, interval.high], [place, place], color="C0")
        axis.plot([interval.mean], [place], "o", color="C0", markersize=4)
    axis.axvline(0, color="0.6", linewidth=1)
    axis.set(yticks=range(len(rows)), yticklabels=[what for what, _ in rows], xlabel="dB, 95 % interval")
    axis.invert_yaxis()
    figure.savefig(path)
    return path


def _damage(evaluation: Evaluation, path: Path) -> Path | None:
    kinds = {f"{name}: {kind}": at for name, lines in evaluation.lines.items() for kind, at in by_level(lines).items()}
    if not kinds:
        return None
    figure, axes = _figure(1, len(LEVELS), 4 * len(LEVELS), 1 + 0.26 * len(kinds))
    for axis, level in zip(axes[0], LEVELS, strict=True):
        before = [at[level].input_psnr for at in kinds.values()]
        after = [at[level].psnr for at in kinds.values()]
        for place, (low, high) in enumerate(zip(before, after, strict=True)):
            axis.plot([low, high], [place, place], color="C2" if high >= low else "C3", linewidth=1)
        axis.plot(before, range(len(kinds)), "o", color="0.6", markersize=4, label="damaged")
        axis.plot(after, range(len(kinds)), "o", color="C0", markersize=4, label="restored")
        axis.set(title=level, xlabel="PSNR, dB", yticks=range(len(kinds)), yticklabels=list(kinds))
        axis.invert_yaxis()
    axes[0][0].legend()
    figure.savefig(path)
    return path
