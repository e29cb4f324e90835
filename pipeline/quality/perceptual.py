"""LPIPS and DISTS: distances between what VGG-16 sees in two images, where the recipe names their weights.

Zhang, Isola, Efros, Shechtman, Wang: The unreasonable effectiveness of deep features as a perceptual metric, 2018
(version 0.1 with VGG); Ding, Ma, Wang, Simoncelli: Image quality assessment: unifying structure and texture similarity,
2020. Their packages import torchvision, so the network stands here; weights are the state dictionaries of
`lpips.LPIPS(net="vgg")` and `DISTS_pytorch.DISTS()` as safetensors (docs/scores.md tells how to save them).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from pipeline.errors import ModelError
from pipeline.redaction import redacted, without_secrets
from pipeline.restoration.weights import read_file

LARGEST = 4_000_000
"""Pixels up to which these are told: VGG's first features take 256 bytes of each."""
STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
"""VGG-16's convolutions before each of its five features, by their numbers in torchvision's list of layers."""
WIDTHS = (64, 128, 256, 512, 512)
_MEAN, _SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SMALLEST = 16
_C = 1e-6

Weights = dict[str, Tensor]


class Lpips:
    """LPIPS 0.1 with VGG-16."""

    def __init__(self, place: str, device: torch.device) -> None:
        """Load the weights from a path or URI.

        Raises:
            ModelError: there are none, or others.
        """
        names = [f"net.slice{stage}.{layer}" for stage, layers in enumerate(STAGES, 1) for layer in layers]
        lines = [f"lin{stage}.model.1.weight" for stage in range(len(STAGES))]
        weights = _load(place, "LPIPS", [*_both(names), *lines], device)
        self._layers = _stages(weights, names)
        self._lines = [weights[name].flatten() for name in lines]

    @torch.inference_mode()
    def __call__(self, images: Tensor, truths: Tensor) -> Tensor:
        """Distance [N] of images [N, 3, H, W] in 0..1, 0 and more, lower is better; 0: equal."""
        # As the package scales -1..1, which differs from ImageNet's own mean and spread in the fourth digit.
        shift, scale = images.new_tensor([-0.030, -0.088, -0.188]), images.new_tensor([0.458, 0.448, 0.450])
        one, other = (((2 * part - 1) - shift[:, None, None]) / scale[:, None, None] for part in (images, truths))
        total = images.new_zeros(len(images))
        for weight, x, y in zip(
            self._lines, _features(one, self._layers, _max_pool), _features(other, self._layers, _max_pool), strict=True
        ):
            apart = (_unit(x) - _unit(y)).square()
            total += torch.einsum("c,nchw->n", weight, apart) / (x.shape[2] * x.shape[3])
        return total


class Dists:
    """DISTS."""

    def __init__(self, place: str, device: torch.device) -> None:
        """Load the weights from a path or URI.

        Raises:
            ModelError: there are none, or others.
        """
        names = [f"stage{stage}.{layer}" for stage, layers in enumerate(STAGES, 1) for layer in layers]
        weights = _load(place, "DISTS", [*_both(names), "alpha", "beta"], device)
        self._layers = _stages(weights, names)
        whole = weights["alpha"].sum() + weights["beta"].sum()
        widths = [3, *WIDTHS]
        self._alpha, self._beta = (torch.split(weights[name].flatten() / whole, widths) for name in ("alpha", "beta"))

    @torch.inference_mode()
    def __call__(self, images: Tensor, truths: Tensor) -> Tensor:
        """Distance [N] of images [N, 3, H, W] in 0..1, 0 to 1, lower is better; 0: equal."""
        mean, spread = images.new_tensor(_MEAN)[:, None, None], images.new_tensor(_SPREAD)[:, None, None]
        one, other = ([part, *_features((part - mean) / spread, self._layers, _l2_pool)] for part in (images, truths))
        similar = images.new_zeros(len(images))
        for alpha, beta, x, y in zip(self._alpha, self._beta, one, other, strict=True):
            mean_x, mean_y = x.mean((2, 3)), y.mean((2, 3))
            away_x, away_y = x - mean_x[:, :, None, None], y - mean_y[:, :, None, None]
            both = (away_x * away_y).mean((2, 3))
            spread_x, spread_y = away_x.square().mean((2, 3)), away_y.square().mean((2, 3))
            texture = (2 * mean_x * mean_y + _C) / (mean_x**2 + mean_y**2 + _C)
            structure = (2 * both + _C) / (spread_x + spread_y + _C)
            similar += texture @ alpha + structure @ beta
        return 1 - similar


def fits(height: int, width: int) -> bool:
    """Whether these distances are told of an image of this size."""
    return min(height, width) >= _SMALLEST and height * width <= LARGEST


def _both(names: list[str]) -> list[str]:
    return [f"{name}.{kind}" for name in names for kind in ("weight", "bias")]


def _load(place: str, what: str, names: list[str], device: torch.device) -> Weights:
    try:
        tensors = load(read_file(place))
    except Exception as error:  # a driver that is missing, or whatever a store raises
        reason = "not safetensors" if isinstance(error, SafetensorError) else type(error).__name__
        said = f"{reason}: {without_secrets(str(error))[:200]}"
        raise ModelError(f"the weights of {what} cannot be read from {redacted(place)} ({said})") from error
    missing = [name for name in names if name not in tensors]
    if missing:
        raise ModelError(
            f"{redacted(place)} does not hold the weights of {what}: {missing[0]!r} and {len(missing) - 1} more are "
            "missing; docs/scores.md tells how to save them"
        )
    return {name: tensors[name].float().to(device) for name in names}


def _stages(weights: Weights, names: list[str]) -> list[list[tuple[Tensor, Tensor]]]:
    pairs = iter([(weights[f"{name}.weight"], weights[f"{name}.bias"]) for name in names])
    return [[next(pairs) for _ in layers] for layers in STAGES]


def _features(
    images: Tensor, stages: list[list[tuple[Tensor, Tensor]]], pool: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    found = []
    for number, layers in enumerate(stages):
        images = pool(images) if number else images
        for weight, bias in layers:
            images = F.relu(F.conv2d(images, weight, bias, padding=1))
        found.append(images)
    return found


def _max_pool(images: Tensor) -> Tensor:
    return F.max_pool2d(images, 2)


def _l2_pool(images: Tensor) -> Tensor:
    """Root of the mean square under a Hann window of 3 x 3, every second pixel."""
    line = images.new_tensor([0.5, 1.0, 0.5])
    window = torch.outer(line, line) / line.sum() ** 2
    channels = images.shape[1]
    squares = F.conv2d(images.square(), window.expand(channels, 1, 3, 3), stride=2, padding=1, groups=channels)
    return (squares + 1e-12).sqrt()


def _unit(features: Tensor) -> Tensor:
    return features / (features.square().sum(1, keepdim=True).sqrt() + 1e-10)
