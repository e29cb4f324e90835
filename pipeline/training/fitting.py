"""Fits small networks to what is kept in memory, many times over."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Fitting(NamedTuple):
    """How a network is fitted: AdamW, its rate falling like a cosine."""

    passes: int
    rate: float
    decay: float
    batch: int = 256


def fit_best(
    network: nn.Module,
    loss: Callable[[Tensor], Tensor],
    held_out: Callable[[], float],
    learned: Tensor,
    how: Fitting,
    seed: int,
) -> tuple[float, float]:
    """Fit a network; it has the weights of the pass after which held-out examples came out best, or those it had.

    Args:
        network: is fitted.
        loss: of some examples, by their numbers.
        held_out: what is to be least, of the examples that are not learned from.
        learned: the numbers of the others.
        how: the steps.
        seed: draws their order.

    Returns:
        What `held_out` said before, and the least of it.
    """
    torch.manual_seed(seed)
    order = torch.Generator().manual_seed(seed)
    network.requires_grad_(True)
    optimiser = torch.optim.AdamW(network.parameters(), how.rate, weight_decay=how.decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, how.passes)
    before = least = held_out()
    best = copy.deepcopy(network.state_dict())
    for _ in range(how.passes):
        for rows in torch.split(learned[torch.randperm(len(learned), generator=order)], how.batch):
            optimiser.zero_grad()
            loss(rows).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        schedule.step()
        if (now := held_out()) < least:
            least, best = now, copy.deepcopy(network.state_dict())
    network.load_state_dict(best)
    return before, least
