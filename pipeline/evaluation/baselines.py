"""What a user has at hand without any training, by OpenCV: each takes a case and returns pixels [H, W, 3]."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from pipeline.evaluation.protocols import Case, Score, masked_psnr
from pipeline.quality.scores import psnr

Pixels = npt.NDArray[np.uint8]
Baseline = Callable[[Case], Pixels]

NLM_STRENGTH = 0.7
"""Filter strength of non-local means as a share of the true sigma, which it is told; the best on held-out photos."""


def available() -> bool:
    """OpenCV is installed."""
    return importlib.util.find_spec("cv2") is not None


def median(case: Case) -> Pixels:
    """Median over 5 x 5 pixels."""
    import cv2

    return np.asarray(cv2.medianBlur(_shown(case), 5), np.uint8)


def non_local_means(case: Case) -> Pixels:
    """Non-local means (Buades et al. 2005), told the true noise."""
    import cv2

    sigma = case.damage.noise_sigma if case.damage else 10.0
    strength = NLM_STRENGTH * sigma
    return np.asarray(cv2.fastNlMeansDenoisingColored(_shown(case), None, strength, strength, 7, 21), np.uint8)


def telea(case: Case) -> Pixels:
    """Fast marching inpainting (Telea 2004), radius 3, of the pixels under the mask."""
    return _inpaint(case, "INPAINT_TELEA")


def navier_stokes(case: Case) -> Pixels:
    """Navier-Stokes inpainting (Bertalmio et al. 2001), radius 3, of the pixels under the mask."""
    return _inpaint(case, "INPAINT_NS")


def baseline_psnr(cases: Iterable[Case], baseline: Baseline, score: Score | None = None) -> list[float]:
    """PSNR in dB of each case, judged as `measure` judges."""
    values = []
    for case in cases:
        mask = case.request.mask
        judge = score or (psnr if mask is None else masked_psnr(mask))
        values.append(judge(baseline(case), case.truth))
    return values


def _shown(case: Case) -> Pixels:
    pixels = case.request.pixels
    return pixels if pixels.dtype == np.uint8 else np.rint(pixels.clip(0, 1) * 255).astype(np.uint8)


def _inpaint(case: Case, method: str) -> Pixels:
    import cv2

    mask = case.request.mask
    assert mask is not None
    return np.asarray(cv2.inpaint(_shown(case), mask.astype(np.uint8), 3, getattr(cv2, method)), np.uint8)
