"""How tiles best run on a device: a short measured search, remembered for the device and the model."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import platform
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from filelock import FileLock

from pipeline.restoration.engine import Engine, out_of_memory
from pipeline.restoration.local import cache_folder

log = logging.getLogger(__name__)

WORTH = 1.03
"""A larger batch is taken if it is faster by this factor: a small one has less padding and needs less memory."""
CPU_MEMORY = 1 << 30
"""Bytes that a run of the decoder may take on a CPU; of a GPU's it is half of what is free."""
BYTES_A_CHANNEL = 16
"""Memory of a run of the decoder for each pixel and channel at full resolution; 11 to 15 were measured."""


class Tuning(NamedTuple):
    """What was found."""

    tile: int
    """Side in pixels of the largest tiles."""
    batch_pixels: int
    """Of the tiles that run together."""


def tune(engine: Engine, tiles: Sequence[int], margin: int, smallest: int, memory: int) -> Tuning:
    """Measure which batches, and which of `tiles`, make the most of a device; takes some seconds.

    Args:
        engine: what is to be tuned; its batches are left as they are found to be best.
        tiles: sides to choose between, in pixels.
        margin: pixels cut off each inner edge of a tile, which are work for nothing.
        smallest: side of the tiles that batches are counted in.
        memory: pixels that fit into the memory that may be used.
    """
    engine.batch_pixels = smallest**2
    best = _speed(engine, smallest)
    found = engine.batch_pixels
    while 2 * engine.batch_pixels <= memory:
        engine.batch_pixels *= 2
        speed = _speed(engine, smallest)
        if speed <= WORTH * best:
            break
        best, found = speed, engine.batch_pixels
    engine.batch_pixels = found
    fitting = [side for side in tiles if side**2 <= memory] or [min(tiles)]
    if len(fitting) == 1:
        return Tuning(fitting[0], found)
    kept = {side: _speed(engine, side) * (1 - 2 * margin / side) ** 2 for side in fitting}
    return Tuning(max(kept, key=lambda side: kept[side]), found)


def _speed(engine: Engine, side: int) -> float:
    try:
        return engine.speed((side, side))
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return 0.0


def memory_pixels(device: torch.device, channels: int, megabytes: int | None = None) -> int:
    """Pixels of tiles that may run together: what fits into `megabytes`, or into a share of the device's memory.

    `channels` are those of the decoder at full resolution.
    """
    memory = CPU_MEMORY
    if megabytes is not None:
        memory = megabytes * 1_000_000
    elif device.type == "cuda":
        memory = torch.cuda.mem_get_info(device)[0] // 2
    return memory // (BYTES_A_CHANNEL * channels)


def device_key(device: torch.device) -> str:
    """What results of the search depend on, beside the model."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{platform.machine()}, {capability}, torch {torch.__version__}"


@contextlib.contextmanager
def alone(key: Sequence[object]) -> Iterator[None]:
    """For a block, no other actor of this machine searches for the same: it waits, and finds what was found."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, RuntimeError):  # no place to write to: each searches for itself
            record = _record(key)
            record.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(record.with_suffix(".lock")))
        yield


def remembered(key: Sequence[object]) -> Tuning | None:
    """What an earlier search found for this, if there was one and its record can be read."""
    try:
        return Tuning(**json.loads(_record(key).read_text())["found"])
    except (OSError, RuntimeError, ValueError, KeyError, TypeError):  # or there is no home
        return None


def remember(key: Sequence[object], found: Tuning) -> None:
    """Write down what was found; without a place to write to, the next actor searches anew."""
    try:
        record = _record(key)
        record.parent.mkdir(parents=True, exist_ok=True)
        fresh = record.with_suffix(f".{uuid.uuid4().hex}")
        fresh.write_text(json.dumps({"for": [str(part) for part in key], "found": found._asdict()}, indent=2) + "\n")
        fresh.replace(record)
    except (OSError, RuntimeError) as error:
        log.debug("the best batches cannot be remembered: %s", error)


def _record(key: Sequence[object]) -> Path:
    digest = hashlib.sha256(json.dumps([str(part) for part in key]).encode()).hexdigest()
    return cache_folder() / "tuning" / f"{digest[:32]}.json"
