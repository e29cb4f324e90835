"""The state of a training run on disk, in safetensors files and one JSON file; a run goes on from it exactly.

No file is larger than `PIECE`, so that a checkpoint passes where large files do not.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

LATEST = "checkpoint"
PIECE = 15 << 20
"""Bytes of one file; a single tensor may be larger."""


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    average: dict[str, Tensor],
    optimisers: Sequence[torch.optim.Optimizer],
    state: dict[str, Any],
) -> None:
    """Write beside the last checkpoint, then swap: a kill at any moment leaves one that is whole."""
    fresh, latest, old = folder / f"{LATEST}.new", folder / LATEST, folder / f"{LATEST}.old"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    _save(model.state_dict(), fresh, "model")
    _save(average, fresh, "average")
    moments: dict[str, Tensor] = {}
    for part, optimiser in enumerate(optimisers):
        for index, slots in optimiser.state_dict()["state"].items():
            moments |= {f"{part}.{index}.{key}": value for key, value in slots.items() if isinstance(value, Tensor)}
    _save(moments, fresh, "optimiser")
    (fresh / "state.json").write_text(json.dumps(state, indent=2) + "\n")
    shutil.rmtree(old, ignore_errors=True)
    if latest.exists():
        latest.rename(old)
    fresh.rename(latest)
    shutil.rmtree(old, ignore_errors=True)


def read_state(folder: Path) -> dict[str, Any] | None:
    """What was saved as `state` with the last checkpoint; None if there is no checkpoint."""
    place = _place(folder)
    if place is None:
        return None
    state: dict[str, Any] = json.loads((place / "state.json").read_text())
    return state


def load_checkpoint(
    folder: Path, model: nn.Module, average: dict[str, Tensor], optimisers: Sequence[torch.optim.Optimizer]
) -> None:
    """Bring a run back to where its last checkpoint left it.

    Raises:
        FileNotFoundError: there is none.
    """
    place = _place(folder)
    if place is None:
        raise FileNotFoundError(folder / LATEST)
    model.load_state_dict(_load(place, "model"))
    for name, tensor in _load(place, "average").items():
        average[name].copy_(tensor)
    moments = _load(place, "optimiser")
    for part, optimiser in enumerate(optimisers):
        parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
        slots: dict[int, dict[str, Tensor]] = {}
        for name in [name for name in moments if name.startswith(f"{part}.")]:
            _, index, key = name.split(".")
            like = parameters[int(index)]
            tensor = moments[name]
            if tensor.shape == like.shape:  # fused kernels need the moments laid out as the parameter is
                tensor = torch.empty_like(like).copy_(tensor)
            slots.setdefault(int(index), {})[key] = tensor.detach()
        optimiser.load_state_dict({"state": slots, "param_groups": optimiser.state_dict()["param_groups"]})


def _place(folder: Path) -> Path | None:
    """The last checkpoint that is whole."""
    places = (folder / name for name in (LATEST, f"{LATEST}.old"))
    return next((place for place in places if (place / "state.json").exists()), None)


def _save(tensors: dict[str, Tensor], folder: Path, name: str) -> None:
    """Write `name-0.safetensors`, `name-1.safetensors`, …"""
    piece: dict[str, Tensor] = {}
    number, size = 0, 0
    for key, tensor in tensors.items():
        plain = tensor.detach().contiguous().cpu().clone()
        if piece and size + plain.nbytes > PIECE:
            save_file(piece, folder / f"{name}-{number}.safetensors")
            piece, number, size = {}, number + 1, 0
        piece[key] = plain
        size += plain.nbytes
    save_file(piece, folder / f"{name}-{number}.safetensors")


def _load(folder: Path, name: str) -> dict[str, Tensor]:
    return {key: tensor for path in folder.glob(f"{name}-*.safetensors") for key, tensor in load_file(path).items()}
