"""A long run among faults: `python -m tests.crash.soak --minutes 30`.

While rows of an archive on S3 are restored into an Iceberg table, the store goes away for up to 30 s, answers slowly
or not at all, and workers are killed, at random. In the end every row is there once, none has failed, and no process
has grown.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from tests.conftest import ROOT, encoded, noise
from tests.crash.test_crash import Archive
from tests.seaweed import Seaweed

A_FILE = 40
"""Rows."""
GROWTH = 1.15
"""By so much at most a process may be larger in the last third of the run than in the second."""


class Long(Archive):
    """As many rows as take so long; many share their pixels."""

    def __init__(self, server: Seaweed, rows: int) -> None:
        self.server, self.store = server, server.store()
        images = [encoded(noise(280, 300, number)) for number in range(A_FILE)]
        self.ids = Counter(f"r{number}" for number in range(rows))
        names = list(self.ids)
        for start in range(0, rows, A_FILE):
            some = names[start : start + A_FILE]
            table = [{"id": name, "image": image} for name, image in zip(some, images, strict=False)]
            with self.store.open(f"archive/soak/source/{start:06d}.parquet", "wb") as opened:
                pq.write_table(pa.Table.from_pylist(table), opened, row_group_size=10)

    def command(self) -> list[str]:
        options = ["--source", "s3://archive/soak/source", "--output", "s3://archive/crash/soak"]
        return ["jobs.restore", *options, "--set=output.table=iceberg", "--set=output.commit_minutes=0.5"]


class Memory:
    """Resident memory of the driver and of restoring actors, every few seconds."""

    def __init__(self) -> None:
        self.driver: list[float] = []
        self.actors: dict[int, list[float]] = {}

    def look(self, driver: psutil.Process) -> None:
        self.driver.append(driver.memory_info().rss / 1e6)
        for process in driver.children(recursive=True):
            try:
                if "MapWorker" in process.name() + " ".join(process.cmdline()):
                    self.actors.setdefault(process.pid, []).append(process.memory_info().rss / 1e6)
            except psutil.Error:
                continue

    def growth(self) -> dict[str, float]:
        """Last third over the second third, of processes that were seen often enough."""
        series = {"driver": self.driver, **{f"actor {pid}": values for pid, values in self.actors.items()}}
        return {
            name: statistics.median(values[-len(values) // 3 :])
            / statistics.median(values[len(values) // 3 : -len(values) // 3])
            for name, values in series.items()
            if len(values) >= 30
        }


def faults(server: Seaweed, driver: psutil.Process, dice: random.Random, over: threading.Event) -> Counter[str]:
    """Until the run is over; how often each was."""
    done: Counter[str] = Counter()
    while not over.wait(dice.uniform(20, 60)):
        fault = dice.choice(["store away", "store slow", "worker killed"])
        try:
            if fault == "store away":
                server.stop()
                over.wait(dice.uniform(3, 30))
                server.start()
            elif fault == "store slow":
                for _ in range(5):
                    server.pause(dice.uniform(0.5, 4))
                    time.sleep(0.2)
            else:
                workers = [one for one in driver.children(recursive=True) if one.name().startswith("ray::")]
                if not workers:
                    continue
                dice.choice(workers).send_signal(signal.SIGKILL)
        except psutil.Error:
            continue
        done[fault] += 1
    return done


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rows-a-minute", type=int, default=240, help="that this machine restores, about")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    dice, memory, told, starts = random.Random(options.seed), Memory(), Counter[str](), 0
    with tempfile.TemporaryDirectory() as folder:
        server = Seaweed(Path(folder))
        server.start()
        archive = Long(server, int(options.minutes * options.rows_a_minute))
        code = -1
        while code not in (0, 3) and starts < 10:  # what has failed stands in the table
            starts += 1
            environment = os.environ | server.environment
            process = subprocess.Popen([sys.executable, "-m", *archive.command()], cwd=ROOT, env=environment)
            driver, over = psutil.Process(process.pid), threading.Event()
            found: list[Counter[str]] = []
            beside = threading.Thread(target=lambda: found.append(faults(server, driver, dice, over)))  # noqa: B023
            beside.start()
            while process.poll() is None:
                memory.look(driver)
                time.sleep(5)
            over.set()
            beside.join()
            told += found[0]
            code = process.returncode
            print(f"run {starts} ended with {code}; faults so far: {dict(told)}", flush=True)
        table = archive.table("iceberg", "soak")
        server.stop()
    assert table is not None, "nothing was committed"
    ids, failed, growth = Counter(table["id"].to_list()), (table["status"] == "failed").sum(), memory.growth()
    print(f"rows {sum(ids.values())} of {len(archive.ids)}, right: {ids == archive.ids}, failed rows: {failed}")
    print("memory, last third over second:", {name: round(value, 3) for name, value in growth.items()})
    return 0 if ids == archive.ids and not failed and max(growth.values(), default=1) < GROWTH else 1


if __name__ == "__main__":
    sys.exit(main())
