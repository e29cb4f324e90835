"""CLIPScore: how well a caption describes a picture, where the recipe names a CLIP model.

Hessel, Holtzman, Forbes, Le Bras, Choi: CLIPScore: a reference-free evaluation metric for image captioning, 2021; 100
times the cosine, as torchmetrics counts it. What the fused encoders say is called caption agreement, another number.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from pipeline.errors import ModelError
from pipeline.redaction import redacted, without_secrets

LONGEST = 8
"""Times its shorter side that is looked at of an image."""


class ClipScore:
    """A CLIP model on a device."""

    def __init__(self, place: str, device: torch.device) -> None:
        """Load it from a folder, or by a name that Hugging Face's cache on this machine knows.

        Raises:
            ModelError: it is not there, or not CLIP.
        """
        place = str(Path(place).expanduser()) if Path(place).expanduser().is_dir() else place
        self._device = device
        try:
            options = {"local_files_only": True, "use_safetensors": True, "dtype": torch.float32}
            self._model: Any = CLIPModel.from_pretrained(place, **options).to(device).eval()
            self._tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=True)
            self._processor = CLIPImageProcessorPil.from_pretrained(place, local_files_only=True)
        except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
            said = without_secrets(str(error))[:200]
            raise ModelError(
                f"scoring.clip: no CLIP model of transformers at {redacted(place)} ({said}); give a folder that "
                "holds its config.json, model.safetensors, tokenizer and preprocessor_config.json"
            ) from error

    @torch.inference_mode()
    def __call__(self, image: npt.NDArray[np.uint8], caption: str) -> float:
        """CLIPScore, 0 to 100, of an image [H, W, 3] and its caption; higher is better."""
        pixels = self._processor(images=[Image.fromarray(_middle(image))], return_tensors="pt")["pixel_values"]
        length = self._model.config.text_config.max_position_embeddings
        text = self._tokenizer([caption], truncation=True, max_length=length, return_tensors="pt")
        out = self._model(pixel_values=pixels.to(self._device), **text.to(self._device))
        return 100 * max(0.0, float((out.image_embeds * out.text_embeds).sum()))


def _middle(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Of a panorama its middle: the processor enlarges the whole before it takes a square of it."""
    height, width = image.shape[:2]
    reach = LONGEST * min(height, width)
    top, left = (max(0, (length - reach) // 2) for length in (height, width))
    return np.ascontiguousarray(image[top : top + reach, left : left + reach])
