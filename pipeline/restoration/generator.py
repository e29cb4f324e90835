"""The generator: small pictures from captions, by a flow from noise that a U-Net has learned."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.restoration.config import Stored
from pipeline.restoration.layers import ResidualBlock, keep_scale, normalise
from pipeline.restoration.precision import autocast

FOLD = 2
"""The network sees blocks of 2 x 2 pixels as channels."""


@dataclasses.dataclass(frozen=True)
class GeneratorConfig(Stored):
    """Sizes of the generator. Stored as `config.json` beside its weights."""

    name: str = "generator"
    task: str = "generate"
    license: str = "unknown"
    text_encoder: str = "all-MiniLM-L6-v2"
    text_sha256: str = ""
    text_tokens: int = 32
    text_width: int = 384
    side: int = 64
    """Sides in pixels of the pictures."""
    widths: tuple[int, ...] = (64, 128, 192)
    """Channels at 1/2, 1/4 and 1/8."""
    blocks: int = 2
    """Residual blocks at each of them, on the way down and (but for the last) again on the way up."""
    width: int = 256
    """Features of the condition."""
    heads: int = 4


class _Mixing(nn.Module):
    """Every place asks all places and all words."""

    def __init__(self, channels: int, config: GeneratorConfig, side: int) -> None:
        super().__init__()
        self.heads = config.heads
        self.query = nn.Linear(channels, channels)
        self.places = nn.Linear(channels, 2 * channels)
        self.words = nn.Linear(config.width, 2 * channels)
        self.out = nn.Linear(channels, channels)
        self.position = nn.Parameter(torch.randn(side * side, channels) * 0.02)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, features: Tensor, words: Tensor, absent: Tensor) -> Tensor:
        """`features` [N, C, H, W], `words` [N, T, width], `absent` [N, T]; the first word is always there."""
        height, width = features.shape[2:]
        flat = normalise(features).flatten(2).transpose(1, 2) + self.position
        keys = torch.cat([self.places(flat), self.words(words)], dim=1)
        count, length = keys.shape[:2]
        key, value = keys.view(count, length, 2 * self.heads, -1).transpose(1, 2).chunk(2, dim=1)
        query = self.query(flat).view(count, height * width, self.heads, -1).transpose(1, 2)
        present = torch.ones(len(words), height * width, dtype=torch.bool, device=words.device)
        mask = torch.cat([present, ~absent], dim=1)[:, None, None]
        answer = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        told: Tensor = self.out(answer.transpose(1, 2).flatten(2))
        placed = told.transpose(1, 2).reshape(features.shape)
        return features + placed.contiguous(memory_format=torch.channels_last)


class _Stage(nn.Module):
    """The blocks of one resolution; below full resolution places and words are mixed after each."""

    def __init__(self, channels: int, config: GeneratorConfig, side: int, mixes: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ResidualBlock(channels, config.width) for _ in range(config.blocks))
        self.mixing = nn.ModuleList(_Mixing(channels, config, side) for _ in range(config.blocks if mixes else 0))

    def forward(self, features: Tensor, condition: Tensor, words: Tensor, absent: Tensor) -> Tensor:
        for block, mixing in itertools.zip_longest(self.blocks, self.mixing):
            features = block(features, condition)
            if mixing is not None:
                features = mixing(features, words, absent)
        return features


class Generator(nn.Module):
    """Says where, from a noisy picture, the picture of a caption lies (rectified flow, arXiv:2209.03003)."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        widths, side = config.widths, config.side // FOLD
        sides = [side >> level for level in range(len(widths))]
        planes = 3 * FOLD**2
        self.words_in = nn.Linear(config.text_width, config.width)
        self.nothing = nn.Parameter(torch.randn(config.width) * 0.02)
        """Stands before the words; all there is without a caption."""
        self.sentence_in = nn.Linear(config.text_width, config.width)
        self.time_in = nn.Sequential(nn.Linear(64, config.width), nn.SiLU(), nn.Linear(config.width, config.width))
        self.enter = keep_scale(nn.Conv2d(planes, widths[0], 3, padding=1))
        numbered = enumerate(zip(widths, sides, strict=True))
        stages = [(width, config, place, level > 0) for level, (width, place) in numbered]
        pairs = list(itertools.pairwise(widths))
        self.encode = nn.ModuleList(_Stage(*stage) for stage in stages)
        self.down = nn.ModuleList(keep_scale(nn.Conv2d(finer, coarser, 2, stride=2)) for finer, coarser in pairs)
        self.up = nn.ModuleList(
            keep_scale(nn.ConvTranspose2d(coarser, finer, 2, stride=2), 0.5) for finer, coarser in pairs
        )
        self.decode = nn.ModuleList(_Stage(*stage) for stage in stages[:-1])
        self.leave = keep_scale(nn.Conv2d(widths[0], planes, 3, padding=1), 0.1)

    def forward(self, noisy: Tensor, time: Tensor, text: Tensor, absent: Tensor) -> Tensor:
        """The way from the picture to the noise.

        Args:
            noisy: [N, 3, S, S], (1 - time) of a picture in -1..1, and `time` of noise with variance 1.
            time: [N], 0..1.
            text: [N, T, text_width] token features.
            absent: [N, T], bool.

        Returns:
            [N, 3, S, S], float32: noise less picture.
        """
        count = len(noisy)
        weight = (~absent).float()[..., None]
        sentence = self.sentence_in((text * weight).sum(1) / weight.sum(1).clamp_min(1))
        words = torch.cat([self.nothing.expand(count, 1, -1), self.words_in(text)], dim=1)
        none = torch.cat([absent.new_zeros(count, 1), absent], dim=1)
        condition = self.time_in(_waves(time)) + sentence * (~absent).any(1, keepdim=True)
        condition = condition * condition.shape[-1] ** -0.5
        folded = F.pixel_unshuffle(noisy, FOLD).contiguous(memory_format=torch.channels_last)
        features, skips = self.enter(folded), []
        for stage, down in zip(self.encode, self.down, strict=False):
            features = stage(features, condition, words, none)
            skips.append(features)
            features = down(features)
        features = self.encode[-1](features, condition, words, none)
        for up, stage in zip(reversed(self.up), reversed(self.decode), strict=True):
            features = stage(up(features) + skips.pop(), condition, words, none)
        return F.pixel_shuffle(self.leave(features).float(), FOLD)

    @torch.inference_mode()
    def pictures(
        self, text: Tensor, absent: Tensor, seeds: Sequence[int], steps: int = 24, guidance: float = 2.5
    ) -> Tensor:
        """Pictures of captions: [N, 3, S, S], 0..1; each follows from its caption and seed alone.

        Args:
            text: [N, T, text_width] token features.
            absent: [N, T], bool.
            seeds: of each picture's noise.
            steps: on the way from noise (Heun's method, two looks each).
            guidance: how much farther than it would the picture goes towards its caption (arXiv:2207.12598).
        """
        device, side = text.device, self.config.side
        noise = [torch.randn(3, side, side, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        current = torch.stack(noise).to(device)
        both = torch.cat([text, torch.zeros_like(text)])
        missing = torch.cat([absent, torch.ones_like(absent)])

        def flow(at: Tensor, time: float) -> Tensor:
            times = torch.full((2 * len(at),), time, device=device)
            with autocast(device):
                towards, anywhere = self(torch.cat([at, at]), times, both, missing).chunk(2)
            there: Tensor = anywhere + guidance * (towards - anywhere)
            return there

        times = torch.linspace(1, 0, steps + 1).tolist()
        for now, then in itertools.pairwise(times):
            step = then - now
            first = flow(current, now)
            ahead = current + step * first
            current = current + step * (first + flow(ahead, then)) / 2 if then > 0 else ahead
        return ((current + 1) / 2).clamp(0, 1)


def _waves(time: Tensor) -> Tensor:
    """[N] in 0..1 -> [N, 64] sines and cosines."""
    scales = torch.exp(torch.linspace(0, 6, 32, device=time.device))
    angles = time[:, None] * scales
    return torch.cat([angles.sin(), angles.cos()], dim=1)
