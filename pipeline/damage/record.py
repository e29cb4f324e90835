"""The record of what is wrong with an image: written by the synthesis, predicted by the model."""

from __future__ import annotations

import dataclasses

MEASURES = ("noise_sigma", "jpeg_loss", "blur_sigma", "downscale", "fading", "missing")
"""What a damage vector holds, in this order; 0 means none. `jpeg_loss` is 100 - quality, `downscale` factor - 1."""
FADING = MEASURES.index("fading")
"""Its place among them."""
SORTS = ("noise", "jpeg", "blur", "downscale", "fading", "missing")
"""Plain names of the same."""
SCALES = (25.0, 50.0, 1.0, 1.0, 0.3, 0.1)
"""What is much of each."""


@dataclasses.dataclass(frozen=True)
class Damage:
    """What is wrong with one image. The defaults mean: nothing."""

    noise_sigma: float = 0.0
    """Standard deviation of the noise, in units of 0..255."""
    jpeg_quality: float = 100.0
    """Quality of the worst JPEG compression, 1 to 100 as libjpeg counts; 100: no trace of any."""
    blur_sigma: float = 0.0
    """Width of the blur in pixels: standard deviation of a Gaussian, or of a line of motion."""
    downscale: float = 1.0
    """Factor by which the image was once smaller than its pixels say."""
    fading: float = 0.0
    """Share of contrast, colour and even light lost to fading, yellowing, toning, a cast or uneven light, 0..1."""
    missing: float = 0.0
    """Share of the area that is missing, covered or stained, 0..1."""
    stained: float = 0.0
    """Share of the area from which stains were taken away, 0..1. Found alone: a record has them in `missing`."""
    screen: float = 0.0
    """Pixels from dot to dot of a halftone print; 0: none. Recorded, not predicted."""
    grey: bool = False
    """No colours: all three channels are equal."""

    @property
    def clean(self) -> bool:
        """Nothing is wrong; to have no colours is not wrong."""
        return not any(self.vector()) and not self.screen and not self.stained

    def vector(self) -> list[float]:
        """The measures in the order of `MEASURES`."""
        return [
            self.noise_sigma,
            100 - self.jpeg_quality,
            self.blur_sigma,
            self.downscale - 1,
            self.fading,
            self.missing,
        ]

    @classmethod
    def from_vector(cls, values: list[float], grey: bool) -> Damage:
        """The inverse of `vector`; values are clipped to their ranges."""
        noise, jpeg_loss, blur, downscale, fading, missing = (max(0.0, value) for value in values)
        return cls(
            noise_sigma=noise,
            jpeg_quality=max(1.0, 100 - jpeg_loss),
            blur_sigma=blur,
            downscale=1 + downscale,
            fading=min(1.0, fading),
            missing=min(1.0, missing),
            grey=grey,
        )
