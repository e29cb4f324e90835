"""The model card that goes with trained weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import PurePath

from pipeline.restoration.model import CompactModel
from pipeline.training.loop import Progress, TrainingPlan

_CARD = """# {name}

Restores photographs: noise, JPEG artefacts, blur, low resolution, changes of tone, scratches, stains and holes, and
gives black-and-white pictures colours that follow a caption and references.

- Parameters: {parameters:.2f} M, stored as float16. The text encoder, all-MiniLM-L6-v2, is not included.
- Trained on: {data}. The weights' use is bound by what those images' licences allow.
- Started from: {start}
- Training: {plan}
- On held-out photos, PSNR in dB after {steps} steps: {validation}

Colours and the content of holes are invented: plausible, not true.
"""


def model_card(
    model: CompactModel, plan: TrainingPlan, data: Sequence[str], last: Progress | None, start: str | None = None
) -> str:
    """A card from what is known at the end of a training run; the data's licence is the trainer's to add."""
    validation = ", ".join(f"{name} {value:.2f}" for name, value in last.validation.items()) if last else "not measured"
    facts = {
        field.name: getattr(plan, field.name)
        for field in dataclasses.fields(plan)
        if field.name not in ("mixture", "start")
    }
    begun = (
        f"{start} (SHA-256 {plan.start}), the terms of whose card apply to these weights too" if start else "nothing"
    )
    return _CARD.format(
        name=model.config.name,
        parameters=sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        data=", ".join(PurePath(path).name for path in data),
        start=begun,
        plan=", ".join(f"{name} {value}" for name, value in facts.items()),
        steps=last.step if last else plan.steps,
        validation=validation or "not measured",
    )
