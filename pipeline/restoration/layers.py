"""Building blocks that the encoders and the decoder share."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a skip; optionally modulated by a vector (FiLM, arXiv:1709.07871)."""

    def __init__(self, channels: int, condition: int | None = None) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.modulate = nn.Linear(condition, 2 * channels) if condition else None
        if self.modulate is not None:
            nn.init.zeros_(self.modulate.weight)
            nn.init.zeros_(self.modulate.bias)
        nn.init.kaiming_normal_(self.second.weight, a=0, nonlinearity="relu")
        with torch.no_grad():
            self.second.weight.mul_(0.1)  # near the identity at first: deep residual stacks start calm

    def forward(self, features: Tensor, condition: Tensor | None = None) -> Tensor:
        """`features` [N, C, H, W], `condition` [N, D] -> [N, C, H, W]."""
        hidden = self.first(features)
        if self.modulate is not None and condition is not None:
            scale, shift = self.modulate(condition)[:, :, None, None].chunk(2, dim=1)
            hidden = torch.addcmul(shift, hidden, 1 + scale)
        out: Tensor = features + self.second(torch.relu_(hidden))
        return out


def position_features(positions: Tensor, frequencies: int = 6) -> Tensor:
    """Sines and cosines of positions in 0..1: [..., 2] -> [..., 4 * frequencies]."""
    scales = torch.pi * 2.0 ** torch.arange(frequencies, device=positions.device, dtype=positions.dtype)
    angles = (positions[..., None] * scales).flatten(-2)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def grid_positions(side_y: int, side_x: int, device: torch.device) -> Tensor:
    """Centres of a grid of cells over the unit square, as (y, x): [side_y * side_x, 2]."""
    y = (torch.arange(side_y, device=device, dtype=torch.float32) + 0.5) / side_y
    x = (torch.arange(side_x, device=device, dtype=torch.float32) + 0.5) / side_x
    return torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).reshape(-1, 2)
