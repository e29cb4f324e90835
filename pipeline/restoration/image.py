"""Image encoders: a small residual CNN over thumbnails, and one over native-resolution probes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.restoration.config import ModelConfig
from pipeline.restoration.layers import ResidualBlock, keep_scale

HIGH_PASS_GAIN = 8.0
"""Brings what a 3 x 3 mean leaves of a picture near unit size."""
CONTRAST_GAIN = 2.0
"""Brings a picture's contrast near unit size; neighbouring pixels are alike, so less is needed than of one pixel."""
RECTIFIED = 2**0.5
"""Gain that makes up for the half of the features that a rectifier takes."""
LEAST_STATISTIC = 1e-3
"""Keeps the logarithm of a feature that is nowhere active finite."""


class ImageEncoder(nn.Module):
    """Residual CNN (after ResNet, arXiv:1512.03385) over a thumbnail, for the image and its references.

    Input are four planes: RGB in 0..1 and the mask of missing pixels.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        stages = []
        before = 4 * 16
        for index, width in enumerate(config.encoder_widths):
            if index == 0:
                enter = keep_scale(nn.Conv2d(before, width, 3, padding=1), CONTRAST_GAIN)
            else:
                enter = keep_scale(nn.Conv2d(before, width, 2, stride=2))
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
    """What only shows at native resolution (noise, blocking, blur), pooled over an image's probes.

    Strengths of damage span decades and are small beside the picture's own contrast, so the probes are
    high-passed, and it is the logarithms of mean and spread of the features that count. Without both, 2,300
    training steps did not teach it to tell a noise of sigma 47 from none; with both, 120 did.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.PixelUnshuffle(2),
            keep_scale(nn.Conv2d(16, 32, 3, padding=1), RECTIFIED),
            nn.ReLU(),
            keep_scale(nn.Conv2d(32, 64, 3, padding=1, stride=2), RECTIFIED),
            nn.ReLU(),
            keep_scale(nn.Conv2d(64, 64, 3, padding=1), RECTIFIED),
            nn.ReLU(),
            keep_scale(nn.Conv2d(64, 96, 3, padding=1, stride=2), RECTIFIED),
            nn.ReLU(),
        )
        self.norm = nn.LayerNorm(3 * 96)
        self.out = nn.Linear(3 * 96, config.width)

    def forward(self, probes: Tensor) -> Tensor:
        """`probes` [N, P, 4, S, S] -> [N, width]."""
        count, per_image = probes.shape[:2]
        flat = probes.flatten(0, 1)
        smooth = F.avg_pool2d(F.pad(flat[:, :3], (1, 1, 1, 1), mode="replicate"), 3, 1)
        planes = torch.cat([(flat[:, :3] - smooth) * HIGH_PASS_GAIN, flat[:, 3:]], dim=1)
        features = self.body(planes).float()
        statistics = torch.cat([features.mean((2, 3)), features.std((2, 3))], dim=1)
        per_probe = (statistics + LEAST_STATISTIC).log().view(count, per_image, -1)
        half = per_probe.shape[-1] // 2
        quietest = per_probe[..., :half].amin(1)  # a flat probe shows the noise alone
        pooled: Tensor = self.out(self.norm(torch.cat([per_probe.mean(1), quietest], dim=1)))
        return pooled
