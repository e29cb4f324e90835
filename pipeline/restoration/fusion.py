"""Fusion: text, image and reference tokens are mapped onto each other, by attention or (`graph`) a graph network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline.restoration.config import ModelConfig
from pipeline.restoration.layers import grid_positions, position_features

TEXT, IMAGE, REFERENCE, GLOBAL = range(4)


class Layout(NamedTuple):
    """How tokens stand in line: a summary, the image's regions, words, then the regions of each reference."""

    side: int
    """Regions of the image, a side."""
    words: int
    references: int
    cells: int
    """Regions of a reference, a side."""


class Context(NamedTuple):
    """What the fusion knows of each image of a batch."""

    tokens: Tensor  # [N, L, width]: text, image and reference tokens after fusion
    absent: Tensor  # [N, L], bool: tokens that stand for nothing (padding)
    vector: Tensor  # [N, width]: one vector that sums the image up
    image: Tensor  # [N, width, S, S]: the image's own tokens, as a map


class Fusion(nn.Module, ABC):
    """What all fusions share: tokens of one width from the encoders' features, and what is read from them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.text_in = nn.Linear(config.text_width, width)
        self.image_in = nn.Linear(config.encoder_widths[-1], width)
        self.position_in = nn.Linear(24, width)
        self.kind = nn.Parameter(torch.randn(4, width) * 0.02)
        self.norm = nn.LayerNorm(width)

    @abstractmethod
    def fuse(self, tokens: Tensor, absent: Tensor, layout: Layout) -> Tensor:
        """Tokens [N, L, width], of which some are `absent` [N, L], told of each other: [N, L, width]."""

    def forward(
        self,
        text: Tensor,
        text_absent: Tensor,
        image: Tensor,
        probe: Tensor,
        references: Tensor,
        references_absent: Tensor,
    ) -> Context:
        """Fuse one batch.

        Args:
            text: [N, T, text_width] token features.
            text_absent: [N, T] bool, padding of the captions.
            image: [N, C, S, S], the encoder's coarsest features.
            probe: [N, width], what the native-resolution probes say.
            references: [N, R, C, s, s], the references' features, pooled; R may be 0.
            references_absent: [N, R] bool, places without a reference.
        """
        count, _, side, _ = image.shape
        positions = self.position_in(position_features(grid_positions(side, side, image.device)))
        image_tokens = self.image_in(image.flatten(2).transpose(1, 2)) + positions + self.kind[IMAGE]
        text_tokens = self.text_in(text) + self.kind[TEXT]
        summary = (probe + self.kind[GLOBAL])[:, None]
        tokens, absent = [summary, image_tokens, text_tokens], [text_absent]
        if references.shape[1]:
            cells = references.shape[-1] ** 2
            reference_tokens = self.image_in(references.flatten(3).transpose(2, 3).flatten(1, 2)) + self.kind[REFERENCE]
            tokens.append(reference_tokens)
            absent.append(references_absent.repeat_interleave(cells, dim=1))
        present = torch.zeros(count, 1 + side * side, dtype=torch.bool, device=image.device)
        mask = torch.cat([present, *absent], dim=1)
        layout = Layout(side, text.shape[1], references.shape[1], references.shape[-1])
        fused = self.norm(self.fuse(torch.cat(tokens, dim=1), mask, layout))
        image_map = fused[:, 1 : 1 + side * side].transpose(1, 2).unflatten(2, (side, side))
        return Context(tokens=fused[:, 1:], absent=mask[:, 1:], vector=fused[:, 0], image=image_map)


class AttentionFusion(Fusion):
    """A pre-norm transformer (arXiv:1706.03762) over the tokens of caption, image and references."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        width = config.width
        layer = nn.TransformerEncoderLayer(
            width, config.heads, 3 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, config.fusion_layers, enable_nested_tensor=False)

    def fuse(self, tokens: Tensor, absent: Tensor, layout: Layout) -> Tensor:
        """All tokens that are there attend to each other."""
        fused: Tensor = self.layers(tokens, src_key_padding_mask=absent)
        return fused
