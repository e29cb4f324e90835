"""BRISQUE, by the package of that name (Apache-2.0), which is an extra: pip install '.[brisque]'.

Mittal, Moorthy, Bovik: No-reference image quality assessment in the spatial domain, 2012.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.extras import check_extra

LARGEST = 4_000_000
"""Pixels up to which it is told."""
SMALLEST = 32


class Brisque:
    """The scorer, with the model that its authors trained on LIVE."""

    def __init__(self) -> None:
        """Load it.

        Raises:
            RecipeError: it is not installed.
        """
        check_extra("scoring.brisque", "brisque", "brisque", "cv2")
        from brisque import BRISQUE

        class Scorer(BRISQUE):  # type: ignore[misc]  # untyped
            def scale_features(self, features: Any) -> Any:
                """Some are arrays of one number, which numpy from 2.4 on does not take for a number."""
                return super().scale_features([np.squeeze(feature) for feature in features])

        self._scorer: Any = Scorer(url=False)

    def __call__(self, image: npt.NDArray[np.uint8]) -> float | None:
        """About 0 to 100, lower is better, of an image [H, W, 3]; None if it is too large, too small or flat.

        It agrees weakly with people (rank correlation 0.2 to 0.3 on photographs as they are taken), and likes
        invented texture.
        """
        height, width = image.shape[:2]
        if min(height, width) < SMALLEST or height * width > LARGEST:
            return None
        with np.errstate(all="ignore"):  # a flat picture has no distribution to be fitted
            score = float(self._scorer.score(image))
        return score if np.isfinite(score) else None
