"""What rows, files and machines cost beside the model: time and memory of the job with a model of fixed time.

    python -m benchmarks.scale [--rows 1000 10000 100000] [--files 10 100 1000 10000] [--nodes 1 2 4]

The model takes a fixed time a row and gives images back as they are; all else is the job's own. Small images, of which
many have the same bytes under different ids. Machines are Ray nodes on this one.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import archive
from benchmarks.memory import memory, workers

FEW = 200
"""Different images."""
SIDES = (48, 80)
"""Their sides in pixels."""
EVERY = 0.5
"""Seconds between two looks at the memory of workers."""


class FixedTime:
    """In place of what an actor holds: the model takes so long, whatever the image."""

    seconds_a_row = 0.0

    def __init__(self, settings: Any, device: str, desk: Any) -> None:
        pass

    def __call__(self, table: pa.Table) -> pa.Table:
        """Every row, kept."""
        from pipeline.schema import RESTORED
        from pipeline.stages.table import source_columns, stage_rows, with_columns

        time.sleep(self.seconds_a_row * table.num_rows)
        rows = [{name: cell[name] for name in RESTORED.names if name in cell} for cell in stage_rows(table)]
        kept = [row | {"status": "kept", "pixels": None} for row in rows]
        return with_columns(source_columns(table), kept, RESTORED)


def build(folder: Path, rows: int, files: int) -> None:
    """So many rows in so many files."""
    with tempfile.TemporaryDirectory() as place:
        archive.build(Path(place), FEW, 1, SIDES)
        some = pq.read_table(place)
    folder.mkdir(parents=True)
    for number in range(files):
        numbers = range(number * rows // files, (number + 1) * rows // files)
        table = some.take(pa.array([index % FEW for index in numbers]))
        ids = pa.array([f"image-{index:07d}" for index in numbers], pa.string())
        pq.write_table(table.set_column(0, "id", ids), folder / f"part-{number:05d}.parquet")


def one(source: Path, output: Path, nodes: int, seconds_a_row: float) -> dict[str, Any]:
    """The job in this process, on so many machines (0: as it starts Ray by itself)."""
    import ray

    from pipeline import flow
    from pipeline.cluster import start_ray
    from pipeline.plan import prepare
    from pipeline.recipe import load_recipe

    FixedTime.seconds_a_row = seconds_a_row
    flow.Restore = FixedTime  # type: ignore[misc, assignment]
    options = ["output.previews=0"]
    recipe = load_recipe(None, options, source__uri=[str(source)], output__uri=str(output))
    started = time.monotonic()
    run = prepare(recipe, early=True)
    planned = time.monotonic() - started
    cluster = None
    if nodes:
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
        for _ in range(nodes - 1):
            cluster.add_node(num_cpus=2)
        os.environ["RAY_ADDRESS"] = cluster.address
        ray.init(address=cluster.address, logging_level="warning", log_to_driver=False)
    else:
        start_ray(recipe)
    begun = time.monotonic()
    summary = flow.restore(run)
    found = {
        "rows": summary.rows,
        "planning": planned,
        "seconds": time.monotonic() - begun,
        "first": summary.first_seconds,
        "driver_mb": memory(os.getpid(), "VmHWM"),
    }
    ray.shutdown()
    if cluster is not None:
        cluster.shutdown()  # else it goes first, and takes this process with it
    return found


def measure(rows: int, files: int, folder: Path, nodes: int = 0, seconds_a_row: float = 0.0) -> dict[str, Any]:
    """The same in a process of its own; `worker_mb` is the most that one of its workers had of its own at a time,
    without what all share (Ray's object store)."""
    source = folder / f"source-{rows}-{files}"
    if not source.exists():
        build(source, rows, files)
    output = folder / "output"
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, "-m", "benchmarks.scale", "--one", str(source), str(output), str(nodes)]
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        job = subprocess.Popen([*command, str(seconds_a_row)], stdout=out, stderr=err, env=environment)
        largest = 0.0
        while job.poll() is None:
            largest = max([largest, *(memory(worker, "RssAnon") for worker in workers(job.pid))])
            time.sleep(EVERY)
        out.seek(0), err.seek(0)
        if job.returncode:
            raise RuntimeError(f"the job ended with {job.returncode}: {err.read()[-2000:]}")
        found: dict[str, Any] = json.loads(out.read().splitlines()[-1])
    if found["rows"] != rows:
        raise RuntimeError(f"{rows} rows went in and {found['rows']} came out")
    found = {"files": files, "nodes": nodes, "worker_mb": largest, **found}
    sys.stderr.write(json.dumps(found) + "\n")  # what follows may fail
    return found


def table(found: list[dict[str, Any]]) -> list[str]:
    """Markdown."""
    lines = [
        "| rows | files | machines | planning, s | first rows, s | run, s | ms a row | driver, MB | a worker, MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found:
        a_row = 1000 * (row["planning"] + row["seconds"]) / row["rows"]
        lines.append(
            f"| {row['rows']} | {row['files']} | {row['nodes'] or 1} | {row['planning']:.1f} | {row['first']:.1f} "
            f"| {row['seconds']:.1f} | {a_row:.2f} | {row['driver_mb']:.0f} | {row['worker_mb']:.0f} |"
        )
    return lines


def main() -> None:
    """Measure, and print Markdown and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=[1_000, 10_000, 100_000])
    parser.add_argument("--files", type=int, nargs="*", default=[10, 100, 1_000, 10_000])
    parser.add_argument("--nodes", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--seconds-a-row", type=float, default=0.05, help="of the model, where machines are compared")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        source, output, nodes, seconds = options.one
        sys.stdout.write("\n" + json.dumps(one(Path(source), Path(output), int(nodes), float(seconds))) + "\n")
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        cases = [{"rows": rows, "files": max(1, rows // 1000)} for rows in options.rows]
        cases += [{"rows": 10_000, "files": files} for files in options.files]
        found = [measure(folder=folder, **case) for case in cases]
        many = [measure(2000 * nodes, 8 * nodes, folder, nodes, options.seconds_a_row) for nodes in options.nodes]
    lines = [*table(found), "", f"The model takes {1000 * options.seconds_a_row:.0f} ms a row:", "", *table(many)]
    sys.stdout.write("\n".join(lines) + "\n\n" + json.dumps([*found, *many]) + "\n")


if __name__ == "__main__":
    main()
