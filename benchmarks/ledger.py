"""Plans a run over a source of very many finished files, and one new: seconds and peak memory.

    python -m benchmarks.ledger [--files 200000]

The files and the ledger are real, on a local disk; finished files are listed and not opened, so theirs are empty.
"""

from __future__ import annotations

import argparse
import io
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.lake.find import find_files
from pipeline.lake.keys import hashed
from pipeline.lake.ledger import Entry, InputFile
from pipeline.lake.output import open_output
from pipeline.recipe import load_recipe

ROWS = 100
"""Rows of a finished file, whose ids the ledger keeps."""
A_FOLDER = 1000
"""Files of a folder."""


def build(root: Path, files: int) -> None:
    """Make a source of which all files but one are finished."""
    for number in range(files):
        path = root / f"source/{number // A_FOLDER:04d}/{number:07d}.parquet"
        if number % A_FOLDER == 0:
            path.parent.mkdir(parents=True)
        path.touch()
    output = open_output(str(root / "out"))
    recipe = load_recipe(source__uri=[str(root / "source")], output__uri=str(root / "out"))
    run = {"run_id": "20260101T000000Z-000000", "recipe_digest": recipe.digest(), "generation": 1}
    run |= {"replaces": False, "retries": False}
    output.begin(run, recipe.to_yaml())
    found = find_files([str(root / "source")]).found
    states = (InputFile(path, file.size, file.version) for path, file in found.items())
    output.ledger(1).add(
        Entry(state, ROWS, run["run_id"], 1, recipe.digest(), hashed([f"{n}-{row}" for row in range(ROWS)]).tobytes())
        for n, state in enumerate(states)
    )
    output.finish(run)
    image = io.BytesIO()
    Image.new("RGB", (8, 8)).save(image, "PNG")
    with fsspec.open(str(root / "source/new.parquet"), "wb") as file:
        pq.write_table(pa.table({"id": ["new"], "image": [image.getvalue()]}), file)


def measure(root: Path) -> None:
    """Plan, and print what it took."""
    from pipeline.plan import prepare

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    run = prepare(load_recipe(source__uri=[str(root / "source")], output__uri=str(root / "out")))
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    finished = len(run.source.finished)
    print(f"| {finished:,} | {run.rows} | {seconds:.1f} | {peak / 1e3:.0f} | {(peak - before) / 1e3:.0f} |")


def main() -> None:
    """Measure in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=200_000)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.root:
        measure(arguments.root)
        return
    print("| finished files | new rows | planning, seconds | peak memory, MB | of it for planning, MB |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder), arguments.files)
        subprocess.run([sys.executable, "-m", "benchmarks.ledger", "--root", folder], check=True)


if __name__ == "__main__":
    main()
