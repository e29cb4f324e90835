"""How fast the bare decoder is on tiles in memory, what share of the machine's peak that is, and what is left of it
when whole pictures in memory are restored.

    python -m benchmarks.ceiling [--model compact] [--device cpu] [--rounds 7]

The peak is the best of square matrix products of 1,024 to 4,096 and a 64-channel 3x3 convolution, in the precision that
the model runs in, measured in the same rounds as the decoder: the median of the paired shares is told.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.restoration.decoder import Guide
from pipeline.restoration.precision import autocast, half_precision
from pipeline.restoration.request import Request
from pipeline.restoration.restorer import Restorer
from pipeline.restoration.tone import Tone

SHAPES = {
    "cpu": ((272, 4), (400, 2), (560, 1), (560, 4), (816, 1)),
    "cuda": ((272, 4), (272, 16), (272, 64), (272, 256), (400, 32), (560, 4), (560, 16), (560, 64), (816, 16)),
}
"""Sides of tiles, and tiles a batch."""
PICTURES = {"cpu": ((321, 481, 4), (1000, 1500, 1)), "cuda": ((321, 481, 64), (2000, 3000, 8))}
"""Heights, widths, and how many are restored together."""
SECONDS = 0.5
"""Of one measurement, about."""


def rate(work: Callable[[], object], device: torch.device) -> float:
    """Times a second."""

    def once() -> float:
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    count = max(1, round(SECONDS / max(once(), 1e-6)))
    started = time.perf_counter()
    for _ in range(count):
        work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return count / (time.perf_counter() - started)


def peaks(device: torch.device) -> dict[str, tuple[Callable[[], object], float]]:
    """What shows the machine's peak: the work, and its operations."""
    dtype = half_precision(device)
    found: dict[str, tuple[Callable[[], object], float]] = {}
    for side in (1024, 2048, 4096):
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        found[f"matrix product of {side}"] = (lambda a=a, b=b: a @ b, 2.0 * side**3)
    convolution = nn.Conv2d(64, 64, 3, padding=1).to(device, dtype, memory_format=torch.channels_last)
    image = torch.randn(8, 64, 128, 128, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    found["64-channel 3x3 convolution"] = (lambda: convolution(image), 2.0 * 8 * 128 * 128 * 64 * 64 * 9)
    return found


def decoding(restorer: Restorer, side: int, batch: int) -> tuple[Callable[[], object], float]:
    """One run of the decoder, and its operations."""
    device, config = restorer.device, restorer.config
    tiles = torch.rand(batch, 3, side, side, device=device)
    masks = torch.zeros(batch, 1, side, side, device=device)
    guide = Guide(
        torch.randn(batch, 160, config.width, device=device),
        torch.zeros(batch, 160, dtype=torch.bool, device=device),
        torch.randn(batch, config.width, device=device),
        torch.rand(batch, 3, config.thumbnail // 4, config.thumbnail // 4, device=device),
        *Tone.none(batch, device),
    )
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]] * batch, device=device)
    grey = torch.zeros(batch, dtype=torch.bool, device=device)

    def work() -> object:
        with autocast(device):
            return restorer._model.decode(tiles, masks, guide, boxes, grey).pixels

    with FlopCounterMode(display=False) as counter:
        work()
    return work, float(counter.get_total_flops())


def restoring(restorer: Restorer, height: int, width: int, count: int, rounds: int) -> dict[str, float]:
    """Whole noisy pictures in memory: the best of some rounds after one that does not count."""
    dice = np.random.default_rng(0)

    def picture() -> np.ndarray:
        coarse = Image.fromarray(dice.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)
        return (smooth + dice.normal(0, 12, smooth.shape)).clip(0, 255).round().astype(np.uint8)

    requests = [Request(picture(), caption=f"picture {number}") for number in range(count)]
    restorer.restore_batch(requests)
    megapixels, measured = count * height * width / 1e6, []
    for _ in range(rounds):
        started, busy = time.perf_counter(), time.process_time()
        restorer.restore_batch(requests)
        measured.append((time.perf_counter() - started, time.process_time() - busy))
    seconds, busy = min(measured)
    return {"height": height, "width": width, "count": count} | {
        "megapixels_a_second": megapixels / seconds,
        "cpu_seconds_a_megapixel": busy / megapixels,
    }


def main() -> None:
    """Measure, and print Markdown and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="compact")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    restorer = Restorer.from_pretrained(options.model, device=options.device)
    device = restorer.device
    with torch.inference_mode():
        tops = peaks(device)
        shapes = {shape: decoding(restorer, *shape) for shape in SHAPES[device.type]}
        measured: dict[object, list[float]] = {key: [] for key in (*tops, *shapes)}
        for _ in range(options.rounds):
            for key, (work, operations) in (*tops.items(), *shapes.items()):
                measured[key].append(rate(work, device) * operations / 1e12)
    peak = [max(measured[name][turn] for name in tops) for turn in range(options.rounds)]
    rows = []
    for side, batch in shapes:
        operations = shapes[side, batch][1]
        shares = [got / top for got, top in zip(measured[side, batch], peak, strict=True)]
        tera = statistics.median(measured[side, batch])
        rows.append(
            {
                "side": side,
                "batch": batch,
                "operations_a_pixel": operations / batch / side**2,
                "tflops": tera,
                "megapixels_a_second": tera * 1e12 / operations * batch * side**2 / 1e6,
                "share_of_peak": statistics.median(shares),
            }
        )
    whole = [restoring(restorer, *picture, rounds=min(3, options.rounds)) for picture in PICTURES[device.type]]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    out = [
        f"{name}, {half_precision(device)}; peak {statistics.median(peak):.2f} TFLOP/s ("
        + ", ".join(f"{key} {statistics.median(measured[key]):.2f}" for key in tops)
        + ")",
        "",
        "| tile | tiles a batch | operations a pixel | TFLOP/s | MP/s, margins included | share of the peak |",
        "|---|---|---|---|---|---|",
        *(
            f"| {row['side']} | {row['batch']} | {row['operations_a_pixel'] / 1e3:.0f} k | {row['tflops']:.2f} "
            f"| {row['megapixels_a_second']:.2f} | {row['share_of_peak']:.2f} |"
            for row in rows
        ),
        "",
        "| pictures | together | MP/s | CPU seconds a MP |",
        "|---|---|---|---|",
        *(
            f"| {row['width']} x {row['height']} | {row['count']} | {row['megapixels_a_second']:.2f} "
            f"| {row['cpu_seconds_a_megapixel']:.3f} |"
            for row in whole
        ),
    ]
    told = {"peak_tflops": peak, "decoder": rows, "restoring": whole}
    sys.stdout.write("\n".join(out) + "\n\n" + json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
