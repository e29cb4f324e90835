"""Image encoders: a small residual CNN over thumbnails, and one over native-resolution probes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.restoration.config import ModelConfig
from pipeline.restoration.layers import ResidualBlock


class ImageEncoder(nn.Module):
    """Residual CNN (after ResNet, arXiv:1512.03385) over a thumbnail, for the image and its references.

    Input are four planes: RGB in 0..1 and the mask of missing pixels.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        stages = []
        before = 4 * 16
        for index, width in enumerate(config.encoder_widths):
            enter = nn.Conv2d(
                before, width, 3 if index == 0 else 2, padding=1 if index == 0 else 0, stride=1 if index == 0 else 2
            )
            stages.append(nn.Sequential(enter, ResidualBlock(width), ResidualBlock(width)))
            before = width
        self.stages = nn.ModuleList(stages)

    def forward(self, thumbnails: Tensor) -> list[Tensor]:
        """`thumbnails` [N, 4, S, S] -> features at S/4, S/8 and S/16, finest first."""
        features = F.pixel_unshuffle(thumbnails, 4)
        pyramid = []
        for stage in self.stages:
            features = stage(features)
            pyramid.append(features)
        return pyramid


class ProbeEncoder(nn.Module):
    """What only shows at native resolution (noise, blocking, blur), pooled over an image's probes."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.PixelUnshuffle(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, 96, 3, padding=1, stride=2),
            nn.ReLU(),
        )
        self.out = nn.Linear(3 * 96, config.width)

    def forward(self, probes: Tensor) -> Tensor:
        """`probes` [N, P, 4, S, S] -> [N, width]."""
        count, per_image = probes.shape[:2]
        features = self.body(probes.flatten(0, 1)).float()
        per_probe = torch.cat([features.mean((2, 3)), features.std((2, 3))], dim=1).view(count, per_image, -1)
        half = per_probe.shape[-1] // 2
        quietest = per_probe[..., :half].amin(1)  # a flat probe shows the noise alone
        pooled: Tensor = self.out(torch.cat([per_probe.mean(1), quietest], dim=1))
        return pooled
