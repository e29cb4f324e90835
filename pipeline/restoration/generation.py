"""Pictures from captions, for images that are lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.restoration.generator import Generator
from pipeline.restoration.request import Request
from pipeline.restoration.restorer import Restorer
from pipeline.restoration.text import text_encoder_of
from pipeline.restoration.weights import load_generator

LARGER = 2
"""How many times larger than the generator's the pictures are that compact makes of them."""
TOGETHER = 8
"""Pictures made together; always so many (padded)."""


class Picture(NamedTuple):
    """What was made of a caption."""

    pixels: npt.NDArray[np.uint8]  # [H, W, 3]
    agreement: float | None
    """How well caption and picture agree, 0..1."""


class PictureMaker:
    """Makes small pictures, and larger ones of them by a restorer."""

    def __init__(
        self,
        model: Generator,
        restorer: Restorer,
        digest: str = "",
        text_encoder: str | None = None,
        downloads: bool = False,
    ) -> None:
        """With a restorer for the same captions, on its device; `text_encoder` and `downloads` as for `Restorer`.

        Raises:
            ModelError: the generator's text encoder cannot be loaded, or is another than it was trained with.
        """
        config = model.config
        self.name, self.license, self.digest = config.name, config.license, digest
        self._device = restorer.device
        self._model = model.eval().to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._restorer = restorer
        shared = restorer.text  # wherever that lies now; and it is there once
        is_same = shared.digest == config.text_sha256 and shared.tokens == config.text_tokens
        self._text = shared if is_same else text_encoder_of(config, self._device, text_encoder, downloads)

    @classmethod
    def from_pretrained(cls, place: str, restorer: Restorer, **options: Any) -> PictureMaker:
        """Load a generator from a folder or a URI; `options` as for `PictureMaker`.

        Raises:
            ModelError: there is none, or it cannot be loaded.
        """
        model, digest = load_generator(place)
        return cls(model, restorer, digest, **options)

    def __call__(self, captions: Sequence[str], seeds: Sequence[int]) -> list[Picture]:
        """A picture of each caption; it follows from caption and seed alone."""
        made: list[Picture] = []
        for start in range(0, len(captions), TOGETHER):
            some, own = list(captions[start : start + TOGETHER]), list(seeds[start : start + TOGETHER])
            large = F.interpolate(self.small(some, own), scale_factor=LARGER, mode="bicubic").clamp(0, 1)
            requests = [
                Request(pixels.permute(1, 2, 0).cpu().numpy(), caption=caption)
                for pixels, caption in zip(large, some, strict=True)
            ]
            results = self._restorer.restore_batch(requests)
            made += [Picture(result.pixels, result.agreement) for result in results]
        return made

    def small(self, captions: Sequence[str], seeds: Sequence[int]) -> Tensor:
        """As the generator makes them, of `TOGETHER` captions at most: [N, 3, side, side], 0..1."""
        some, own = list(captions), list(seeds)
        spare = TOGETHER - len(some)
        features = self._text(some + some[:1] * spare)
        made: Tensor = self._model.pictures(features.tokens, features.absent, own + own[:1] * spare)
        return made[: len(some)]
