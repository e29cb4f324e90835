"""Denoising, JPEG artefacts, super-resolution, and colour from captions."""

from __future__ import annotations

import dataclasses
import io
import random
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.evaluation.tables import Sample
from pipeline.quality.scores import psnr, ssim
from pipeline.restoration.request import Request
from pipeline.restoration.restorer import Restored, Restorer

BATCH = 16


@dataclasses.dataclass(frozen=True)
class Result:
    """Means over a test set, PSNR in dB."""

    name: str
    images: int
    input_psnr: float
    psnr: float
    ssim: float
    each: tuple[float, ...]
    """PSNR of each image, in the order of the set: for paired comparisons."""

    @property
    def gain(self) -> float:
        """dB over the input."""
        return self.psnr - self.input_psnr


def denoise(
    restorer: Restorer, samples: Sequence[Sample], sigma: float, clipped: bool = False, seed: int = 0
) -> Result:
    """Gaussian noise of `sigma` (0..255), added to float pixels; `clipped` also clips and rounds to 8 bits."""
    noisy = []
    for index, sample in enumerate(samples):
        noise = np.random.default_rng((seed, index)).normal(0, sigma / 255, sample.pixels.shape)
        image = (sample.pixels / 255 + noise).astype(np.float32)
        noisy.append(np.rint(image.clip(0, 1) * 255).astype(np.float32) / 255 if clipped else image)
    inputs = [_float_psnr(image, sample.pixels / 255) for image, sample in zip(noisy, samples, strict=True)]
    answers = _run(restorer, [Request(image) for image in noisy])
    return _result(f"noise, sigma {sigma:g}{', clipped' if clipped else ''}", samples, inputs, answers)


def jpeg(restorer: Restorer, samples: Sequence[Sample], quality: int) -> Result:
    """JPEG by Pillow with its default 4:2:0."""
    damaged = [_jpeg(sample.pixels, quality) for sample in samples]
    inputs = [psnr(image, sample.pixels) for image, sample in zip(damaged, samples, strict=True)]
    return _result(f"JPEG, quality {quality}", samples, inputs, _run(restorer, [Request(image) for image in damaged]))


def upscale(restorer: Restorer, samples: Sequence[Sample], factor: int) -> Result:
    """Bicubic reduction (antialiased), bicubic enlargement, then restoring; Y channel, `factor` pixels cropped."""
    truths, damaged = [], []
    for sample in samples:
        height, width = (length - length % factor for length in sample.pixels.shape[:2])
        truth = sample.pixels[:height, :width]
        small = Image.fromarray(truth).resize((width // factor, height // factor), Image.Resampling.BICUBIC)
        damaged.append(np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)))
        truths.append(truth)
    answers = list(_run(restorer, [Request(image) for image in damaged]))
    inputs = [_luma_psnr(image, truth, factor) for image, truth in zip(damaged, truths, strict=True)]
    each = [_luma_psnr(answer.pixels, truth, factor) for answer, truth in zip(answers, truths, strict=True)]
    similar = [ssim(answer.pixels, truth) or 0.0 for answer, truth in zip(answers, truths, strict=True)]
    return Result(f"low resolution, x{factor}, Y", len(truths), _mean(inputs), _mean(each), _mean(similar), tuple(each))


def colourise(restorer: Restorer, samples: Sequence[Sample], captions: str, seed: int = 0) -> Result:
    """Greys given colours, their luminance kept; RGB PSNR.

    `captions` is `true` (the first of each image), `empty`, or `shuffled` (another image's).
    """
    texts: list[str | None] = [sample.captions[0] if sample.captions else None for sample in samples]
    if captions == "empty":
        texts = [None] * len(texts)
    elif captions == "shuffled":
        order = derangement(len(texts), seed)
        texts = [texts[other] for other in order]
    elif captions != "true":
        raise ValueError(f"captions are true, empty or shuffled, not {captions!r}")
    greys = [np.repeat(np.asarray(Image.fromarray(s.pixels).convert("L"))[..., None], 3, axis=2) for s in samples]
    inputs = [psnr(grey, sample.pixels) for grey, sample in zip(greys, samples, strict=True)]
    requests = [Request(grey, caption=text, colourise=True) for grey, text in zip(greys, texts, strict=True)]
    return _result(f"greys, {captions} captions", samples, inputs, _run(restorer, requests))


def derangement(count: int, seed: int) -> list[int]:
    """A permutation in which nothing stays in its place (count > 1): a shuffled cycle."""
    order = list(range(count))
    random.Random(seed).shuffle(order)
    moved = [0] * count
    for here, there in zip(order, order[1:] + order[:1], strict=True):
        moved[here] = there
    return moved


def _run(restorer: Restorer, requests: Sequence[Request]) -> Iterator[Restored]:
    for start in range(0, len(requests), BATCH):
        yield from restorer.restore_batch(requests[start : start + BATCH])


def _result(name: str, samples: Sequence[Sample], inputs: Sequence[float], answers: Iterator[Restored]) -> Result:
    each, similar = [], []
    for sample, answer in zip(samples, answers, strict=True):
        pixels = answer.pixels
        each.append(psnr(pixels, sample.pixels))
        similar.append(ssim(pixels, sample.pixels) or 0.0)
    return Result(name, len(samples), _mean(inputs), _mean(each), _mean(similar), tuple(each))


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _jpeg(pixels: npt.NDArray[np.uint8], quality: int) -> npt.NDArray[np.uint8]:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def _float_psnr(image: npt.NDArray[np.floating], truth: npt.NDArray[np.floating]) -> float:
    return float(-10 * np.log10(np.square(image - truth).mean()))


def _luma_psnr(image: npt.NDArray[np.uint8], truth: npt.NDArray[np.uint8], border: int) -> float:
    """BT.601 in limited range, 16..235, as MATLAB's rgb2ycbcr gives it."""
    inner = (slice(border, -border), slice(border, -border))
    weights = np.array([65.481, 128.553, 24.966]) / 255
    difference = (image[inner].astype(np.float64) - truth[inner]) @ weights
    return float(10 * np.log10(255**2 / np.square(difference).mean()))
