"""The expert: a second decoder, for images that have nothing wrong but what all of their pixels have alike.

Noise, JPEG artefacts and lack of resolution are much of what archives have, and what denoisers are measured by. A
network that learns of them in every step gets farther than one that learns to fill holes and follow captions, too. It
is a `TileDecoder` that is told nothing; a router says which images are its own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.restoration.decoder import UNTOLD_PLANES, TileDecoder, conditioned
from pipeline.restoration.layers import ResidualBlock

NONE_YET = -1.0
"""What a router that has learned nothing says: no image is the expert's."""


class Router(nn.Module):
    """Which images are the expert's: those above 0, by what the global view found."""

    def __init__(self, width: int, found: int) -> None:
        """`width` of the global vector, `found`: how many findings."""
        super().__init__()
        self.body = nn.Sequential(nn.Linear(width + found, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU())
        self.out = nn.Linear(64, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.constant_(self.out.bias, NONE_YET)

    @property
    def has_learned(self) -> bool:
        """Whether it can say more than that none is."""
        return bool(self.out.weight.any())

    def forward(self, vector: Tensor, found: Tensor) -> Tensor:
        """`vector` [N, width], `found` [N, F], about unit size -> [N]."""
        known = torch.cat([vector, found], dim=1).float()
        out: Tensor = self.out(self.body(known))[:, 0].float()
        return out


@torch.no_grad()
def begin_as(expert: TileDecoder, decoder: TileDecoder, vector: Tensor) -> None:
    """Give an expert the weights of a decoder that is always told the same [width], as nearly as it can be.

    From random weights its lower levels are silent within some hundred steps, and stay so: noise is learned by the two
    finest alone, JPEG artefacts are not.
    """
    weights = dict(decoder.state_dict())
    blocks = {name: block for name, block in decoder.named_modules() if isinstance(block, ResidualBlock)}
    for name, block in blocks.items():
        if block.modulate is None:
            continue
        scale, shift, gate = block.modulate(conditioned(vector)).chunk(3)
        first, second = block.first.weight, block.second.weight
        weights[f"{name}.first.bias"] = weights[f"{name}.first.bias"] + (first * shift[:, None, None]).sum((1, 2, 3))
        weights[f"{name}.first.weight"] = first * (1 + scale)[:, None, None]
        weights[f"{name}.second.weight"] = second * (1 + gate)[:, None, None, None]
        weights[f"{name}.second.bias"] = weights[f"{name}.second.bias"] * (1 + gate)
    inputs, outputs = UNTOLD_PLANES
    enter = decoder.enter.weight  # the coarse picture is nearly what lies around the pixel
    weights["enter.weight"] = enter[:, :inputs] + enter[:, -inputs:].mean((2, 3), keepdim=True)
    weights["leave.weight"], weights["leave.bias"] = decoder.leave.weight[:outputs], weights["leave.bias"][:outputs]
    expert.load_state_dict({name: weights[name] for name in expert.state_dict()})
