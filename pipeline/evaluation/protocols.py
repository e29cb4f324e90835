"""The tests: how images are damaged, what the restorer is told, and how its answers are judged."""

from __future__ import annotations

import dataclasses
import io
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from pipeline.damage import marks
from pipeline.damage.mixture import damage_one
from pipeline.damage.planes import Pixels, as_pixels, as_planes
from pipeline.damage.record import Damage
from pipeline.damage.strengths import Strengths
from pipeline.evaluation.tables import Sample
from pipeline.quality.scores import decibels, psnr, ssim
from pipeline.restoration.canvas import Restored
from pipeline.restoration.request import Request, as_captions
from pipeline.restoration.restorer import RestoresBatches
from pipeline.restoration.text import MiniLMEncoder

Score = Callable[[Pixels, Pixels], float]

BATCH = 16
CAPTIONS = ("true", "empty", "shuffled", "wrong", "all")
"""An image's first caption; none; another image's; that of the image whose caption is least like the true one; all
captions of the image."""
REFERENCES = ("none", "same", "other")
"""No reference; another crop of the same scene, in colour; a crop of another scene."""
REFERENCE_SIDE = 0.6
"""A reference shows this share of each side of its scene."""


class Case(NamedTuple):
    """One image of a test."""

    id: str
    request: Request
    truth: Pixels
    input_psnr: float
    damage: Damage | None = None
    """What was done, where the model's finding is to be compared with it."""
    defects: npt.NDArray[np.bool_] | None = None
    """Where it was covered or stained."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One image of a test, restored. PSNR in dB."""

    id: str
    input_psnr: float
    psnr: float
    ssim: float | None
    """Of all RGB values; None where the test judges something else, and for images smaller than its window."""
    expected_psnr: float
    """Of the whole image, by the model."""
    whole_psnr: float
    """The truth of that."""
    found: Damage
    done: Damage | None
    overlap: float | None
    """Found defects against true ones: intersection over union."""


@dataclasses.dataclass(frozen=True)
class Result:
    """One test over one set."""

    outcomes: tuple[Outcome, ...]

    @property
    def each(self) -> list[float]:
        """PSNR of each image, in the order of the set: for paired comparisons."""
        return [outcome.psnr for outcome in self.outcomes]

    @property
    def input_psnr(self) -> float:
        """Mean over the images, as all of these."""
        return _mean(outcome.input_psnr for outcome in self.outcomes)

    @property
    def psnr(self) -> float:
        """dB."""
        return _mean(self.each)

    @property
    def gain(self) -> float:
        """dB over the input."""
        return self.psnr - self.input_psnr

    @property
    def ssim(self) -> float:
        """Of the images that are large enough for it; not a number if none is."""
        return _mean(outcome.ssim for outcome in self.outcomes if outcome.ssim is not None)

    @property
    def overlap(self) -> float | None:
        """Mean intersection over union of found and true defects, where there were any."""
        found = [outcome.overlap for outcome in self.outcomes if outcome.overlap is not None]
        return _mean(found) if found else None


def denoise(samples: Sequence[Sample], sigma: float, clipped: bool = False, seed: int = 0) -> Iterator[Case]:
    """Gaussian noise of `sigma` (0..255), added to float pixels; `clipped` also clips and rounds to 8 bits."""
    for index, sample in enumerate(samples):
        noise = np.random.default_rng((seed, index)).normal(0, sigma / 255, sample.pixels.shape)
        image = (sample.pixels / 255 + noise).astype(np.float32)
        if clipped:
            image = np.rint(image.clip(0, 1) * 255).astype(np.float32) / 255
        yield Case(
            sample.id,
            Request(image),
            sample.pixels,
            decibels(float(np.square(image - sample.pixels / 255).mean())),
            Damage(noise_sigma=sigma),
        )


def jpeg(samples: Sequence[Sample], quality: int) -> Iterator[Case]:
    """JPEG by Pillow with its default 4:2:0."""
    for sample in samples:
        file = io.BytesIO()
        Image.fromarray(sample.pixels).save(file, "JPEG", quality=quality)
        image = np.asarray(Image.open(file))
        damage = Damage(jpeg_quality=quality)
        yield Case(sample.id, Request(image), sample.pixels, psnr(image, sample.pixels), damage)


