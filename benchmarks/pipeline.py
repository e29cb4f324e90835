"""The whole job against a hand-written loop and against the bare decoder, on the same images, in paired rounds.

    python -m benchmarks.pipeline [--images 2000] [--rounds 3]

The loop does the same in one process: decode, restore, score, encode, write. The ceiling is the time that the decoder
alone needs for the tiles of these images. CPU time by stage is that of the job's own stages, run one after the other.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import math
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pyarrow.compute as pc
import torch
from PIL import Image

from benchmarks import arms
from benchmarks.peers import compare, table
from pipeline.lake.reader import plan_parts
from pipeline.plan import prepare
from pipeline.recipe import load_recipe
from pipeline.restoration.restorer import Restorer
from pipeline.restoration.tiles import Size, plan_tiles
from pipeline.schema import megapixels
from pipeline.stages.encode import EncodeStage
from pipeline.stages.restore import RestoreStage

SAMPLE = 200
"""Images of which the stages' CPU time is measured."""


def ceiling(source: Path) -> float:
    """Megapixels a second of the bare decoder on the tiles of these images, if every batch were full."""
    restorer = Restorer.from_pretrained("compact")
    tiles: Counter[Size] = Counter()
    megapixels = 0.0
    for rows in arms.batches(source):
        for row in rows:
            with Image.open(io.BytesIO(row["image"])) as image:
                width, height = image.size
            size = restorer._tile_size(height, width)
            tiles[size] += len(plan_tiles(height, width, size, restorer.margin))
            megapixels += height * width / 1e6
    speeds = {size: restorer._engine.speed(size, 7) for size in tiles}
    return megapixels / sum(count * math.prod(size) / 1e6 / speeds[size] for size, count in tiles.items())


def stages(source: Path, folder: Path) -> dict[str, float]:
    """Seconds of CPU a megapixel, by stage."""
    recipe = load_recipe(None, source__uri=[str(source)], output__uri=str(folder), limits__rows=SAMPLE)
    run = prepare(recipe)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    part = next(iter(plan_parts(run.source.files, run.wanted, {})))
    decode, encode = run.decode_stage(part.root), EncodeStage(recipe, run.run_id)
    restore = RestoreStage(recipe, device)
    marks = [time.process_time()]
    tables = [decoded for rows in part.read(run.source.store, run.columns) for decoded in decode(rows)]
    marks.append(time.process_time())
    restored = [restore(decoded) for decoded in tables]
    marks.append(time.process_time())
    done = [encode(some) for some in restored]
    marks.append(time.process_time())
    area = sum(pc.sum(megapixels(some, recipe.output.prefix)).as_py() for some in done)
    names = ("decode", "restore and score", "encode")
    return {
        name: (after - before) / area for name, (before, after) in zip(names, itertools.pairwise(marks), strict=True)
    }


def main() -> None:
    """Measure, and print Markdown and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        measured = compare(["loop"], options.images, options.rounds, folder)
        bare = ceiling(folder / "source")
        spent = stages(folder / "source", folder / "stages")
    shares = [job["speed"] / bare for job in measured["conservator"]]
    lines = [
        *table(measured),
        "",
        f"The bare decoder on the tiles of these images: {bare:.3f} MP/s; the job's share of it: "
        f"{statistics.median(shares):.3f}",
        "",
        "| stage | CPU seconds a megapixel |",
        "|---|---|",
        *(f"| {name} | {seconds:.3f} |" for name, seconds in spent.items()),
    ]
    told = {"arms": measured, "ceiling": bare, "stages": spent}
    sys.stdout.write("\n".join(lines) + "\n\n" + json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
