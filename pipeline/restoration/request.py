"""What is asked of the Restorer: one image with what is known of it, and the checks that it can be taken."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.damage.record import SCALES, SORTS, Damage
from pipeline.imaging.mask import lost_in, lost_pixels
from pipeline.imaging.pillow import from_pillow
from pipeline.imaging.working import to_working

Pixels = npt.NDArray[Any]

MOST_CAPTIONS = 5
"""That are read of one image: each is a further look at it."""


@dataclasses.dataclass(frozen=True)
class Request:
    """One image to restore."""

    pixels: Pixels
    """[H, W, 3], uint8, uint16, or float32 with 0..1 as black to white (values beyond are taken as they are)."""
    caption: str | None = None
    further_captions: tuple[str, ...] = ()
    """Others of the same picture: a grey one gets the mean of the colours that each speaks for."""
    mask: npt.NDArray[np.bool_] | None = None
    """[H, W], true where the picture is lost."""
    only_mask: bool = True
    """Change only the pixels of the mask, if there is one, and give no colours."""
    unstained: Pixels | None = None
    """The same pixels, float32, without stains that were found: what is restored; None: there are none."""
    certainty: npt.NDArray[np.float16] | None = None
    """[H, W], 0..1, how probable it is that a pixel of the mask is lost; None: that is certain."""
    references: tuple[Pixels, ...] = ()
    """Other pictures of the same subject, [h, w, 3] uint8 each."""
    colourise: bool = False
    """Colour a grey picture."""
    keep_luminance: bool = True
    """With `colourise`: leave the luminance as it is; otherwise it is restored too."""
    strength: float = 1.0
    """How much of the change is made, 0..1; what is lost is always filled."""
    strengths: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """The same for kinds of damage, by a name of `SORTS`, where it differs."""

    @property
    def seen(self) -> Pixels:
        """[H, W, 3]: what is restored."""
        return self.pixels if self.unstained is None else self.unstained

    @property
    def keeps_outside(self) -> bool:
        """Whether there is a mask outside of which nothing may change."""
        return self.mask is not None and self.only_mask

    def strength_for(self, damage: Damage) -> float:
        """How much of the change is made in an image with this damage: each kind counts as far as it was found."""
        if not self.strengths:
            return self.strength
        found = {name: value / scale for name, value, scale in zip(SORTS, damage.vector(), SCALES, strict=True)}
        found.pop("missing")
        total = sum(found.values())
        if not total:
            return self.strength
        return sum(share * self.strengths.get(name, self.strength) for name, share in found.items()) / total


def as_pixels(image: Image.Image | Pixels) -> Pixels:
    """A picture as [H, W, 3], uint8, uint16 or float32.

    PIL images are turned upright, as their EXIF says, and come to sRGB by their profile, without their alpha.

    Raises:
        TypeError: neither a PIL image nor an array.
        ValueError: no pixels, an array of another shape or type, or with NaN in it.
    """
    if isinstance(image, Image.Image):
        image = to_working(from_pillow(image).upright()).pixels
    if not isinstance(image, np.ndarray):
        raise TypeError(
            f"expected a PIL image or an array, found {type(image).__name__}; open files with PIL.Image.open"
        )
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[..., 0]
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, axis=2)
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"expected an image [H, W, 3] or [H, W], found an array of shape {list(image.shape)}")
    if not image.size:
        raise ValueError("the image has no pixels")
    if np.issubdtype(image.dtype, np.floating):
        if not np.isfinite(image).all():
            raise ValueError("the image holds NaN or infinite values")
        return image.astype(np.float32, copy=False)
    if image.dtype not in (np.uint8, np.uint16):
        raise ValueError(
            f"expected uint8, uint16, or float32 in 0..1, found {image.dtype}; divide integers by their white first"
        )
    return image


def as_references(references: Iterable[Image.Image | Pixels] | Image.Image | Pixels | None) -> tuple[Pixels, ...]:
    """References as `as_pixels` gives them; one alone counts as a list of it, None as none."""
    if references is None:
        return ()
    if isinstance(references, Image.Image | np.ndarray):
        references = (references,)
    return tuple(as_pixels(reference) for reference in references)


def as_captions(value: object) -> tuple[str, ...]:
    """The texts that are not blank, of a string or a list of strings, each once; at most `MOST_CAPTIONS`."""
    texts = value if isinstance(value, list | tuple) else [value]
    told = dict.fromkeys(text for text in texts if isinstance(text, str) and text.strip())
    return tuple(told)[:MOST_CAPTIONS]


def as_mask(mask: Image.Image | Pixels, size: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """A mask as [H, W], true where the picture is lost (see `lost_pixels`).

    Raises:
        TypeError: neither a PIL image nor an array.
        ValueError: it has another size than the image.
    """
    if isinstance(mask, Image.Image):
        lost = lost_in(from_pillow(mask).upright())
    elif isinstance(mask, np.ndarray):
        lost = lost_pixels(mask)
    else:
        raise TypeError(f"expected a PIL image or an array as mask, found {type(mask).__name__}")
    if lost.shape != tuple(size):
        raise ValueError(f"the mask is {list(lost.shape)} and the image {list(size)} pixels; they must be of one size")
    return lost
