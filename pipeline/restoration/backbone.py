"""Backbones of transformers (ResNet, ConvNeXt, DINOv2, …) as image encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import ModelError
from pipeline.redaction import redacted
from pipeline.restoration.config import ModelConfig
from pipeline.restoration.layers import keep_scale, normalise
from pipeline.restoration.local import from_hub, is_local, local_copy, local_path, said, whole

RESNETS: dict[str, dict[str, Any]] = {
    "resnet18": {"layer_type": "basic", "hidden_sizes": [64, 128, 256], "depths": [2, 2, 2]},
    "resnet34": {"layer_type": "basic", "hidden_sizes": [64, 128, 256], "depths": [3, 4, 6]},
    "resnet50": {"layer_type": "bottleneck", "hidden_sizes": [256, 512, 1024], "depths": [3, 4, 6]},
}
"""The three stages that a thumbnail needs: down to 1/16."""
MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's colours: what published backbones were trained on."""
GROUPS = 16
"""Groups of channels that are normalised together where weights are random."""


class Backbone(nn.Module):
    """Stands in for `image.ImageEncoder`: the backbone's feature maps at 1/4, 1/8 and 1/16, each brought to our width.

    Of backbones with one resolution (vision transformers) the maps of three depths are brought to these sizes. Batch
    norms are not kept: with batches as small and mixed as these, and results that must not depend on their company,
    loaded ones become a scale and shift of each channel, and those with random weights group norms.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, config: ModelConfig) -> None:
        """A backbone of the shape that `config.backbone` gives, with random weights."""
        super().__init__()
        from transformers import AutoBackbone, AutoConfig

        shape = dict(config.backbone or {})
        loaded = shape.pop("loaded")
        self.body = AutoBackbone.from_config(AutoConfig.for_model(**shape))
        _replace_batch_norms(self.body, loaded)
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("spread", torch.tensor(SPREAD)[:, None, None], persistent=False)
        sizes = self._sizes(config.thumbnail)
        self._places = _places(sizes, config.thumbnail, len(config.encoder_widths))
        channels = [self.body.channels[place] for place in self._places]
        self.adapt = nn.ModuleList(
            keep_scale(nn.Conv2d(before + 1, width, 1))
            for before, width in zip(channels, config.encoder_widths, strict=True)
        )

    @torch.no_grad()
    def _sizes(self, side: int) -> list[int]:
        return [int(features.shape[-1]) for features in self.body(torch.zeros(1, 3, side, side)).feature_maps]

    def forward(self, thumbnails: Tensor) -> list[Tensor]:
        """`thumbnails` [N, 4, S, S] -> features at S/4, S/8 and S/16, finest first."""
        colours, missing = thumbnails[:, :3], thumbnails[:, 3:]
        maps = self.body((colours - self.mean) / self.spread).feature_maps
        pyramid, side = [], thumbnails.shape[-1]
        for level, (place, adapt) in enumerate(zip(self._places, self.adapt, strict=True)):
            size = (side // (4 << level),) * 2
            features = maps[place]
            if features.shape[-2:] != size:
                features = F.interpolate(features, size=size, mode="bilinear", align_corners=False)
            there = F.interpolate(missing, size=size, mode="area").to(features.dtype)
            pyramid.append(adapt(torch.cat([normalise(features), there], dim=1)))
        return pyramid


def backbone_shape(place: str, downloads: bool = False) -> tuple[dict[str, Any], Path | None]:
    """What `ModelConfig.backbone` holds for a backbone, and the folder of its weights.

    Args:
        place: `resnet18`, `resnet34`, `resnet50` (with random weights), a folder or URI with a model of transformers,
            or a name on the Hugging Face hub.
        downloads: a name on the hub may be fetched from there; else it must have been, once.

    Raises:
        ModelError: there is none.
    """
    from transformers import AutoBackbone, AutoConfig, ResNetConfig

    if place in RESNETS:
        shape = ResNetConfig(embedding_size=64, out_indices=[1, 2, 3], **RESNETS[place]).to_diff_dict()
        return shape | {"model_type": "resnet", "loaded": False}, None
    try:
        here = local_path(place)
        folder = local_copy(here) if Path(here).is_dir() or not is_local(here) else from_hub(here, downloads)
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        stages = len(AutoBackbone.from_config(config).stage_names)
        config.out_indices = list(range(1, stages))
    except Exception as error:  # a driver that is missing, or what a store, the hub or transformers raises
        raise ModelError(
            f"no image encoder {redacted(place)!r} ({said(error)}); give compact, "
            f"{', '.join(RESNETS)}, or a folder or URI with a backbone of transformers"
        ) from error
    return config.to_diff_dict() | {"model_type": config.model_type, "loaded": True}, folder


def load_backbone(backbone: Backbone, folder: Path) -> None:
    """Give a backbone the weights that lie in a folder.

    Raises:
        ModelError: they are not there, or not in safetensors.
    """
    body = backbone.body
    try:
        weights = whole(type(body), folder, ("hidden_states_norms",), config=body.config)
    except (ModelError, OSError, ValueError) as error:
        raise ModelError(f"the backbone in {folder} cannot be loaded: {error}") from error
    _replace_batch_norms(weights, loaded=True)
    body.load_state_dict(weights.state_dict())


def _places(sizes: list[int], side: int, levels: int) -> list[int]:
    """Which of the maps serve the levels: of each size the deepest, or, where all are alike, three depths."""
    if len(set(sizes)) == 1:
        return [round((level + 1) * len(sizes) / levels) - 1 for level in range(levels)]
    nearest = []
    for level in range(levels):
        wanted = side / (4 << level)
        nearest.append(max(range(len(sizes)), key=lambda place: (-abs(sizes[place] - wanted), place)))
    return nearest


class _ChannelScale(nn.Module):
    """What a batch norm does once it has been trained."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        assert norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight.detach() * (norm.running_var + norm.eps).rsqrt()
        self.weight = nn.Parameter(scale)
        self.bias = nn.Parameter(norm.bias.detach() - norm.running_mean * scale)

    def forward(self, features: Tensor) -> Tensor:
        return torch.addcmul(self.bias[:, None, None], features, self.weight[:, None, None])


def _replace_batch_norms(module: nn.Module, loaded: bool) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            count = child.num_features
            setattr(module, name, _ChannelScale(child) if loaded else nn.GroupNorm(max(1, count // GROUPS), count))
        else:
            _replace_batch_norms(child, loaded)
