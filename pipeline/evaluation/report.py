"""An evaluation as Markdown."""

from __future__ import annotations

from collections import Counter

import numpy as np

from pipeline.damage.strengths import LEVELS
from pipeline.evaluation.gate import IMPROVABLE, Harm
from pipeline.evaluation.protocols import Result
from pipeline.evaluation.suite import Evaluation, Line, by_level
from pipeline.quality.gate import LOST


def as_markdown(evaluation: Evaluation) -> str:
    """Tables: what was measured set by set, captions and references, calibration."""
    parts = []
    for name, lines in evaluation.lines.items():
        parts.append(f"## {name}\n\n" + _plain([line for line in lines if not line.trial.level]))
        if levels := by_level(lines):
            parts.append(f"### {name}, by damage and strength\n\n" + _by_level(levels))
        if found := evaluation.comparisons.get(name):
            rows = "".join(f"| {what} | {interval} |\n" for what, interval in found.items())
            head = "| PSNR, paired | dB [95 % interval] |\n|---|---|\n"
            parts.append(f"### {name}, compared image by image\n\n{head}{rows}")
    for name, harm in evaluation.harms.items():
        parts.append(f"## The gate, on {name}\n\n{_gate(harm)}")
    if evaluation.calibrations:
        head = "| predicted | images | Spearman | mean error |\n|---|---|---|---|\n"
        rows = "".join(
            f"| {c.name} | {len(c.truth)} | {c.correlation:.3f} | {c.error:.2f} {c.unit} |\n"
            for c in evaluation.calibrations
        )
        parts.append(f"## What the model knows of its result\n\n{head}{rows}")
    return "\n".join(parts)


def _plain(lines: list[Line]) -> str:
    others = list(dict.fromkeys(name for line in lines for name in line.baselines))
    head = ["test", "images", "input PSNR", "PSNR", "gain", "SSIM", *others]
    rows = []
    for line in lines:
        r = line.result
        cells = [line.name, f"{len(r.outcomes)}", f"{r.input_psnr:.2f}", f"{r.psnr:.2f}", f"{r.gain:+.2f}"]
        cells += ["" if np.isnan(r.ssim) else f"{r.ssim:.4f}"]
        cells += [f"{np.mean(line.baselines[name]):.2f}" if name in line.baselines else "" for name in others]
        rows.append(cells)
    return _table(head, rows)


def _by_level(levels: dict[str, dict[str, Result]]) -> str:
    head = ["damage", *(f"{level}: input → result (SSIM)" for level in LEVELS), "defects found, IoU"]
    rows = []
    for kind, found_at in levels.items():
        results = [found_at[level] for level in LEVELS]
        found = [result.overlap for result in results if result.overlap is not None]
        rows.append(
            [
                kind,
                *(f"{r.input_psnr:.2f} → {r.psnr:.2f} ({r.ssim:.3f})" for r in results),
                f"{np.mean(found):.2f}" if found else "",
            ]
        )
    return _table(head, rows)


def _gate(harm: Harm) -> str:
    statuses = Counter(one.status for one in harm.outcomes)
    rows = [
        ["images, half of them undamaged", f"{len(harm.outcomes)}"],
        ["restored / kept / review", " / ".join(f"{statuses[name]}" for name in ("restored", "kept", "review"))],
        [
            f"of the restored, over {LOST} dB lost",
            f"{len(harm.harmed)} of {len(harm.restored)}, {harm.harmed_share:.1%}",
        ],
        ["undamaged that kept their bytes", f"{harm.kept_share:.1%} of {len(harm.clean)}"],
        [f"improvable by {IMPROVABLE:g} dB that were restored", f"{harm.taken_share:.1%} of {len(harm.improvable)}"],
    ]
    return _table(["", ""], rows)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
