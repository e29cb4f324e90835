"""Marks: where scratches, dust, hairs, folds, tears, holes and missing corners cover a picture, found before all else.

A tile shows little of what tells them from the picture: that a line goes on, that a corner is gone. They are looked for
in a view of the whole image, by a small network of its own, which learns from many more pictures than the decoder
does. What it finds is filled as if a mask had told of it, but that pixels beside it may change, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.restoration.overview import ViewNet, connected, enlarged, is_sure
from pipeline.restoration.rows import Rows

Pixels = npt.NDArray[Any]

LIKELY = 0.5
"""Logit from which on a pixel is taken for covered, where it touches one that is `SURE`."""
SURE, SURE_LARGER = 7.0, 8.0
"""Logit that one pixel at least of each mark must have, in views of the smallest side and in larger ones: less is found
in many pictures without any (docs/evaluation.md). The weights have learned from few sharp large pictures."""
LARGER = 1.5
"""By so much logits are too large, measured: covered pixels count for more in learning, since few are."""
SUREST = 0.99
"""More than this is never believed."""


class MarkHead(ViewNet):
    """Views of whole images to the logit that each pixel is covered: [N, 1, S, S]."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        """`widths`: as `ViewNet` takes them."""
        super().__init__(widths, planes=1)
        assert self.leave.bias is not None
        torch.nn.init.constant_(self.leave.bias, -4.0)  # few pixels are covered


class Marks:
    """Where an image is covered."""

    def __init__(self, logits: Tensor, size: tuple[int, int]) -> None:
        """Of an image of this height and width, by what `MarkHead` says of its view: [1, 1, S, S]."""
        likely, marks = logits > LIKELY, is_sure(logits, SURE, SURE_LARGER)
        self.any = bool(marks.any())
        """Whether it is covered anywhere."""
        if self.any:
            marks = torch.from_numpy(connected(marks, likely))
        self._logits = torch.where(likely & ~marks, torch.full_like(logits, LIKELY - 1), logits)
        self._size = size

    def rows(self, top: int, bottom: int) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float16]]:
        """Which pixels of these rows are covered, and how probable that is: [n, W] each."""
        shape = bottom - top, self._size[1]
        covered, probable = np.empty(shape, np.bool_), np.empty(shape, np.float16)
        for here, logits in enlarged(self._logits, self._size, top, bottom):
            covered[here] = (logits[0] > LIKELY).numpy()
            probable[here] = torch.sigmoid(logits[0] - LARGER).clamp(max=SUREST).numpy()
        return covered, probable


class Marked:
    """An image of which what is covered is missing, too."""

    def __init__(self, image: Rows, marks: Marks) -> None:
        self._image, self._marks = image, marks

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self._image.size

    def rows(self, top: int, bottom: int) -> tuple[Pixels, npt.NDArray[np.bool_] | None]:
        """These rows, and where they are missing or covered."""
        pixels, missing = self._image.rows(top, bottom)
        covered, _ = self._marks.rows(top, bottom)
        return pixels, covered if missing is None else covered | missing


def find_marks(head: MarkHead, views: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> list[Marks | None]:
    """Look for marks in the views of images of these heights and widths; None for those that have none."""
    marks = [Marks(logits, size) for logits, size in zip(head.say(views), sizes, strict=True)]
    return [one if one.any else None for one in marks]
