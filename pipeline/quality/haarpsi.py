"""HaarPSI: Reisenhofer, Bosse, Kutyniok, Wiegand: A Haar wavelet-based perceptual similarity index, 2018.

As in the authors' code: YIQ, every second pixel after a mean over 2 x 2, three Haar filters, C = 30, alpha = 4.2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.quality.gradients import similarity, slopes
from pipeline.quality.strips import floats, strips

_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))
_C, _ALPHA = 30.0, 4.2
_SCALES = 3
_REACH = 2**_SCALES


def haarpsi(images: Tensor, truths: Tensor) -> Tensor:
    """Similarity [K, N] of images [K, N, H, W, 3] to truths [N, H, W, 3], uint8: 0..1, higher is better; 1: equal."""
    above = torch.zeros(images.shape[:2], dtype=torch.float64, device=images.device)
    below = torch.zeros_like(above)
    for rows, kept in strips(truths, 2 * _REACH, step=2):
        one, other = _features(images[:, :, rows].flatten(0, 1)), _features(truths[:, rows])
        similar, weight = _maps([part.view(*above.shape, *part.shape[1:]) for part in one], other)
        counted = slice(kept.start // 2, (kept.stop + 1) // 2)
        similar, weight = similar[..., counted, :], weight[..., counted, :]
        above += (torch.sigmoid(_ALPHA * similar) * weight).sum((2, 3, 4), dtype=torch.float64)
        below += weight.sum((2, 3, 4), dtype=torch.float64)
    smallest = torch.finfo(torch.float32).eps  # two pictures without any edges are equally flat
    return (torch.logit((above + smallest) / (below + smallest), eps=1e-12) / _ALPHA).square().clamp_max(1)


def _seen(images: Tensor) -> Tensor:
    """[N, h, W, 3] -> YIQ of 0..255 as seen from the usual distance, [N, 3, h / 2, W / 2]."""
    yiq = torch.einsum("kc,nchw->nkhw", torch.tensor(_YIQ, device=images.device), floats(images) * 255)
    odd = yiq.shape[2] % 2, yiq.shape[3] % 2
    return F.avg_pool2d(F.pad(yiq, (0, odd[1], 0, odd[0])), 2)


def _features(images: Tensor) -> list[Tensor]:
    """Of [N, h, W, 3]: sizes of edges at each scale, then of colours, [N, 2, h / 2, W / 2] each."""
    yiq = _seen(images)
    colours = F.avg_pool2d(F.pad(yiq[:, 1:], (0, 1, 0, 1)), 2, stride=1).abs()
    return [*(_edges(yiq, scale) for scale in range(1, _SCALES + 1)), colours]


def _maps(one: Sequence[Tensor], other: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Similarities and weights, [..., 3, h, w]: of vertical and horizontal edges, and of colours."""
    *fine, coarse, colours = ((x, y) for x, y in zip(one, other, strict=True))
    similar = torch.stack([similarity(x, y, _C) for x, y in fine]).mean(0)
    weight = torch.maximum(*coarse)
    similar = torch.cat([similar, similarity(*colours, _C).mean(-3, keepdim=True)], -3)
    return similar, torch.cat([weight, weight.mean(-3, keepdim=True)], -3)


def _edges(yiq: Tensor, scale: int) -> Tensor:
    """Sizes of the brightness's Haar coefficients at a scale, [N, 2, h, w]."""
    half = 2 ** (scale - 1)
    along, across = [0.5 / half] * (2 * half), [1.0] * half + [-1.0] * half
    return slopes(yiq[:, :1], along, across, (half - 1, half)).abs()
