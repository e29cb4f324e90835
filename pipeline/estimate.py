"""What a run would do and how long it may take, measured on a few of its own rows."""

from __future__ import annotations

import dataclasses
import itertools
import os
import time

import pyarrow as pa
import torch

from pipeline.errors import RecipeError
from pipeline.lake.reader import plan_parts
from pipeline.plan import Run
from pipeline.recipe import shown_model
from pipeline.redaction import redacted
from pipeline.schema import INTERNAL
from pipeline.stages.encode import EncodeStage
from pipeline.stages.restore import RestoreStage

SAMPLE = 8
"""Rows tried."""
START_UP = 15.0
"""Seconds that Ray and the actors need before the first row, on a small machine."""


_TABLES = {"parquet": "Parquet files", "iceberg": "an Iceberg table", "delta": "a Delta table"}


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The plan of a run with its cost."""

    run: Run
    device: str
    sampled: int
    megapixels: float
    """Of one row, in the mean."""
    decode: float
    """Seconds a row, in the mean, on one core."""
    restore: float
    """Seconds a row on one actor."""
    encode: float
    """Seconds a row on one core."""

    @property
    def seconds(self) -> float:
        """Of the whole run, on this machine."""
        cores = os.cpu_count() or 1
        beside = (self.decode + self.encode) / cores
        a_row = self.restore + beside if self.device == "cpu" else max(self.restore, beside)
        return START_UP + self.run.rows * a_row

    def as_text(self) -> str:
        """For the console."""
        run, recipe = self.run, self.run.recipe
        read = [file for file in run.source.files if run.rows_of(file)]
        models = " + ".join(shown_model(name, redacted) for name in recipe.restoration.models)
        places = ", ".join(redacted(uri) for uri in recipe.source.uri)
        source = f"{run.rows} rows of {len(read)} files ({sum(file.size for file in read) / 1e6:.1f} MB)"
        sample = f"{self.sampled} rows of {self.megapixels:.2f} MP in the mean"
        lines = [
            f"read     {source} at {places}",
            f"decode   CPU tasks, {self.decode * 1000:.0f} ms a row",
            f"restore  model {models} on {self.device}, "
            f"tiles of {recipe.restoration.tile}, {self.restore * 1000:.0f} ms a row",
            f"encode   CPU tasks, {recipe.output.format}, {self.encode * 1000:.0f} ms a row",
            f"write    {_TABLES[recipe.output.table]} in {redacted(recipe.output.uri)}/data",
            f"estimate {_duration(self.seconds)} on this machine, from {sample}",
        ]
        return "\n".join(lines)


def estimate(run: Run) -> Estimate:
    """Run the first rows through the stages here, and write nothing."""
    wanted = run.recipe.restoration.device
    device = ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted
    if device == "cuda" and not torch.cuda.is_available():
        raise RecipeError("restoration.device is cuda, but this machine has no GPU to measure on; use auto or cpu")
    part = next(iter(plan_parts(run.source.files, run.wanted, {})), None)
    if part is None:
        return Estimate(run, device, 0, 0.0, 0.0, 0.0, 0.0)
    rows = next(part.read(run.source.store, run.columns)).slice(0, SAMPLE)
    decode = run.decode_stage(part.root)
    restore = RestoreStage(run.recipe, device, run.recipe.resources.threads)
    encode = EncodeStage(run.recipe, run.run_id)
    marks = [time.perf_counter()]
    decoded = pa.concat_tables(list(decode(rows)))
    marks.append(time.perf_counter())
    restored = restore(decoded)
    marks.append(time.perf_counter())
    encode(restored)
    marks.append(time.perf_counter())
    count = max(1, rows.num_rows)
    sides = [decoded[INTERNAL + name].to_pylist() for name in ("height", "width")]
    area = sum((height or 0) * (width or 0) for height, width in zip(*sides, strict=True))
    steps = [(after - before) / count for before, after in itertools.pairwise(marks)]
    return Estimate(run, device, rows.num_rows, area / count / 1e6, *steps)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
