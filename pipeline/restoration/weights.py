"""A model on disk: `config.json`, `model.safetensors` (half precision), `MODEL_CARD.md`. Never pickle."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from pipeline.errors import ModelError
from pipeline.redaction import redacted, without_secrets
from pipeline.restoration.config import ModelConfig
from pipeline.restoration.generator import Generator, GeneratorConfig
from pipeline.restoration.local import is_local, local_copy, local_path, said, store_of
from pipeline.restoration.model import CompactModel
from pipeline.restoration.names import SHIPPED, shipped_models

log = logging.getLogger(__name__)
Network = TypeVar("Network", bound=nn.Module)
FILES = ("config.json", "model.safetensors")


def save_model(model: CompactModel | Generator, folder: str | Path, card: str) -> None:
    """Write the three files of a model; weights are stored as float16."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    model.config.save(target)
    tensors = {name: tensor.detach().half().contiguous().cpu() for name, tensor in model.state_dict().items()}
    (target / "model.safetensors").write_bytes(save(tensors))  # `save_file` lets nobody else read it
    (target / "MODEL_CARD.md").write_text(card)


def load_model(place: str | Path) -> tuple[CompactModel, str]:
    """Load a shipped model by its name, or one from a folder or a URI.

    Returns:
        The model in float32 on the CPU, and the SHA-256 of its weights.

    Raises:
        ModelError: nothing there, or not a model that this version can run.
    """
    return _loaded(place, "restore", _restoring)


def load_generator(place: str | Path) -> tuple[Generator, str]:
    """The same for a model that generates.

    Raises:
        ModelError: as `load_model`.
    """
    return _loaded(place, "generate", _generating)


def load_any(place: str | Path) -> tuple[CompactModel | Generator, str]:
    """The same for a model of either kind.

    Raises:
        ModelError: as `load_model`.
    """

    def build(config: str) -> CompactModel | Generator:
        shape = shape_of(config)
        return CompactModel(shape) if isinstance(shape, ModelConfig) else Generator(shape)

    return _loaded(place, None, build)


def shape_of(config: str) -> ModelConfig | GeneratorConfig:
    """The shape that a `config.json` tells of.

    Raises:
        ValueError: as `Stored.from_json`.
    """
    kinds: dict[str, type[ModelConfig | GeneratorConfig]] = {"restore": ModelConfig, "generate": GeneratorConfig}
    task = _task(config)
    if task not in kinds:
        raise ValueError(f"it was made to {task}, which this version does not know")
    return kinds[task].from_json(config)


def _restoring(config: str) -> CompactModel:
    return CompactModel(ModelConfig.from_json(config))


def _generating(config: str) -> Generator:
    return Generator(GeneratorConfig.from_json(config))


def _task(config: str) -> str:
    """What the model of a `config.json` was made to do."""
    return str(json.loads(config).get("task", "restore"))


def _has_old_critic(tensors: Mapping[str, Tensor]) -> bool:
    """Whether there is a critic that does not judge place by place, as those of earlier versions."""
    return "critic.out.0.weight" in tensors and "critic.cells.weight" not in tensors


def _loaded(place: str | Path, task: str | None, build: Callable[[str], Network]) -> tuple[Network, str]:
    root = str(SHIPPED / str(place)) if str(place) in shipped_models() else str(place)
    try:
        folder = local_copy(root, FILES)
        content = {name: (folder / name).read_bytes() for name in FILES}
    except Exception as error:  # a driver that is missing, a scheme unknown, or what a store raises
        raise ModelError(
            f"no model at {redacted(root)!r} ({said(error)}); "
            f"give a folder or URI that holds {' and '.join(FILES)}, "
            f"or one of the shipped models: {', '.join(shipped_models()) or 'none'}"
        ) from error
    try:
        text = content["config.json"].decode()
        if task not in (None, _task(text)):
            raise ValueError(f"it was made to {_task(text)}, not to {task}")
        model = build(text)
        tensors: dict[str, Tensor] = load(content["model.safetensors"])
        if _has_old_critic(tensors):
            log.warning(
                "the critic of the model at %r is of an earlier version, and left out, so that the gate goes by "
                "clean_above and sure_gain again; `conservator train --part judge` gives it another",
                redacted(root),
            )
            tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("critic.")}
            model = build(json.dumps(json.loads(text) | {"critic_widths": []}))
        model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    except (
        ValueError,
        TypeError,
        AttributeError,
        LookupError,
        ArithmeticError,
        SafetensorError,
        RuntimeError,
    ) as error:
        raise ModelError(f"the model at {redacted(root)!r} cannot be loaded: {without_secrets(str(error))}") from error
    return model, hashlib.sha256(content["model.safetensors"]).hexdigest()


def read_file(path: str) -> bytes:
    """What is at a path or a URI; raises whatever its store raises."""
    if is_local(path):
        return Path(local_path(path)).read_bytes()
    store, root = store_of(path)
    data: bytes = store.cat_file(root)
    return data
