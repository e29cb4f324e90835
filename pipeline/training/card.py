"""The model card that goes with trained weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import PurePath

from pipeline.restoration.generator import Generator
from pipeline.restoration.model import CompactModel
from pipeline.training.loop import Plan, Progress

_CARD = """# {name}

{does}

- Parameters: {parameters:.2f} M, stored as float16. The text encoder, {text_encoder}, is not included.
{backbone}- Trained on: {data}. The weights' use is bound by what those images' licences allow.
- Started from: {start}
- Training: {plan}
- On held-out photos after {steps} steps ({unit}): {validation}

{warning}
"""
_TASKS = {
    CompactModel: (
        "Restores photographs: noise, JPEG artefacts, blur, low resolution, changes of tone, scratches, stains and "
        "holes, and\ngives black-and-white pictures colours that follow a caption and references.",
        "PSNR in dB",
        "Colours and the content of holes are invented: plausible, not true.",
    ),
    Generator: (
        "Makes small pictures from captions.",
        "mean squared error of the flow, with the true caption and with another's",
        "All of a picture is invented: it shows what the caption may have meant, not what there was.",
    ),
}


def model_card(
    model: CompactModel | Generator, plan: Plan, data: Sequence[str], last: Progress | None, start: str | None = None
) -> str:
    """A card from what is known at the end of a training run; the data's licence is the trainer's to add."""
    validation = ", ".join(f"{name} {value:.4g}" for name, value in last.validation.items()) if last else "not measured"
    facts = {
        field.name: getattr(plan, field.name)
        for field in dataclasses.fields(plan)
        if field.name not in ("mixture", "start")
    }
    begun = (
        f"{start} (SHA-256 {plan.start}), the terms of whose card apply to these weights too" if start else "nothing"
    )
    does, unit, warning = _TASKS[type(model)]
    return _CARD.format(
        name=model.config.name,
        does=does,
        unit=unit,
        warning=warning,
        text_encoder=model.config.text_encoder,
        backbone=_backbone(model),
        parameters=sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        data=", ".join(PurePath(path).name for path in data),
        start=begun,
        plan=", ".join(f"{name} {value}" for name, value in facts.items()),
        steps=last.step if last else plan.steps,
        validation=validation or "not measured",
    )


def _backbone(model: CompactModel | Generator) -> str:
    """A line on the image encoder, if others made it."""
    if isinstance(model, Generator) or model.config.backbone is None:
        return ""
    trained = "its weights among these, under their own licence" if model.config.backbone["loaded"] else "trained here"
    return f"- Image encoder: {model.config.image_encoder} ({model.config.backbone['model_type']}), {trained}.\n"
