"""New models from parts: a text encoder, an image encoder and a mapping, by name."""

from __future__ import annotations

import dataclasses
from typing import Any

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
STAIN_WIDTHS = MARK_WIDTHS
"""Of its stain head, if it gets one."""
CRITIC_WIDTHS = (40, 80, 128)
"""Of its critic, if it gets one."""


HEADS: dict[str, dict[str, Any]] = {
    "tone": {"tone_widths": TONE_WIDTHS},
    "marks": {"mark_widths": MARK_WIDTHS},
    "stains": {"stain_widths": STAIN_WIDTHS},
    "critic": {"critic_widths": CRITIC_WIDTHS},
    "expert": {"expert": True},
    "painter": {"painter": True},
}
"""Parts that a model may be without: what their sizes are called in its shape, and those of new ones."""


def with_head(model: CompactModel, part: str, seed: int = 0) -> CompactModel:
    """The model, with one of `HEADS` that has not been trained if it has none."""
    if getattr(model, part) is not None:
        return model
    torch.manual_seed(seed)
    larger = CompactModel(dataclasses.replace(model.config, **HEADS[part]))
    fresh, weights = larger.state_dict(), model.state_dict()
    heard = [name for name in weights if weights[name].shape != fresh[name].shape]
    for name in heard:  # judge and critic hear a tone head last
        more = fresh[name].shape[-1] - weights[name].shape[-1]
        weights[name] = F.pad(weights[name], (0, more), value=float(name.endswith("spread")))
    larger.load_state_dict(fresh | weights)
    if part == "stains" and model.config.mark_widths == STAIN_WIDTHS and larger.stains and larger.marks:
        larger.stains.begin_as(larger.marks)
    if part == "painter" and larger.painter is not None:
        larger.painter.begin_as(larger.image_encoder, larger.fusion, larger.coarse_head)
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
