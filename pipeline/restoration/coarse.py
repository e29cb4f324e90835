"""The coarse picture: what the global view, which sees all of an image at once, makes of it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.restoration.backbone import Backbone
from pipeline.restoration.config import ModelConfig
from pipeline.restoration.fusion import AttentionFusion, Fusion
from pipeline.restoration.graph import GraphFusion
from pipeline.restoration.image import ImageEncoder
from pipeline.restoration.layers import ResidualBlock, keep_scale

REFERENCE_CELLS = 5
"""A reference is pooled to 5 x 5 tokens: its colours and their rough layout are what is wanted of it."""


def image_encoder_of(config: ModelConfig) -> ImageEncoder | Backbone:
    """What thumbnails go through in a model of this shape."""
    return ImageEncoder(config) if config.backbone is None else Backbone(config)


def fusion_of(config: ModelConfig) -> Fusion:
    """What maps text, image and reference tokens onto each other in a model of this shape."""
    return GraphFusion(config) if config.mapping == "graph" else AttentionFusion(config)


def pooled(encoder: nn.Module, references: Tensor, absent: Tensor, width: int) -> Tensor:
    """References as the fusion takes them: [N, R, width, REFERENCE_CELLS, REFERENCE_CELLS], zeros where absent.

    Args:
        encoder: gives `width` features at its coarsest.
        references: [N, R, 4, S, S] thumbnails; R may be 0.
        absent: [N, R] bool.
        width: of these features.
    """
    out = references.new_zeros(*absent.shape, width, REFERENCE_CELLS, REFERENCE_CELLS)
    if bool(absent.all()):
        return out
    cells = F.adaptive_avg_pool2d(encoder(references[~absent])[-1], REFERENCE_CELLS)
    return out.to(cells.dtype).index_put((~absent).nonzero(as_tuple=True), cells)


class CoarseHead(nn.Module):
    """The restored thumbnail: fused tokens climb back to 1/4 of the thumbnail over the encoder's features."""

    def __init__(self, config: ModelConfig, condition: int | None = None) -> None:
        """`condition`: width of a vector that the blocks are told, if any."""
        super().__init__()
        fine, middle = config.encoder_widths[:2]
        self.up_middle = keep_scale(nn.ConvTranspose2d(config.width, middle, 2, stride=2), 0.5)
        self.middle = ResidualBlock(middle, condition)
        self.up_fine = keep_scale(nn.ConvTranspose2d(middle, fine, 2, stride=2), 0.5)
        self.fine = ResidualBlock(fine, condition)
        self.out = nn.Conv2d(fine, 3, 3, padding=1)
        with torch.no_grad():
            self.out.weight.mul_(0.1)

    def forward(
        self,
        fused: Tensor,
        pyramid: list[Tensor],
        small: Tensor,
        condition: Tensor | None = None,
        before_middle: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """`small` [N, 3, S, S] is the picture to start from, at the size of the answer; `condition` [N, D]."""
        features = self.up_middle(fused) + pyramid[1]
        if before_middle is not None:
            features = before_middle(features)
        features = self.middle(features, condition)
        features = self.fine(self.up_fine(features) + pyramid[0], condition)
        out: Tensor = small + self.out(features).float()
        return out
