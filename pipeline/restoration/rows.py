"""Images that are read band by band, so that they need not be in memory whole."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[Any]


class Rows(Protocol):
    """An image."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""

    def rows(self, top: int, bottom: int) -> tuple[Pixels, npt.NDArray[np.bool_] | None]:
        """These rows [n, W, 3], of a type that `Request` takes, and where they are missing, [n, W] (None: nowhere)."""


class Whole:
    """An image in memory."""

    def __init__(self, pixels: Pixels, mask: npt.NDArray[np.bool_] | None = None) -> None:
        self._pixels, self._mask = pixels, mask

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self._pixels.shape[0], self._pixels.shape[1]

    def rows(self, top: int, bottom: int) -> tuple[Pixels, npt.NDArray[np.bool_] | None]:
        """These rows, and where they are missing."""
        return self._pixels[top:bottom], None if self._mask is None else self._mask[top:bottom]
