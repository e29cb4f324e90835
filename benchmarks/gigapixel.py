"""How much memory and time the job takes for one TIFF file that is far larger than its memory may be.

`python -m benchmarks.gigapixel` makes a file of 20,000 x 20,000 pixels, restores it, and a small one for comparison.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.dataset as pads
import tifffile
from PIL import Image

TILE = 512
EVERY = 0.5
"""Seconds between two looks at the memory."""


def tiles(side: int, photos: list[np.ndarray]) -> Iterator[np.ndarray]:
    """Photos side by side, with noise of sigma 15."""
    dice = np.random.default_rng(0)
    noises = [dice.normal(0, 15, (TILE, TILE, 3)).astype(np.float32) for _ in range(7)]
    across = -(-side // TILE)
    for number in range(across * across):
        yield (photos[number * 7 % len(photos)] + noises[number % 7]).clip(0, 255).astype(np.uint8)


def make(path: Path, side: int) -> None:
    """Write the file, tile by tile."""
    table = pads.dataset(Path(__file__).parent.parent / "samples/archive").to_table(["truth"])
    photos = []
    for data in table["truth"].to_pylist():
        if data is not None:
            with Image.open(io.BytesIO(data)) as image:
                photos.append(
                    np.asarray(image.convert("RGB").resize((TILE, TILE), Image.Resampling.BICUBIC), np.float32)
                )
    tifffile.imwrite(
        path,
        tiles(side, photos),
        shape=(side, side, 3),
        dtype=np.uint8,
        photometric="rgb",
        tile=(TILE, TILE),
        compression="deflate",
        compressionargs={"level": 1},
        resolution=(600, 600),
        resolutionunit="inch",
    )


def memory(root: int) -> int:
    """Bytes of all processes below `root` and itself, shared pages counted once (PSS)."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                parents.setdefault(int((entry / "stat").read_text().rpartition(")")[2].split()[1]), []).append(
                    int(entry.name)
                )
    total, waiting = 0, [root]
    while waiting:
        process = waiting.pop()
        waiting += parents.get(process, [])
        with contextlib.suppress(OSError, StopIteration):
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
            total += 1024 * int(next(line for line in lines if line.startswith("Pss:")).split()[1])
    return total


def measured(folder: Path, output: Path) -> dict[str, float]:
    """Run the job; seconds and peak of memory."""
    command = [sys.executable, "-m", "jobs.cli", "restore", "--source", str(folder), "--output", str(output)]
    started = time.perf_counter()
    job = subprocess.Popen([*command, "--set", "limits.max_streamed_megapixels=5000"], start_new_session=True)
    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(EVERY):
            peak = max(peak, memory(job.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = job.wait()
    done.set()
    watcher.join()
    if code:
        raise SystemExit(f"the job ended with {code}")
    return {"seconds": time.perf_counter() - started, "peak_gb": peak / 1e9}


def main() -> None:
    """Measure both, and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=20_000, help="pixels (20,000)")
    parser.add_argument("--folder", type=Path, help="where files go (a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        found: dict[str, object] = {"side": options.side, "cores": os.cpu_count()}
        for name, side in (("small", TILE), ("large", options.side)):
            folder, output = Path(place, name), Path(place, name + "-out")
            folder.mkdir()
            make(folder / "scan.tif", side)
            found[name] = measured(folder, output) | {"file_mb": (folder / "scan.tif").stat().st_size / 1e6}
            columns = [
                "status",
                "reasons",
                "image_uri",
                "image_bytes",
                "restore_seconds",
                "noise_sigma",
                "expected_psnr",
            ]
            found[name + "_row"] = pads.dataset(output / "data").to_table(columns).to_pylist()
        small, large = found["small"], found["large"]
        found["peak_above_small_gb"] = large["peak_gb"] - small["peak_gb"]  # type: ignore[index]
        sys.stdout.write(json.dumps(found, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main()
