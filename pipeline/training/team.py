"""Workers that train one model together, on torch.distributed; alone, all of this does nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_nn
from torch import Tensor, nn

from pipeline.errors import OutputError, RecipeError


class Team(NamedTuple):
    """This worker's place among all. Every worker draws its own images and takes the same step as one would alone."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> Team:
        """The team of the process group that was started, or one worker alone."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    @property
    def leads(self) -> bool:
        """The one worker that validates, reports and writes."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """Which of a batch's images this worker takes."""
        return range(self.rank, count, self.size)

    def check(self, batch: int, looks: int) -> None:
        """Shares must be equal, for the mean of their means to be the batch's.

        Raises:
            RecipeError: they are not.
        """
        if batch % self.size or looks % self.size:
            raise RecipeError(
                f"{self.size} workers cannot share {batch} images and {looks} looks equally; "
                "give a --batch and --looks that are multiples of --workers"
            )

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Every gradient becomes the mean over the team; a parameter that none of it has one for stays without."""
        if self.size == 1:
            return
        everything = list(parameters)
        used = torch.tensor([float(p.grad is not None) for p in everything], device=everything[0].device)
        dist.all_reduce(used)
        wanted = [parameter for parameter, count in zip(everything, used.tolist(), strict=True) if count]
        for parameter in wanted:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in wanted if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        parts = torch.split(flat / self.size, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view(gradient.shape))

    def gather(self, rows: Tensor) -> Tensor:
        """The rows [N, …] of all workers, [N * size, …]; gradients flow back to each."""
        if self.size == 1:
            return rows
        gathered: tuple[Tensor, ...] = dist_nn.all_gather(rows.contiguous())  # type: ignore[no-untyped-call]
        return torch.cat(gathered)

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """Each value's mean over the team."""
        if self.size == 1:
            return values
        all_values: list[dict[str, float]] = [{} for _ in range(self.size)]
        dist.all_gather_object(all_values, values)
        return {name: sum(one[name] for one in all_values) / self.size for name in values}

    def agree(self, step: int) -> None:
        """All workers found the same checkpoint.

        Raises:
            OutputError: they did not.
        """
        if self.size == 1:
            return
        steps: list[int] = [0] * self.size
        dist.all_gather_object(steps, step)
        if len(set(steps)) > 1:
            raise OutputError(
                f"workers found checkpoints of different steps ({', '.join(map(str, steps))}); "
                "--output must be a folder that all machines share"
            )


ALONE = Team()
"""One worker by itself."""
