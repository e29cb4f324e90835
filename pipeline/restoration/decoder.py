"""The decoder: a U-Net of dense convolutions over tiles, told what the global view knows.

Dense 3x3 convolutions keep matrix units busy. The level at full resolution carries the detail that
pixel-unshuffling would cost; it is thin and not told of the global view, since both are dear there.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.restoration.config import ModelConfig
from pipeline.restoration.layers import ResidualBlock, keep_scale, position_features

INPUT_PLANES = 7  # RGB, mask, RGB of the coarse picture
OUTPUT_PLANES = 5  # RGB residual, log of the expected squared error, logit that the pixel is lost
UNTOLD_PLANES = 3, 4  # RGB; and of the answer all but what is lost
NOWHERE = -20.0
"""The logit that a pixel is lost where none can be."""
LEAST_LOG_ERROR, MOST_LOG_ERROR = -14.0, 2.0
"""Between these the logarithm of the expected squared error is believed."""
CONTRAST_GAIN = 4.0
"""Brings a picture's contrast near unit size."""


class ContextAttention(nn.Module):
    """Tile features ask the context tokens, knowing where in the image they lie."""

    def __init__(self, channels: int, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm = nn.LayerNorm(channels)
        self.position_in = nn.Linear(24, channels)
        self.query = nn.Linear(channels, config.width)
        self.key_value = nn.Linear(config.width, 2 * config.width)
        self.out = nn.Linear(config.width, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, features: Tensor, tokens: Tensor, absent: Tensor, positions: Tensor) -> Tensor:
        """`features` [N, C, H, W], `tokens` [N, L, width], `absent` [N, L], `positions` [N, H * W, 2] as (y, x)."""
        height, width = features.shape[2:]
        flat = features.flatten(2).transpose(1, 2)
        asked = self.norm(flat) + self.position_in(position_features(positions))
        query = self.query(asked).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = self.key_value(tokens).unflatten(-1, (2 * self.heads, -1)).transpose(1, 2).chunk(2, dim=1)
        answer = F.scaled_dot_product_attention(query, key, value, attn_mask=~absent[:, None, None, :])
        flat = flat + self.out(answer.transpose(1, 2).flatten(2))
        out: Tensor = flat.transpose(1, 2).unflatten(2, (height, width))
        return out.contiguous(memory_format=torch.channels_last)


class Level(nn.ModuleList):
    """The residual blocks of one resolution."""

    def __init__(self, channels: int, condition: int | None, norm: bool, blocks: int) -> None:
        super().__init__(ResidualBlock(channels, condition, norm) for _ in range(blocks))

    def forward(
        self, features: Tensor, condition: Tensor | None, before_last: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """`features` [N, C, H, W], `condition` [N, D]; `before_last` is applied ahead of the last block."""
        for index, block in enumerate(self):
            if before_last is not None and index == len(self) - 1:
                features = before_last(features)
            features = block(features, condition)
        return features


class Guide(NamedTuple):
    """What the decoder is told of the image of each tile."""

    tokens: Tensor  # [N, L, width], the fused context
    absent: Tensor  # [N, L], bool: tokens that stand for nothing
    vector: Tensor  # [N, width]
    coarse: Tensor  # [N, 3, S, S], the restored thumbnail with its colours, about 0..1
    gain: Tensor  # [N, 3, 8, 8], as `Tone` has it
    affine: Tensor  # [N, 3, 4], too


class Decoded(NamedTuple):
    """What the decoder says of a batch of tiles."""

    pixels: Tensor  # [N, 3, H, W]: from `TileDecoder` the residual, from the whole model the restored tile
    log_error: Tensor  # [N, 1, H, W], log of the expected squared error
    lost: Tensor  # [N, 1, H, W], logit that the picture is lost there: a scratch, a stain, a hole


class TileDecoder(nn.Module):
    """Damaged tiles to restored tiles, with how far off they are expected to be and what was lost."""

    def __init__(self, config: ModelConfig, told: bool = True) -> None:
        """`told`: of the global view, and of masks; else all that it knows are the tile's pixels."""
        super().__init__()
        widths, blocks = config.decoder_widths, config.decoder_blocks
        inputs, outputs = (INPUT_PLANES, OUTPUT_PLANES) if told else UNTOLD_PLANES
        norms = [False] + [True] * (len(widths) - 1)
        conditions = [config.width if told and norm else None for norm in norms]
        levels = list(zip(widths, conditions, norms, blocks, strict=True))
        pairs = list(itertools.pairwise(widths))
        self.enter = keep_scale(nn.Conv2d(inputs, widths[0], 3, padding=1), CONTRAST_GAIN)
        self.encode = nn.ModuleList(Level(*level) for level in levels)
        self.down = nn.ModuleList(keep_scale(nn.Conv2d(finer, coarser, 2, stride=2)) for finer, coarser in pairs)
        self.attention = ContextAttention(widths[-1], config) if told else None
        self.up = nn.ModuleList(
            keep_scale(nn.ConvTranspose2d(coarser, finer, 2, stride=2), 0.5) for finer, coarser in pairs
        )
        self.decode = nn.ModuleList(Level(*level) for level in levels[:-1])
        self.leave = keep_scale(nn.Conv2d(widths[0], outputs, 3, padding=1), 0.1)
        with torch.no_grad():
            assert self.leave.bias is not None
            self.leave.bias.copy_(
                torch.tensor([0.0, 0.0, 0.0, -5.0, -4.0][:outputs])
            )  # exp(-5): about 22 dB, a damaged image's usual error; and few pixels are lost

    def forward(self, planes: Tensor, guide: Guide | None = None, positions: Tensor | None = None) -> Decoded:
        """Restore tiles.

        Args:
            planes: [N, 7, H, W]: RGB, mask, coarse RGB; both sides multiples of 8. RGB alone, where it is told nothing.
            guide: one entry a tile, that of the tile's image.
            positions: [N, H / 8 * W / 8, 2], where the tile's cells lie in their image, (y, x) in 0..1.

        Returns:
            The residual to add to the input, the expected error, and what is lost.
        """

        def attend(features: Tensor) -> Tensor:
            if self.attention is None or guide is None:
                return features
            answer: Tensor = self.attention(features, guide.tokens, guide.absent, positions)
            return answer

        condition = None if guide is None else conditioned(guide.vector)
        features, skips = self.enter(planes), []
        for blocks, down in zip(self.encode, self.down, strict=False):
            features = blocks(features, condition)
            skips.append(features)
            features = down(features)
        features = self.encode[-1](features, condition, before_last=attend)
        for up, blocks in zip(reversed(self.up), reversed(self.decode), strict=True):
            features = blocks(up(features) + skips.pop(), condition)
        out = self.leave(features).float()
        lost = out[:, 4:] if self.attention is not None else torch.full_like(out[:, :1], NOWHERE)
        return Decoded(out[:, :3], out[:, 3:4], lost)


def conditioned(vector: Tensor) -> Tensor:
    """The global vector as the blocks are told it, of about unit length."""
    out: Tensor = vector * vector.shape[-1] ** -0.5
    return out
