"""The engine: runs tiles of many images through the decoder in batches, and paints what comes out."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.restoration.canvas import Canvas, Part
from pipeline.restoration.decoder import LEAST_LOG_ERROR, MOST_LOG_ERROR, Decoded, Guide
from pipeline.restoration.model import CompactModel
from pipeline.restoration.precision import autocast
from pipeline.restoration.request import Request
from pipeline.restoration.tiles import Size, Tile, cut, sent
from pipeline.restoration.tone import Tone, redone
from pipeline.restoration.views import regions

log = logging.getLogger(__name__)

SHAPES = 64
"""That are compiled at most: beyond its limit torch.compile runs without a word what was not compiled."""
_NO_MEMORY = ("DefaultCPUAllocator: can't allocate memory", "STATUS_ALLOC_FAILED")
"""What PyTorch, cuBLAS and cuDNN say in errors that are not `torch.OutOfMemoryError`."""


class Job(NamedTuple):
    """A tile to decode."""

    request: Request
    tile: Tile
    """Its place in the request's pixels."""
    box: tuple[float, float, float, float]
    """Its place in the whole image, as shares of its sides."""
    guide: Guide
    """That of its image, without the dimension of the batch."""
    grey: bool
    canvas: Canvas


class _Running(NamedTuple):
    """A batch that a GPU may still be at work on."""

    jobs: Sequence[Job]
    parts: Sequence[Part]
    done: torch.cuda.Event | None