def upscale(samples: Sequence[Sample], factor: int) -> Iterator[Case]:
    """Bicubic reduction (antialiased), bicubic enlargement, then restoring; to be judged by `luma_psnr(factor)`."""
    score = luma_psnr(factor)
    for sample in samples:
        height, width = (length - length % factor for length in sample.pixels.shape[:2])
        truth = np.ascontiguousarray(sample.pixels[:height, :width])
        small = Image.fromarray(truth).resize((width // factor, height // factor), Image.Resampling.BICUBIC)
        image = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))
        yield Case(sample.id, Request(image), truth, score(image, truth), Damage(downscale=factor))


def colourise(
    samples: Sequence[Sample], captions: str = "true", references: str = "none", seed: int = 0
) -> Iterator[Case]:
    """Greys given colours, their luminance kept; `captions` one of `CAPTIONS`, `references` one of `REFERENCES`.

    Raises:
        ValueError: it is none of them.
    """
    if captions not in CAPTIONS or references not in REFERENCES:
        raise ValueError(
            f"captions are one of {', '.join(CAPTIONS)}, references of {', '.join(REFERENCES)}, "
            f"not {captions!r} and {references!r}"
        )
    texts = _texts(samples, captions, seed)
    others = derangement(len(samples), seed + 1)
    for index, (sample, text) in enumerate(zip(samples, texts, strict=True)):
        grey = np.repeat(np.asarray(Image.fromarray(sample.pixels).convert("L"))[..., None], 3, axis=2)
        shown: tuple[Pixels, ...] = ()
        if references != "none":
            scene = sample if references == "same" else samples[others[index]]
            shown = (_crop(scene.pixels, random.Random(f"{seed}/{index}")),)
        first, further = (text[0], text[1:]) if text else (None, ())
        request = Request(grey, first, further, references=shown, colourise=True)
        yield Case(sample.id, request, sample.pixels, psnr(grey, sample.pixels))


def inpaint(samples: Sequence[Sample], share: float = 0.2, seed: int = 0) -> Iterator[Case]:
    """Blots over about `share` of the area, painted grey, their mask and the caption given; for `masked_psnr`."""
    for index, sample in enumerate(samples):
        lost = blots(sample.pixels.shape[0], sample.pixels.shape[1], share, random.Random(f"{seed}/{index}"))
        image = np.where(lost[..., None], np.uint8(128), sample.pixels)
        caption = sample.captions[0] if sample.captions else None
        inside = masked_psnr(lost)
        yield Case(sample.id, Request(image, caption=caption, mask=lost), sample.pixels, inside(image, sample.pixels))


def blots(height: int, width: int, share: float, dice: random.Random) -> npt.NDArray[np.bool_]:
    """A mask [H, W] of irregular blots that cover `share` of the area, give or take a tenth of it.

    Of a picture of a few pixels it covers what comes nearest.
    """
    best = np.ones((height, width), np.bool_)
    for _ in range(200):
        lost = marks.holes(height, width, share * dice.uniform(0.6, 1.0), dice)[0].numpy() > 0
        if abs(lost.mean() - share) < abs(best.mean() - share):
            best = lost
        if abs(best.mean() - share) <= 0.1 * share:
            break
    return best


def damaged(samples: Sequence[Sample], kind: str, level: float, seed: int = 0) -> Iterator[Case]:
    """One kind of damage (`KINDS`) at one strength, 0 weak to 1 strong; masks are not told, as archives have none."""
    for index, sample in enumerate(samples):
        dice = random.Random(f"{seed}/{kind}/{index}")
        generator = torch.Generator().manual_seed(dice.getrandbits(62))
        image, mask, record = damage_one(as_planes(sample.pixels), [kind], dice, generator, Strengths().at(level))
        shown = as_pixels(image)
        defects = mask[0, 0].numpy() > 0 if mask.any() else None
        yield Case(sample.id, Request(shown), sample.pixels, psnr(shown, sample.pixels), record, defects)


