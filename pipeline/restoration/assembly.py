"""New models from parts: a text encoder, an image encoder and a mapping, by name."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F

from pipeline.errors import ModelError
from pipeline.redaction import redacted
from pipeline.restoration.backbone import Backbone, backbone_shape, load_backbone
from pipeline.restoration.config import ModelConfig
from pipeline.restoration.local import said
from pipeline.restoration.model import CompactModel
from pipeline.restoration.text import MINILM, text_encoder

TONE_WIDTHS = (32, 64, 128, 192)
"""Of a new model's tone head."""
MARK_WIDTHS = (16, 32, 64, 128)
"""Of its mark head."""
JUDGED = "judge.body.0.weight"
"""What the judge hears stands in its columns; what a tone head tells in the last."""


def with_tone(model: CompactModel, seed: int = 0) -> CompactModel:
    """The model, with a tone head that has not been trained if it has none."""
    if model.tone is not None:
        return model
    torch.manual_seed(seed)
    larger = CompactModel(dataclasses.replace(model.config, tone_widths=TONE_WIDTHS))
    weights = larger.state_dict() | model.state_dict()
    narrow = weights[JUDGED]
    weights[JUDGED] = F.pad(narrow, (0, larger.state_dict()[JUDGED].shape[1] - narrow.shape[1]))
    larger.load_state_dict(weights)
    return larger


def with_marks(model: CompactModel, seed: int = 0) -> CompactModel:
    """The model, with a mark head that has not been trained if it has none."""
    if model.marks is not None:
        return model
    torch.manual_seed(seed)
    larger = CompactModel(dataclasses.replace(model.config, mark_widths=MARK_WIDTHS))
    larger.load_state_dict(larger.state_dict() | model.state_dict())
    return larger


def assemble(
    text: str = MINILM,
    image: str = "compact",
    mapping: str = "attention",
    seed: int = 0,
    downloads: bool = False,
    sizes: ModelConfig | None = None,
) -> CompactModel:
    """A model that has not been trained, but for what its encoders bring along.

    Args:
        text: as `text.text_encoder` takes it.
        image: `compact`, or as `backbone.backbone_shape` takes it.
        mapping: `attention` or `graph`.
        seed: draws the weights.
        downloads: whether the Hugging Face hub may be asked.
        sizes: all other sizes.

    Raises:
        ModelError: an encoder cannot be loaded.
        RecipeError: a package is missing.
    """
    base = sizes or ModelConfig(tone_widths=TONE_WIDTHS, mark_widths=MARK_WIDTHS)
    encoder = text_encoder(text, base.text_tokens, torch.device("cpu"), downloads)
    shape, folder = (None, None) if image == "compact" else backbone_shape(image, downloads)
    config = dataclasses.replace(
        base,
        text_encoder=text,
        text_sha256=encoder.digest,
        text_width=encoder.width,
        image_encoder=image,
        backbone=shape,
        mapping=mapping,
    )
    torch.manual_seed(seed)
    try:
        model = CompactModel(config)
    except (RuntimeError, ValueError, TypeError) as error:
        if shape is None:
            raise
        raise ModelError(
            f"the image encoder {redacted(image)!r} cannot be used on pictures of {base.thumbnail} x {base.thumbnail} "
            f"pixels ({said(error)})"
        ) from error
    if folder is not None and isinstance(model.image_encoder, Backbone):
        load_backbone(model.image_encoder, folder)
    return model
