"""The painter: a second look at images of which something is gone, colours or places, that says what was there.

It is there that a caption and references matter. The global view has to find what is wrong with pictures of all kinds
beside; a copy of it that learns of nothing but colours and holes, and is told the caption more directly, gets farther.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.damage.tone import luma
from pipeline.restoration.coarse import CoarseHead, fusion_of, image_encoder_of, pooled
from pipeline.restoration.config import ModelConfig
from pipeline.restoration.decoder import ContextAttention
from pipeline.restoration.layers import grid_positions

SENTENCE = 256
"""Features between a caption's mean and what the blocks are told of it."""


class Painter(nn.Module):
    """Thumbnail, caption and references to a coarse picture, of which the colours and what was missing are meant."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self._features = config.encoder_widths[-1]
        self.image_encoder = image_encoder_of(config)
        self.fusion = fusion_of(config)
        self.sentence = nn.Sequential(
            nn.Linear(config.text_width + 1, SENTENCE), nn.GELU(), nn.Linear(SENTENCE, config.width)
        )
        self.attention = ContextAttention(config.encoder_widths[1], config)
        self.coarse_head = CoarseHead(config, config.width)

    def begin_as(self, image_encoder: nn.Module, fusion: nn.Module, coarse_head: nn.Module) -> None:
        """Take the weights of a global view, whose coarse picture it then paints."""
        self.image_encoder.load_state_dict(image_encoder.state_dict())
        self.fusion.load_state_dict(fusion.state_dict())
        self.coarse_head.load_state_dict(self.coarse_head.state_dict() | coarse_head.state_dict())

    def forward(
        self,
        thumbnails: Tensor,
        probe: Tensor,
        text: Tensor,
        text_absent: Tensor,
        references: Tensor,
        references_absent: Tensor,
    ) -> Tensor:
        """Paint a batch.

        Args:
            thumbnails: [N, 4, S, S]: RGB in 0..1 and the share of missing pixels.
            probe: [N, width], what the native-resolution probes say.
            text: [N, T, text_width] token features.
            text_absent: [N, T] bool.
            references: [N, R, 4, S, S] thumbnails; R may be 0.
            references_absent: [N, R] bool.

        Returns:
            [N, 3, S / 4, S / 4], about 0..1.
        """
        pyramid = self.image_encoder(thumbnails)
        cells = pooled(self.image_encoder, references, references_absent, self._features)
        context = self.fusion(text, text_absent, pyramid[-1], probe, cells, references_absent)
        regions = context.image[0, 0].numel()
        told = torch.cat([context.vector[:, None], context.tokens[:, regions:]], dim=1)  # words and references
        absent = F.pad(context.absent[:, regions:], (1, 0))

        def attend(features: Tensor) -> Tensor:
            height, width = features.shape[-2:]
            positions = grid_positions(height, width, features.device).expand(len(features), -1, -1)
            answer: Tensor = self.attention(features, told, absent, positions)
            return answer

        small = F.avg_pool2d(thumbnails[:, :3], 4)
        out: Tensor = self.coarse_head(context.image, pyramid, small, self._meaning(text, text_absent), attend)
        return out

    def _meaning(self, text: Tensor, absent: Tensor) -> Tensor:
        """What a caption says as a whole, [N, width], of unit length."""
        present = (~absent).float()[..., None]
        mean = F.normalize((text * present).sum(1), dim=1) * text.shape[-1] ** 0.5
        said = self.sentence(torch.cat([mean, present.amax(1)], dim=1))
        return F.normalize(said.float(), dim=1)


def with_painted(coarse: Tensor, painted: Tensor, missing: Tensor, grey: Tensor) -> Tensor:
    """A coarse picture [N, 3, S, S] with what is gone of it from a painted one.

    Args:
        coarse: of the global view.
        painted: as large.
        missing: [N, 1, S, S], the share of each pixel that is missing: these are painted.
        grey: [N] bool, images without colours: the colours are painted.
    """
    filled = torch.lerp(coarse, painted, missing)
    return torch.where(grey[:, None, None, None], luma(filled) + painted - luma(painted), filled)
