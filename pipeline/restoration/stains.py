"""Stains: where foxing and dried puddles darken and tint a picture, and how much, taken away before all else.

The picture still shows through: divided by the light that a stain leaves, it is what it was. A tile shows little of
what tells a stain from a brown thing, so they are looked for in a view of the whole image, as marks are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.damage.tone import LUMA
from pipeline.restoration.overview import ViewNet, connected, enlarged, is_sure
from pipeline.restoration.rows import Rows
from pipeline.restoration.sight import has_no_colours
from pipeline.restoration.tiles import as_floats

Pixels = npt.NDArray[Any]

LIKELY = 0.0
"""Logit from which on a pixel is taken for stained, where it touches one of a stain."""
SURE, SURE_LARGER = 6.0, 8.0
"""Logit that one pixel at least of an image must have, in views of the smallest side and in larger ones: less is found
in many pictures without any (docs/evaluation.md)."""
FURTHER = 1.0
"""The same of each further stain: they seldom come alone."""
SOFT = 4
"""Pixels of the view by which a stain goes on beyond what is likely: its edge is soft."""
DARKEST = 2.0
"""Density, as a natural logarithm, beyond which nothing shows through."""


class StainHead(ViewNet):
    """Views of whole images [N, 3, S, S] to the logit that each pixel is stained, and to what a stain has added to the
    density of red, green and blue there: [N, 4, S, S]."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        """`widths`: as `ViewNet` takes them."""
        super().__init__(widths, planes=4)
        assert self.leave.bias is not None
        with torch.no_grad():
            self.leave.bias.copy_(torch.tensor([-4.0, 0.0, 0.0, 0.0]))  # little is stained

    def begin_as(self, other: ViewNet) -> None:
        """Take all weights of another of this shape but the last layer's."""
        mine = {name: weights for name, weights in self.state_dict().items() if name.startswith("leave.")}
        self.load_state_dict(other.state_dict() | mine)


class Stains:
    """Where an image is stained."""

    def __init__(self, planes: Tensor, size: tuple[int, int]) -> None:
        """Of an image of this height and width, by what `StainHead` says of its view: [1, 4, S, S]."""
        logits = planes[:, :1]
        self.probability = float(torch.sigmoid(logits.max()))
        """That it is stained anywhere: of the surest pixel."""
        self.any = bool(is_sure(logits, SURE, SURE_LARGER).any())
        """Whether it is stained anywhere."""
        self.area = 0.0
        """Share of it that is, 0..1."""
        if self.any:
            stained = torch.from_numpy(connected(logits > FURTHER, logits > LIKELY)).float()
            self.area = float(stained.mean())
            soft = F.max_pool2d(stained, 2 * SOFT + 1, stride=1, padding=SOFT)
            self._density = planes[:, 1:].clamp(0, DARKEST) * soft
        self._size = size

    def undone(self, pixels: Pixels, top: int, grey: bool) -> npt.NDArray[np.float32]:
        """Rows [n, W, 3] of the image, the first of which is `top`, as they were: float32, 0..1 is black to white.

        What is `grey` stays so.
        """
        out = np.empty(pixels.shape, np.float32)
        for here, density in enlarged(self._density, self._size, top, top + len(pixels)):
            if grey:
                density = (density * density.new_tensor(LUMA)[:, None, None]).sum(0)
            out[here] = (as_floats(pixels[here]) * density.exp()).permute(1, 2, 0).numpy()
        return out


class Unstained:
    """An image without its stains."""

    def __init__(self, image: Rows, stains: Stains) -> None:
        self._image, self._stains = image, stains
        self._grey = has_no_colours(image)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self._image.size

    def rows(self, top: int, bottom: int) -> tuple[Pixels, npt.NDArray[np.bool_] | None]:
        """These rows, and where they are missing."""
        pixels, missing = self._image.rows(top, bottom)
        return self._stains.undone(pixels, top, self._grey), missing


def find_stains(head: StainHead, views: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> list[Stains | None]:
    """Look for stains in the views of images of these heights and widths; None for those that have none."""
    stains = [Stains(planes, size) for planes, size in zip(head.say(views), sizes, strict=True)]
    return [one if one.any else None for one in stains]