class Engine:
    """A decoder on a device.

    Tiles of one size run in equally large batches; the last of them, that is not full, in the next larger power of two,
    or padded to a full one where each shape is compiled. Where one tile runs at a time no result depends on its
    company, else but for rounding. While a GPU works on one batch, the next is cut and sent and the last is painted.
    """

    def __init__(self, model: CompactModel, device: torch.device, batch_pixels: int, compiled: bool = False) -> None:
        """For a model on this device.

        Args:
            model: the network, on the device.
            device: where it is.
            batch_pixels: of the tiles that run together; one tile runs in any case.
            compiled: by torch.compile, once for each size of tiles and each number of references.
        """
        self._model = model
        self._device = device
        self.batch_pixels = batch_pixels
        self._compiled, self._is_ready = compiled, not compiled

    def batch(self, size: Size) -> int:
        """How many tiles of this size run together."""
        return max(1, self.batch_pixels // math.prod(size))

    def run(self, size: Size, jobs: Iterable[Job], by_expert: bool = False) -> None:
        """Decode tiles and paint what is kept of them; where memory does not do, in batches of half the size.

        Args:
            size: of the tiles.
            jobs: the tiles.
            by_expert: it is the model's expert that decodes them.

        Raises:
            RuntimeError: not even a single tile fits into the memory.
        """
        self.warm_up([])
        remaining, before = iter(jobs), None
        with autocast(self._device):  # around all of them: weights are brought to half precision once
            while some := list(itertools.islice(remaining, self.batch(size))):
                try:
                    running = self._launch(size, some, by_expert)
                except RuntimeError as error:
                    self._halve(size, error)
                    remaining = itertools.chain(some, remaining)
                    continue
                if before is not None:
                    _paint(before)
                before = running
            if before is not None:
                _paint(before)

    def warm_up(self, sizes: Iterable[Size]) -> None:
        """Compile, if that is wanted, for tiles of these sizes; not before it is known how many run together."""
        if self._is_ready:
            return
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, SHAPES)
        self._model.decoder.compile(dynamic=False)
        if self._model.expert is not None:
            self._model.expert.compile(dynamic=False)
        self._is_ready = True
        for size in sizes:
            self.speed_within(size)
            if self._model.expert is not None:
                with torch.inference_mode(), autocast(self._device):
                    self._model.refine(torch.zeros(self.batch(size), 3, *size, device=self._device))

    @torch.inference_mode()
    def speed(self, size: Size, rounds: int = 3) -> float:
        """Megapixels a second of tiles of this size in memory, margins included: the best of some rounds.

        Raises:
            RuntimeError: the batch does not fit into the memory.
        """
        count, config = self.batch(size), self._model.config
        tiles = torch.rand(count, 3, *size, device=self._device)
        masks = torch.zeros(count, 1, *size, device=self._device)
        tokens = config.text_tokens + (config.thumbnail // 16) ** 2
        guide = Guide(
            torch.zeros(count, tokens, config.width, device=self._device),
            torch.zeros(count, tokens, dtype=torch.bool, device=self._device),
            torch.zeros(count, config.width, device=self._device),
            torch.rand(count, 3, config.thumbnail // 4, config.thumbnail // 4, device=self._device),
            *Tone.none(count, self._device),
        )
        boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]] * count, device=self._device)
        grey = torch.zeros(count, dtype=torch.bool, device=self._device)
        seconds = []
        with autocast(self._device):
            for _ in range(rounds):
                started = time.perf_counter()
                float(self._model.decode(tiles, masks, guide, boxes, grey).pixels[0, 0, 0, 0])  # waits for a GPU
                seconds.append(time.perf_counter() - started)
        return count * math.prod(size) / min(seconds) / 1e6

    def speed_within(self, size: Size, rounds: int = 3) -> float:
        """The same in a batch that fits: it is halved where it does not.

        Raises:
            RuntimeError: not even a single tile fits into the memory.
        """
        while True:
            try:
                return self.speed(size, rounds)
            except RuntimeError as error:
                self._halve(size, error)

    def _halve(self, size: Size, error: RuntimeError) -> None:
        """After an error; if it is none of memory, or there is nothing to halve, it is raised."""
        if not out_of_memory(error) or self.batch(size) == 1:
            raise error
        self.batch_pixels = self.batch(size) // 2 * math.prod(size)
        log.warning("out of memory: from now on %d tiles of %d x %d pixels run together", self.batch(size), *size)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _launch(self, size: Size, jobs: Sequence[Job], by_expert: bool) -> _Running:
        """Send a batch to the device and begin with it; a GPU is not waited for."""
        full = self.batch(size)
        count = full if self._compiled else min(full, 1 << (len(jobs) - 1).bit_length())
        padded = [*jobs, *[jobs[0]] * (count - len(jobs))]
        device = self._device
        pixels = torch.stack([cut(job.request.seen, job.tile, size, device) for job in padded])
        decoded = self._model.refine(pixels) if by_expert else self._decoded(size, padded, pixels)
        with torch.autocast(device.type, enabled=False):
            restored, lost = decoded.pixels.float(), decoded.lost > 0  # a logit
            log_error = decoded.log_error.float().clamp(LEAST_LOG_ERROR, MOST_LOG_ERROR)
            tiles = zip(jobs, restored, log_error, lost, strict=False)  # not those that fill the batch up
            parts = [_blended(*tile) for tile in tiles]
        if device.type != "cuda":
            return _Running(jobs, parts, None)
        parts = [Part(*(_coming(tensor) for tensor in part)) for part in parts]
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record(torch.cuda.current_stream(device))
        return _Running(jobs, parts, done)

    def _decoded(self, size: Size, jobs: Sequence[Job], pixels: Tensor) -> Decoded:
        """What the decoder says of tiles [N, 3, *size], with all that is known of their images."""
        device = self._device
        masks = torch.stack([_cut_mask(job.request, job.tile, size, device) for job in jobs])
        boxes = sent(torch.tensor([job.box for job in jobs]), device)
        guide = Guide(*(torch.stack(parts) for parts in zip(*(job.guide for job in jobs), strict=True)))
        grey = sent(torch.tensor([job.grey for job in jobs]), device)
        return self._model.decode(pixels, masks, guide, boxes, grey)


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an error of PyTorch says that a device's memory, or the machine's, does not do."""
    return isinstance(error, torch.OutOfMemoryError) or any(said in str(error) for said in _NO_MEMORY)


def _paint(running: _Running) -> None:
    if running.done is not None:
        running.done.synchronize()
    for job, part in zip(running.jobs, running.parts, strict=True):
        job.canvas.place(job.tile, part)


def _blended(job: Job, pixels: Tensor, log_error: Tensor, lost: Tensor) -> Part:
    if job.request.keeps_outside:
        pixels, log_error = _fitting(pixels, log_error, job)
    return job.canvas.blend(job.tile, pixels, log_error[0], lost[0])


def _coming(tensor: Tensor) -> Tensor:
    """Where a GPU's tensor will be, once it has come so far."""
    there = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return there.copy_(tensor.contiguous(), non_blocking=True)


def _fitting(pixels: Tensor, log_error: Tensor, job: Job) -> tuple[Tensor, Tensor]:
    """A tile [3, H, W] and its error [1, H, W] for an image that keeps its tone."""
    gain, affine, device = job.guide.gain[None], job.guide.affine[None], pixels.device
    gain = regions(gain, sent(torch.tensor([job.box]), device), *pixels.shape[-2:])
    again = redone(pixels[None], gain, affine)[0]
    unit = torch.eye(3, device=device)[..., None, None]
    steps = redone(unit, gain, affine) - redone(torch.zeros_like(unit), gain, affine)
    return again, log_error + steps.square().sum(0).mean(0, keepdim=True).log()


def _cut_mask(request: Request, tile: Tile, size: Size, device: torch.device) -> Tensor:
    if request.mask is None:
        return torch.zeros(1, *size, device=device)
    return cut(request.mask[..., None], tile, size, device)
