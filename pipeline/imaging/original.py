"""What an image file holds, in its own numbers: nothing of it may be lost on the way to the output."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pipeline.imaging.metadata import Metadata, orientation_of

Samples = npt.NDArray[Any]
Space = Literal["grey", "rgb", "cmyk", "lab"]
COLOURS: dict[Space, int] = {"grey": 1, "rgb": 3, "cmyk": 4, "lab": 3}
"""Channels of each space; those that follow in a file are alpha, or what else it holds."""


@dataclasses.dataclass(frozen=True)
class Original:
    """An image file's content; upright, where nothing else is said."""

    samples: Samples
    """[H, W, C], uint8, uint16 or float: the colours first, then alpha and further channels. CMYK counts ink: 0 is
    none. Of Lab, a and b lie around half of `white`."""
    space: Space
    white: float
    """The sample that means white (in Lab: lightness 100; in CMYK: all of an ink)."""
    bits: int
    """Of a sample in the file: 1 to 16, or 32 and 64 for floats."""
    format: str
    """The file's format in lower case, such as `jpeg`."""
    alpha: bool = False
    """Whether the first channel after the colours is opacity."""
    premultiplied: bool = False
    """Whether the colours are multiplied by it."""
    extra: tuple[int, ...] = ()
    """What a TIFF file says of each channel after the colours, by its numbers."""
    metadata: Metadata = dataclasses.field(default_factory=Metadata)
    missing: npt.NDArray[np.bool_] | None = None
    """[H, W], true where a broken file holds no picture any more; None: it is whole."""
    broken: str = ""
    """What is wrong with the file, if it is broken."""
    notes: tuple[str, ...] = ()
    """What a person should know of how it was read, in words."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.samples.shape[0], self.samples.shape[1]

    @property
    def colours(self) -> Samples:
        """[H, W, 1, 3 or 4], without alpha and further channels."""
        return self.samples[..., : COLOURS[self.space]]

    @property
    def is_float(self) -> bool:
        """Whether samples are floats."""
        return bool(np.issubdtype(self.samples.dtype, np.floating))

    @property
    def layout(self) -> str:
        """Space, further channels and depth in words, such as `rgb+alpha, 16 bits`."""
        extra = self.samples.shape[2] - COLOURS[self.space] - self.alpha
        parts = [self.space, *(["alpha"] if self.alpha else []), *([f"{extra} more"] if extra else [])]
        return f"{'+'.join(parts)}, {self.bits} bit{'s' * (self.bits > 1)}{' float' if self.is_float else ''}"

    def upright(self) -> Original:
        """Turned as EXIF's orientation says, which then says nothing any more."""
        orientation = orientation_of(self.metadata.exif)
        return dataclasses.replace(
            self,
            samples=turned(self.samples, orientation),
            missing=None if self.missing is None else turned(self.missing, orientation),
            metadata=self.metadata.made_upright(),
        )

    def without_numbers(self) -> npt.NDArray[np.bool_] | None:
        """[H, W], where floats are no numbers; None: nowhere."""
        if not self.is_float:
            return None
        lost = np.logical_not(np.isfinite(self.colours).all(2))
        return lost if lost.any() else None

    def with_colours(self, colours: Samples) -> Original:
        """The same with other colours [H, W, 1, 3 or 4]; what follows them stays."""
        further = self.samples[..., COLOURS[self.space] :]
        samples = np.concatenate([colours.astype(self.samples.dtype, copy=False), further], axis=2)
        return dataclasses.replace(self, samples=samples)


def broken_note(share: float) -> str:
    """What is said of a file of which so much of the picture is missing."""
    return f"the file is broken: {share:.0%} of the picture is missing"


def pixels_sha256(picture: Original) -> str:
    """SHA-256 of a picture's samples, upright, with their shape and type: the same however a file compresses them."""
    samples = np.ascontiguousarray(picture.samples)
    digest = hashlib.sha256(hash_head(picture, samples.shape))
    digest.update(samples.tobytes() if not samples.size else samples.data.cast("B"))
    return digest.hexdigest()


def hash_head(picture: Original, shape: tuple[int, ...]) -> bytes:
    """What is hashed ahead of samples."""
    return f"{shape} {picture.samples.dtype.str} {picture.space} {picture.bits}".encode()


def turned(samples: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """[H, W, …] turned upright, as EXIF's orientation (1 to 8) says; others are taken for 1."""
    if orientation in (5, 6, 7, 8):
        samples = samples.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        samples = samples[::-1]
    if orientation in (2, 3, 6, 7):
        samples = samples[:, ::-1]
    return np.ascontiguousarray(samples)
