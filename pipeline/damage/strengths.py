"""How strong damage is: a range for every parameter, in physical units."""

from __future__ import annotations

from typing import NamedTuple

Range = tuple[float, float]
"""From weak to strong."""

LEVELS = {"weak": 0.15, "medium": 0.5, "strong": 1.0}
"""Points in the ranges of `Strengths` that tests and pictures show."""


class Strengths(NamedTuple):
    """Ranges from which strengths are drawn, uniformly; each from weak to strong."""

    noise_sigma: Range = (2.0, 55.0)
    """Of 0..255."""
    grain_size: Range = (0.3, 1.2)
    """Pixels."""
    jpeg_quality: Range = (92.0, 8.0)
    blur_sigma: Range = (0.5, 2.5)
    """Pixels."""
    motion: Range = (3.0, 14.0)
    """Length in pixels."""
    downscale: Range = (1.5, 4.2)
    """Factor."""
    fading: Range = (0.1, 0.6)
    """Share of contrast lost."""
    cast: Range = (0.1, 0.5)
    """Largest share by which a channel is off."""
    sepia: Range = (0.2, 1.0)
    """Share of the colours replaced."""
    yellowing: Range = (0.08, 0.6)
    """Optical density gained in blue."""
    uneven: Range = (0.3, 2.0)
    """Stops from the brightest place to the darkest."""
    halftone: Range = (2.5, 7.0)
    """Pixels from dot to dot."""
    holes: Range = (0.03, 0.3)
    """Share of the area."""
    corners: Range = (0.01, 0.12)
    """Share of the area."""
    stains: Range = (0.02, 0.25)
    """Share of the area."""
    scratches: Range = (2, 12)
    """Lines an image."""
    dust: Range = (8, 90)
    """Specks an image."""
    hairs: Range = (1, 8)
    """Fibres an image."""
    foxing: Range = (6, 70)
    """Spots an image."""
    folds: Range = (1, 3)
    """Creases an image."""
    tears: Range = (1, 4)
    """Rips an image."""

    def at(self, level: float) -> Strengths:
        """Every range narrowed to one point, 0 its weak end, 1 its strong end."""
        return Strengths(*((weak + level * (strong - weak),) * 2 for weak, strong in self))

    def milder(self) -> Strengths:
        """Every range brought half way to the weakest that is usual."""
        usual = Strengths._field_defaults.values()
        halfway = ([(weakest + end) / 2 for end in ends] for ends, (weakest, _) in zip(self, usual, strict=True))
        return Strengths(*((weak, strong) for weak, strong in halfway))
