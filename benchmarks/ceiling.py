"""How fast the bare decoder is on tiles in memory, and what share of the machine's peak that is.

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

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.restoration.decoder import Guide
from pipeline.restoration.precision import autocast, half_precision
from pipeline.restoration.restorer import Restorer
from pipeline.restoration.tone import Tone

SHAPES = ((272, 4), (400, 2), (560, 1), (560, 4), (816, 1))
"""Sides of tiles, and tiles a batch."""
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
        shapes = {shape: decoding(restorer, *shape) for shape in SHAPES}
        measured: dict[object, list[float]] = {key: [] for key in (*tops, *shapes)}
        for _ in range(options.rounds):
            for key, (work, operations) in (*tops.items(), *shapes.items()):
                measured[key].append(rate(work, device) * operations / 1e12)
    peak = [max(measured[name][turn] for name in tops) for turn in range(options.rounds)]
    rows = []
    for side, batch in SHAPES:
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
    ]
    sys.stdout.write("\n".join(out) + "\n\n" + json.dumps({"peak_tflops": peak, "decoder": rows}) + "\n")


if __name__ == "__main__":
    main()
