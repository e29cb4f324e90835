"""CLIPScore: how well a caption describes a picture, where the recipe names a CLIP model.

Hessel, Holtzman, Forbes, Le Bras, Choi: CLIPScore: a reference-free evaluation metric for image captioning, 2021; 100
times the cosine, as torchmetrics counts it. What the fused encoders say is called caption agreement, another number.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from pipeline.errors import ModelError

BATCH = 16


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
            self._model: Any = CLIPModel.from_pretrained(place, local_files_only=True).to(device).eval()
            self._tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=True)
            self._processor = CLIPImageProcessorPil.from_pretrained(place, local_files_only=True)
        except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
            raise ModelError(
                f"scoring.clip: no CLIP model of transformers at {place!r} ({str(error)[:200]}); give a folder that "
                "holds its config.json, model.safetensors, tokenizer and preprocessor_config.json"
            ) from error

    @torch.inference_mode()
    def __call__(self, images: Sequence[npt.NDArray[np.uint8]], captions: Sequence[str]) -> Tensor:
        """CLIPScore [N], 0 to 100, of images [H, W, 3] and their captions; higher is better."""
        scores = []
        for start in range(0, len(images), BATCH):
            batch = [Image.fromarray(image) for image in images[start : start + BATCH]]
            pixels = self._processor(images=batch, return_tensors="pt")["pixel_values"].to(self._device)
            text = self._tokenizer(
                list(captions[start : start + BATCH]),
                padding=True,
                truncation=True,
                max_length=self._model.config.text_config.max_position_embeddings,
                return_tensors="pt",
            ).to(self._device)
            out = self._model(pixel_values=pixels, **text)
            scores.append(100 * (out.image_embeds * out.text_embeds).sum(1).clamp_min(0).float())
        return torch.cat(scores)
