"""What scoring costs beside restoring, and whether scores are those of the libraries, measured in one run.

    python -m benchmarks.scores kodak24.parquet

Images get noise (sigma 20, rounded) for the input and its restoration for the output. Libraries that are installed are
compared with: torchmetrics, scikit-image, and piq (`pip install --no-deps piq`, beside a torchvision that imports).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import skimage.color
import skimage.measure
import torch
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    structural_similarity_index_measure,
)

from pipeline.damage.tone import luma
from pipeline.evaluation.tables import Sample, read_samples
from pipeline.lake.tables import open_tables
from pipeline.quality.appraise import Appraiser, Case
from pipeline.quality.blind import blind
from pipeline.quality.colour import ciede2000
from pipeline.quality.haarpsi import haarpsi
from pipeline.quality.mdsi import mdsi
from pipeline.quality.structure import structure
from pipeline.recipe import Recipe
from pipeline.restoration.request import Request
from pipeline.restoration.restorer import Restorer

BATCH = 8
"""Images in a batch; an actor's hold some 16 of this size."""
Score = Callable[[np.ndarray, np.ndarray], float]


def batch(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.copy())[None]


def planes(pixels: np.ndarray) -> torch.Tensor:
    return batch(pixels).permute(0, 3, 1, 2).float() / 255


def ours() -> dict[str, Score]:
    def of_structure(place: int) -> Score:
        return lambda one, other: float(structure(batch(one)[None], batch(other))[place])  # type: ignore[arg-type]

    return {
        "ssim": of_structure(0),
        "ms_ssim": of_structure(1),
        "haarpsi": lambda one, other: float(haarpsi(batch(one)[None], batch(other))),
        "mdsi": lambda one, other: float(mdsi(batch(one)[None], batch(other))),
        "ciede2000": lambda one, other: float(ciede2000(batch(one)[None], batch(other))),
        "sharpness": lambda one, _: float(blind(batch(one))["sharpness"]),
        "noise": lambda one, _: float(blind(batch(one))["noise"]),
    }


def libraries() -> dict[str, tuple[str, Score]]:
    def grey(pixels: np.ndarray) -> np.ndarray:
        return luma(planes(pixels))[0, 0].numpy()

    found: dict[str, tuple[str, Score]] = {
        "ssim": (
            "torchmetrics",
            lambda one, other: float(structural_similarity_index_measure(planes(one), planes(other), data_range=1.0)),
        ),
        "ms_ssim": (
            "torchmetrics",
            lambda one, other: float(
                multiscale_structural_similarity_index_measure(planes(one), planes(other), data_range=1.0)
            ),
        ),
        "ciede2000": (
            "scikit-image",
            lambda one, other: float(
                skimage.color.deltaE_ciede2000(skimage.color.rgb2lab(one), skimage.color.rgb2lab(other)).mean()
            ),
        ),
        "sharpness": ("scikit-image", lambda one, _: float(1 - skimage.measure.blur_effect(grey(one)))),
    }
    try:
        from skimage.restoration import estimate_sigma

        estimate_sigma(np.zeros((16, 16)))
        found["noise"] = (
            "scikit-image",
            lambda one, _: float(255 * estimate_sigma(one / 255, average_sigmas=True, channel_axis=-1)),
        )
    except ImportError:  # PyWavelets
        pass
    try:
        import piq

        found["haarpsi"] = ("piq", lambda one, other: float(piq.haarpsi(planes(one), planes(other))))
        found["mdsi"] = ("piq", lambda one, other: float(piq.mdsi(planes(one), planes(other))))
    except ImportError:
        pass
    return found


def timed(score: Score, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[list[float], float]:
    """Values, and seconds a megapixel: the median over the pairs after one for warming up."""
    score(*pairs[0])
    values, seconds = [], []
    for one, other in pairs:
        started = time.perf_counter()
        values.append(score(one, other))
        seconds.append((time.perf_counter() - started) / (one.shape[0] * one.shape[1] / 1e6))
    return values, statistics.median(seconds)


def compare(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[dict[str, Any]]:
    """Every score beside the library that has it."""
    others, rows = libraries(), []
    for name, score in ours().items():
        values, seconds = timed(score, pairs)
        row: dict[str, Any] = {"score": name, "s/MP": seconds, "mean": statistics.fmean(values)}
        if name in others:
            library, other = others[name]
            theirs, their_seconds = timed(other, pairs)
            apart = [abs(a - b) / max(abs(b), 1e-9) for a, b in zip(values, theirs, strict=True)]
            row |= {"library": library, "its s/MP": their_seconds, "largest difference": max(apart)}
        rows.append(row)
    return rows


def cost(restorer: Restorer, shown: Sequence[np.ndarray], truths: Sequence[np.ndarray], with_truth: bool) -> float:
    """Seconds of scoring and judging for one of restoring, batch by batch as an actor does; the median."""
    appraiser, shares = Appraiser(Recipe(), restorer.device), []
    for start in range(0, len(shown), BATCH):
        images, known = shown[start : start + BATCH], truths[start : start + BATCH]
        started = time.perf_counter()
        results = restorer.restore_batch([Request(image) for image in images])
        restored = time.perf_counter()
        cases = [
            Case(image, result, truth=truth if with_truth else None)
            for image, result, truth in zip(images, results, known, strict=True)
        ]
        appraiser(cases)
        shares.append((time.perf_counter() - restored) / (restored - started))
    return statistics.median(shares)


def noisy(samples: Sequence[Sample]) -> list[np.ndarray]:
    dice = np.random.default_rng(0)
    return [
        (sample.pixels + dice.normal(0, 20, sample.pixels.shape)).round().clip(0, 255).astype(np.uint8)
        for sample in samples
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+", metavar="FILE")
    parser.add_argument("--limit", type=int, default=24)
    arguments = parser.parse_args()
    samples = read_samples(open_tables(arguments.tables), arguments.limit)
    truths, shown = [sample.pixels for sample in samples], noisy(samples)
    rows = compare(list(zip(shown, truths, strict=True)))
    head = ("score", "mean", "s/MP", "library", "its s/MP", "largest difference")
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        cells = [row.get(name, "") for name in head]
        print(f"| {' | '.join(f'{cell:.3g}' if isinstance(cell, float) else str(cell) for cell in cells)} |")
    restorer = Restorer.from_pretrained()
    restorer.restore_batch([Request(shown[0])])
    for with_truth in (False, True):
        what = "with a truth" if with_truth else "without a truth"
        share = cost(restorer, shown, truths, with_truth)
        print(f"\nscoring {what}: {share:.1%} of restoring, {share / (1 + share):.1%} of both")


if __name__ == "__main__":
    main()
