"""Scores of one image, without a truth to compare it with.

They tell two states of one picture apart, not good motifs from bad ones: grass is not noise, and fog lacks no contrast.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.damage.tone import luma
from pipeline.quality.strips import floats, strips

SMALLEST = 24
"""Pixels a side from which on noise, blocks and sharpness are told: three blocks of JPEG."""
_REACH = 8
_BLOCK = 8
_BINS, _RANGE = 1 << 17, 4.0
_FLAT = 1e-6
"""Mean slope of an image that has no edges."""
_THREE_QUARTERS = 0.6744897501960817
"""Below it lie three quarters of a normal distribution: the median of its absolute values."""
_BLUR = 11


def blind(images: Tensor) -> dict[str, Tensor]:
    """Scores [N] by their names, of images [N, H, W, 3] uint8.

    - `noise`: standard deviation in units of 0..255, by the median of the finest diagonal wavelet coefficients (Donoho
      and Johnstone 1994, as scikit-image's `estimate_sigma`), mean of the channels. Fine texture counts as noise; black
      does not count at all.
    - `blockiness`: 0 to 1, how much larger the steps of brightness are every eight pixels than elsewhere, wherever
      the grid begins: (grid - rest) / (grid + rest), after Wang, Sheikh and Bovik 2002.
    - `sharpness`: 0 to 1, one less the blur that Crété, Dolmiere, Ladret and Nicolas 2007 perceive (scikit-image's
      `blur_effect`). Noise counts as sharpness.
    - `contrast`: standard deviation of brightness, 0 to 0.5 (Peli 1990).
    - `clipped`: share of pixels of which a channel is 0 or 255.
    - `colourfulness`: 0 to about 190, grey to garish (Hasler and Süsstrunk 2003).

    The first three are left out of images smaller than `SMALLEST`; of one without any edge `sharpness` is not a number.
    """
    count, height, width = images.shape[:3]
    fine = min(height, width) >= SMALLEST
    median = _Median(count * 3, images.device)
    steps = torch.zeros(2, count, _BLOCK, dtype=torch.float64, device=images.device)
    edges = torch.zeros(2, 2, count, dtype=torch.float64, device=images.device)
    sums = torch.zeros(7, count, dtype=torch.float64, device=images.device)
    for rows, kept in strips(images, _REACH, step=_BLOCK):
        pixels = floats(images[:, rows])
        grey = luma(pixels)[:, 0]
        sums += _sums(pixels[:, :, kept], grey[:, kept])
        if fine:
            median.add(_diagonal(pixels, rows, kept, height))
            steps += _steps(grey, kept, height)
            edges += _edges(grey, rows, kept, height)
    scores = _of_sums(sums / (height * width))
    if fine:
        scores["noise"] = 255 * median.value().view(count, 3).mean(1) / _THREE_QUARTERS
        grid = steps.amax(2)
        rest = (steps.sum(2) - grid) / (_BLOCK - 1)
        scores["blockiness"] = ((grid - rest) / (grid + rest).clamp_min(1e-6)).mean(0)
        sharp, lost = edges
        blur = ((sharp - lost).abs() / sharp).amax(0)
        scores["sharpness"] = torch.where((sharp > _FLAT * height * width).all(0), 1 - blur, math.nan)
    return scores


def _sums(pixels: Tensor, grey: Tensor) -> Tensor:
    """[7, N]: brightness and its square, clipped pixels, red less green, yellow less blue, and their squares."""
    red, green, blue = (255 * pixels).unbind(1)
    darkest, lightest = torch.minimum(torch.minimum(red, green), blue), torch.maximum(torch.maximum(red, green), blue)
    clipped = ((darkest == 0) | (lightest == 255)).float()
    first, second = red - green, (red + green) / 2 - blue
    parts = (grey, grey.square(), clipped, first, second, first.square(), second.square())
    return torch.stack([part.sum(2).sum(1, dtype=torch.float64) for part in parts])


def _of_sums(means: Tensor) -> dict[str, Tensor]:
    grey, squares, clipped, *opponents = means
    first, second, first_squares, second_squares = opponents
    spread = (first_squares - first**2).clamp_min(0) + (second_squares - second**2).clamp_min(0)
    return {
        "contrast": (squares - grey**2).clamp_min(0).sqrt(),
        "clipped": clipped,
        "colourfulness": spread.sqrt() + 0.3 * (first**2 + second**2).sqrt(),
    }


def _diagonal(pixels: Tensor, rows: slice, kept: slice, height: int) -> Tensor:
    """Sizes [3 N, K] of the diagonal coefficients by Daubechies' wavelet of length 4; NaN where all is black."""
    root = math.sqrt(3)
    wavelet = torch.tensor([1 - root, root - 3, 3 + root, -1 - root], device=pixels.device) / (4 * math.sqrt(2))
    width = pixels.shape[3]
    first, last = rows.start + kept.start, rows.start + kept.stop
    if last == height:
        last += 2 + height % 2
    down = _mirrored(first - 2, last, height, pixels.device) - rows.start
    across = _mirrored(-2, width + 2 + width % 2, width, pixels.device)
    windows = pixels.index_select(2, down).index_select(3, across).flatten(0, 1)[:, None]
    sizes = F.conv2d(windows, torch.outer(wavelet, wavelet)[None, None], stride=2).flatten(1).abs()
    corners = windows[:, 0, ::2, ::2][:, : (windows.shape[2] - 2) // 2, : (windows.shape[3] - 2) // 2].flatten(1)
    return sizes.masked_fill((sizes == 0) & (corners == 0), math.nan)


class _Median:
    """The median of what comes in pieces [M, K], for each of the M; NaN does not count, and of nothing it is 0."""

    def __init__(self, count: int, device: torch.device) -> None:
        self._first: Tensor | None = None
        self._counts: Tensor | None = None
        self._shape = (count, _BINS)
        self._device = device

    def add(self, sizes: Tensor) -> None:
        """`sizes` in 0..`_RANGE`."""
        if self._first is None and self._counts is None:
            self._first = sizes
            return
        if self._counts is None:
            self._counts = torch.zeros(self._shape, device=self._device)
            assert self._first is not None
            self._count(self._first)
            self._first = None
        self._count(sizes)

    def _count(self, sizes: Tensor) -> None:
        assert self._counts is not None
        # Narrow bins for small sizes: what is told is a share of them.
        bins = ((sizes.nan_to_num() / _RANGE).sqrt() * _BINS).long().clamp_max(_BINS - 1)
        self._counts.scatter_add_(1, bins, (~sizes.isnan()).float())

    def value(self) -> Tensor:
        """[M]; exact of one piece."""
        if self._first is not None:
            return self._first.nanmedian(1).values.nan_to_num()
        assert self._counts is not None
        below = self._counts.double().cumsum(1)
        half = below[:, -1:] / 2
        place = torch.searchsorted(below, half).clamp_max(_BINS - 1)
        inside = self._counts.gather(1, place).clamp_min(1)
        before = below.gather(1, place) - inside
        share = ((place + (half - before) / inside) / _BINS) ** 2
        return torch.where(half > 0, _RANGE * share, 0.0)[:, 0]


def _steps(grey: Tensor, kept: slice, height: int) -> Tensor:
    """[2, N, 8]: sums of the steps of brightness across and down, by their place in the grid, as shares of an image."""
    count, _, width = grey.shape
    found = torch.zeros(2, count, _BLOCK, dtype=torch.float64, device=grey.device)
    across = grey[:, kept].diff(dim=2).abs().sum(1, dtype=torch.float64)
    down = grey[:, kept.start : kept.stop + 1].diff(dim=1).abs().sum(2, dtype=torch.float64)
    for direction, lines, length in ((0, across, width - 1), (1, down, height - 1)):
        # The grid's first line is where the strip's is: strips begin at multiples of eight.
        for place in range(_BLOCK):
            of_image = len(range(place, length, _BLOCK))
            found[direction, :, place] = lines[:, place::_BLOCK].sum(1) / of_image
    return found / torch.tensor([height, width], device=grey.device)[:, None, None]


def _edges(grey: Tensor, rows: slice, kept: slice, height: int) -> Tensor:
    """[2, 2, N]: edges down and across, and what of them is lost by more blur; sums without the image's outermost."""
    width = grey.shape[2]
    first, last = max(2, rows.start + kept.start), min(height - 1, rows.start + kept.stop)
    reach = _BLUR // 2 + 1
    around = _mirrored(first - reach, last + reach, height, grey.device) - rows.start
    across = _mirrored(2 - reach, width - 1 + reach, width, grey.device)
    whole = grey.index_select(1, around).index_select(2, across)[:, None]
    found = []
    for axis in (2, 3):
        sharp = _sobel(whole.narrow(2, reach - 1, last - first + 2).narrow(3, reach - 1, width - 1), axis)
        blurred = _running_mean(whole, axis)
        other = 5 - axis
        blurred = blurred.narrow(other, reach - 1, blurred.shape[other] - 2 * (reach - 1))
        lost = (sharp - _sobel(blurred, axis)).clamp_min(0)
        found.append(torch.stack([part.sum((1, 2, 3), dtype=torch.float64) for part in (sharp, lost)]))
    return torch.stack(found, 1)


def _running_mean(planes: Tensor, axis: int) -> Tensor:
    """The mean of each `_BLUR` = 8 + 2 + 1 neighbours along an axis; pooling adds one by one, in ten times the time."""

    def added(sums: Tensor, apart: int) -> Tensor:
        length = sums.shape[axis] - apart
        return sums.narrow(axis, 0, length) + sums.narrow(axis, apart, length)

    twos = added(planes, 1)
    eights = added(added(twos, 2), 4)
    length = planes.shape[axis] - _BLUR + 1
    return (eights.narrow(axis, 0, length) + twos.narrow(axis, 8, length) + planes.narrow(axis, 10, length)) / _BLUR


def _sobel(planes: Tensor, axis: int) -> Tensor:
    """Sizes of the slope along an axis, of [N, 1, h, w]; two rows and columns less."""
    slope = planes.narrow(axis, 2, planes.shape[axis] - 2) - planes.narrow(axis, 0, planes.shape[axis] - 2)
    other = 5 - axis
    length = planes.shape[other] - 2
    smooth = (slope.narrow(other, 0, length) + slope.narrow(other, 2, length)) / 2 + slope.narrow(other, 1, length)
    return smooth.abs() / 4


def _mirrored(start: int, stop: int, length: int, device: torch.device) -> Tensor:
    """Numbers of rows; beyond the edges they come again."""
    rows = torch.arange(start, stop, device=device)
    rows = torch.where(rows < 0, -rows - 1, rows)
    return torch.where(rows >= length, 2 * length - 1 - rows, rows)
