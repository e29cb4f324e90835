"""What HaarPSI and MDSI share: slopes in both directions, and how alike two sizes are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def slopes(planes: Tensor, along: Sequence[float], across: Sequence[float], pad: tuple[int, int]) -> Tensor:
    """Filter [N, 1, H, W] by the product of two lines and by its transpose: [N, 2, h, w].

    `pad`: black pixels before and after, in both directions.
    """
    kernel = torch.outer(torch.tensor(along, device=planes.device), torch.tensor(across, device=planes.device))
    return F.conv2d(F.pad(planes, (*pad, *pad)), torch.stack([kernel, kernel.T])[:, None])


def similarity(x: Tensor, y: Tensor, constant: float) -> Tensor:
    """1 where both are equal; `constant` says which sizes are too small to tell."""
    return (2 * x * y + constant) / (x**2 + y**2 + constant)
