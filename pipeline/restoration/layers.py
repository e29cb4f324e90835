"""Building blocks that the encoders and the decoder share."""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.1
"""What an activation lets through below zero: a unit that never fires still learns."""

Convolution = TypeVar("Convolution", nn.Conv2d, nn.ConvTranspose2d)


def keep_scale(convolution: Convolution, gain: float = 1.0) -> Convolution:
    """Draw weights that keep (times `gain`) the scale of the features; returns the convolution.

    PyTorch's own draw loses 0.6 of it a layer. A few levels down the features were so small beside the steps that
    an optimiser takes in biases and modulation that most units were pushed below zero within 100 steps, and stayed
    there: all blocks of a decoder trained for 7,000 steps were silent but those at full resolution.
    """
    transposed = isinstance(convolution, nn.ConvTranspose2d)  # with a stride of its kernel: one product an input plane
    fan_in = convolution.in_channels if transposed else convolution.weight[0].numel()
    nn.init.normal_(convolution.weight, std=gain * fan_in**-0.5)
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
    return convolution


def activate(features: Tensor) -> Tensor:
    """Leaky rectifier, in place."""
    return F.leaky_relu_(features, SLOPE)


def normalise(features: Tensor) -> Tensor:
    """Each pixel's channels to mean 0 and variance 1 (LayerNorm without weights): [N, C, H, W], channels last."""
    out: Tensor = F.layer_norm(features.permute(0, 2, 3, 1), features.shape[1:2])
    return out.permute(0, 3, 1, 2)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a skip.

    `norm`: the features are normalised on their way in. `condition`: width of a vector that scales and shifts the
    normalised features, and scales what the block adds (adaLN, arXiv:2212.09748). It must not shift what the
    activation sees (FiLM): while the rest still learns, that is the quickest way to be rid of a block, and ends it.
    """

    def __init__(self, channels: int, condition: int | None = None, norm: bool = True) -> None:
        super().__init__()
        self.norm = norm
        self.first = keep_scale(nn.Conv2d(channels, channels, 3, padding=1))
        # near the identity at first: deep residual stacks start calm
        self.second = keep_scale(nn.Conv2d(channels, channels, 3, padding=1), 0.15)
        self.modulate = nn.Linear(condition, 3 * channels) if condition else None
        if self.modulate is not None:
            nn.init.zeros_(self.modulate.weight)
            nn.init.zeros_(self.modulate.bias)

    def forward(self, features: Tensor, condition: Tensor | None = None) -> Tensor:
        """`features` [N, C, H, W], `condition` [N, D] of about unit length -> [N, C, H, W]."""
        hidden = normalise(features) if self.norm else features
        if self.modulate is None or condition is None:
            plain: Tensor = features + self.second(activate(self.first(hidden)))
            return plain
        scale, shift, gate = self.modulate(condition)[:, :, None, None].chunk(3, dim=1)
        hidden = torch.addcmul(shift, hidden, 1 + scale)
        out: Tensor = torch.addcmul(features, self.second(activate(self.first(hidden))), 1 + gate)
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
