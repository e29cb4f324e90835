"""Whether the processes of a run grow: their own memory over a run of the whole job, without what all share.

    python -m benchmarks.memory [--images 1500]

Of each process that lived for most of the run: medians of the second and of the last third of its samples, and the
slope of a line through both thirds.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks import archive

EVERY = 2.0
"""Seconds between two samples."""
IDLE = "ray::IDLE"
"""What a process is called that waits for tasks."""
LEAST = 0.5
"""Share of the run that a process must have lived."""

Samples = dict[int, list[tuple[float, float]]]
"""Seconds and MB, by process."""


def workers(driver: int) -> dict[int, str]:
    """A driver's processes that run tasks and actors, and what they run."""
    try:
        beside = psutil.Process(driver).children(recursive=True)
        names = {process.pid: "".join(process.cmdline()[:1]) for process in beside}
    except psutil.Error:  # one has ended
        return {}
    return {process: name for process, name in names.items() if name.startswith("ray::")}


def memory(process: int, kind: str) -> float:
    """MB of a process, by `/proc`: `VmHWM`, `RssAnon`, …; 0 if it is gone."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0.0
    match = re.search(rf"{kind}:\s+(\d+)", status)
    return int(match[1]) / 1e3 if match else 0.0


def watch(command: list[str]) -> tuple[float, Samples, dict[int, str]]:
    """Run a command; its seconds, and samples and names of its processes.

    Raises:
        RuntimeError: it failed.
    """
    samples: Samples = {}
    names: dict[int, str] = {}
    with tempfile.TemporaryFile("w+") as out:
        started = time.monotonic()
        job = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        while job.poll() is None:
            named = {process: name for process, name in workers(job.pid).items() if name != IDLE}
            names |= {job.pid: "driver", **named}
            for process in names:
                if held := memory(process, "RssAnon"):
                    samples.setdefault(process, []).append((time.monotonic() - started, held))
            time.sleep(EVERY)
        out.seek(0)
        if job.returncode:
            raise RuntimeError(f"the job ended with {job.returncode}: {out.read()[-2000:]}")
        return time.monotonic() - started, samples, names


def growth(samples: list[tuple[float, float]]) -> dict[str, float]:
    """Of one process."""
    seconds, held = np.array(samples).T
    thirds = [held[part * len(held) // 3 : (part + 1) * len(held) // 3] for part in range(3)]
    later = slice(len(held) // 3, None)
    slope = float(np.polyfit(seconds[later], held[later], 1)[0])
    second, last = (float(statistics.median(third)) for third in thirds[1:])
    return {"second": second, "last": last, "ratio": last / second, "mb_an_hour": 3600 * slope}


def main() -> None:
    """Measure, and print Markdown and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1500)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        source, output = f"{place}/source", f"{place}/output"
        archive.build(Path(source), options.images, max(1, options.images // 250))
        job = ["-m", "jobs.cli", "restore", "--source", source, "--output", output]
        seconds, samples, names = watch([sys.executable, *job])
    found: list[dict[str, Any]] = [
        {"process": names[process], **growth(some)}
        for process, some in samples.items()
        if some[-1][0] - some[0][0] > LEAST * seconds
    ]
    lines = [
        f"{options.images} images in {seconds / 60:.1f} minutes:",
        "",
        "| process | second third, MB | last third, MB | ratio | MB an hour |",
        "|---|---|---|---|---|",
    ]
    for one in sorted(found, key=lambda one: -one["last"]):
        thirds = f"{one['second']:.0f} | {one['last']:.0f} | {one['ratio']:.3f}"
        lines.append(f"| {one['process']} | {thirds} | {one['mb_an_hour']:+.0f} |")
    sys.stdout.write("\n".join(lines) + "\n\n" + json.dumps({"seconds": seconds, "processes": found}) + "\n")


if __name__ == "__main__":
    main()