def measure(restorer: RestoresBatches, cases: Iterable[Case], score: Score | None = None) -> Result:
    """Restore and judge; `score(result, truth)` in dB is PSNR over all RGB values unless another is given.

    With a mask in the request, only the pixels under it are judged.
    """
    outcomes: list[Outcome] = []
    waiting: list[Case] = []
    for case in cases:
        waiting.append(case)
        if len(waiting) == BATCH:
            outcomes += _outcomes(restorer, waiting, score)
            waiting = []
    return Result((*outcomes, *_outcomes(restorer, waiting, score)))


def _outcomes(restorer: RestoresBatches, cases: Sequence[Case], score: Score | None) -> list[Outcome]:
    answers = restorer.restore_batch([case.request for case in cases])
    return [_outcome(case, answer, score) for case, answer in zip(cases, answers, strict=True)]


def _outcome(case: Case, answer: Restored, score: Score | None) -> Outcome:
    pixels = answer.pixels
    mask = case.request.mask
    judge = score or (psnr if mask is None else masked_psnr(mask))
    overlap = None
    if case.defects is not None and case.defects.any():
        overlap = float((answer.lost & case.defects).sum() / (answer.lost | case.defects).sum())
    return Outcome(
        id=case.id,
        input_psnr=case.input_psnr,
        psnr=judge(pixels, case.truth),
        ssim=ssim(pixels, case.truth) if score is None and mask is None else None,
        expected_psnr=answer.expected_psnr,
        whole_psnr=psnr(pixels, case.truth),
        found=answer.damage,
        done=case.damage,
        overlap=overlap,
    )


def luma_psnr(border: int) -> Score:
    """PSNR of BT.601 luma in limited range, 16..235, as MATLAB's rgb2ycbcr gives it, `border` pixels cropped."""

    def score(image: Pixels, truth: Pixels) -> float:
        inner = (slice(border, -border), slice(border, -border))
        weights = np.array([65.481, 128.553, 24.966]) / 255
        difference = (image[inner].astype(np.float64) - truth[inner]) @ weights
        return decibels(float(np.square(difference).mean()) / 255**2)

    return score


def masked_psnr(mask: npt.NDArray[np.bool_]) -> Score:
    """PSNR over the RGB values under a mask [H, W]."""

    def score(image: Pixels, truth: Pixels) -> float:
        difference = image[mask].astype(np.float64) - truth[mask]
        return decibels(float(np.square(difference).mean()) / 255**2)

    return score


def derangement(count: int, seed: int) -> list[int]:
    """A permutation in which nothing stays in its place (count > 1): a shuffled cycle."""
    order = list(range(count))
    random.Random(seed).shuffle(order)
    moved = [0] * count
    for here, there in zip(order, order[1:] + order[:1], strict=True):
        moved[here] = there
    return moved


def least_like(texts: Sequence[str]) -> list[int]:
    """For each text the one whose MiniLM sentence vector is least like its own (cosine)."""
    features = MiniLMEncoder(32, torch.device("cpu"))(texts)
    weight = (~features.absent).float()[..., None]
    vectors = torch.nn.functional.normalize((features.tokens * weight).sum(1), dim=1)
    return [int(place) for place in (vectors @ vectors.T).argmin(1)]


def _texts(samples: Sequence[Sample], captions: str, seed: int) -> list[tuple[str, ...]]:
    told = [as_captions(sample.captions) for sample in samples]
    if captions == "empty":
        return [()] * len(told)
    if captions == "all":
        return told
    texts = [some[:1] for some in told]
    if captions == "shuffled":
        return [texts[other] for other in derangement(len(texts), seed)]
    if captions == "wrong":
        return [texts[other] for other in least_like([next(iter(text), "") for text in texts])]
    return texts


def _crop(pixels: Pixels, dice: random.Random) -> Pixels:
    height, width = (max(1, round(length * REFERENCE_SIDE)) for length in pixels.shape[:2])
    top, left = dice.randint(0, pixels.shape[0] - height), dice.randint(0, pixels.shape[1] - width)
    return np.ascontiguousarray(pixels[top : top + height, left : left + width])


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return float(np.mean(found)) if found else float("nan")
