"""What steps learn from, drawn ahead of them by processes of its own: a GPU would wait for it otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

T = TypeVar("T")
AHEAD = 2
"""Steps that each process is ahead at most."""


class _Steps(Dataset[Any]):
    """A step's number to what is drawn for it."""

    def __init__(self, draw: Callable[[int], Any]) -> None:
        self._draw = draw

    def __getitem__(self, step: int) -> Any:
        return self._draw(step)


def drawn(draw: Callable[[int], T], steps: range, loaders: int, device: torch.device) -> Iterator[T]:
    """What is drawn for each step, in their order.

    Args:
        draw: to be called with a step's number; with loaders it must leave GPUs alone.
        steps: the numbers.
        loaders: processes, forked from this one, which see the same photos in memory; 0: all is drawn here.
        device: where it will go; for a GPU, loaders' tensors come in pinned memory.

    Raises:
        Exception: whatever `draw` raises.
    """
    if not loaders:
        yield from map(draw, steps)
        return
    yield from DataLoader(
        _Steps(draw),
        batch_size=None,
        sampler=steps,
        num_workers=loaders,
        prefetch_factor=AHEAD,
        pin_memory=device.type == "cuda",
        multiprocessing_context="fork",
    )


def moved(data: Any, device: torch.device) -> Any:
    """The tensors of named tuples within named tuples, on a device; all else as it is."""
    if isinstance(data, Tensor):
        return data.to(device, non_blocking=True)
    if isinstance(data, tuple) and hasattr(data, "_fields"):
        return type(data)(*(moved(part, device) for part in data))
    return data
