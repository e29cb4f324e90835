"""What a run would do, how long it may take and what it may cost, measured on some of its own rows."""

from __future__ import annotations

import dataclasses
import itertools
import os
import time
from collections.abc import Iterator, Sequence

import pyarrow as pa
import torch

from pipeline.errors import RecipeError
from pipeline.lake.reader import Part, plan_parts
from pipeline.plan import Run
from pipeline.recipe import shown_model
from pipeline.redaction import redacted
from pipeline.schema import INTERNAL
from pipeline.stages.encode import EncodeStage
from pipeline.stages.restore import RestoreStage

SAMPLE = 24
"""Rows tried, at most."""
PLACES = 4
"""Parts of the source that they are taken from, at most."""
ENOUGH = 90.0
"""Seconds of trying after which no further place is tried."""
RAY = 6.0
"""Seconds that Ray needs to start, on a small machine."""


_TABLES = {"parquet": "Parquet files", "iceberg": "an Iceberg table", "delta": "a Delta table"}


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The plan of a run with its cost."""

    run: Run
    device: str
    sampled: int = 0
    megapixels: float = 0.0
    """Of one row, in the mean."""
    start: float = 0.0
    """Seconds until a restoring actor is ready."""
    decode: float = 0.0
    """Seconds a row, in the mean, on one core."""
    restore: float = 0.0
    """Seconds a row on one actor."""
    encode: float = 0.0
    """Seconds a row on one core."""

    @property
    def seconds(self) -> float:
        """Of the whole run, on this machine."""
        return RAY + self.start + self.flow_seconds

    @property
    def flow_seconds(self) -> float:
        """Of these, while rows are on their way."""
        beside = (self.decode + self.encode) / _cores()
        a_row = self.restore + beside if self.device == "cpu" else max(self.restore, beside)
        return self.run.rows * a_row

    @property
    def actor_hours(self) -> float:
        """Of the one restoring actor that this machine has."""
        return self.flow_seconds / 3600

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
            f"         {self.actor_hours:.3g} hours of a {'GPU' if self.device == 'cuda' else 'restoring actor'}, "
            f"{self.actor_hours * _cores():.3g} hours of cores{self._cost()}",
        ]
        return "\n".join(lines)

    def _cost(self) -> str:
        prices = self.run.recipe.resources.prices
        cost = prices.cost(self.actor_hours, self.actor_hours * _cores())
        return "" if cost is None else f": {cost:.2f} {prices.currency}"


def estimate(run: Run) -> Estimate:
    """Run some rows through the stages here, and write nothing."""
    wanted = run.recipe.restoration.device
    device = ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted
    if device == "cuda" and not torch.cuda.is_available():
        raise RecipeError("restoration.device is cuda, but this machine has no GPU to measure on; use auto or cpu")
    parts = plan_parts(run.source.files, run.wanted, {})
    if not parts:
        return Estimate(run, device)
    began = time.perf_counter()
    restore = RestoreStage(run.recipe, device)
    encode = EncodeStage(run.recipe, run.run_id)
    start = time.perf_counter() - began
    count, area, seconds = 0, 0.0, [0.0, 0.0, 0.0]
    tables = _samples(run, parts)
    first = next(tables)
    for decoded in run.decode_stage(first[0].root, device)(first[1].slice(0, 1)):
        restore(decoded)  # warms up
    for part, rows in itertools.chain([first], tables):
        mark = time.perf_counter()
        for decoded in run.decode_stage(part.root, device)(rows):
            marks = [mark, time.perf_counter()]
            restored = restore(decoded)
            marks.append(time.perf_counter())
            encode(restored)
            marks.append(time.perf_counter())
            steps = [after - before for before, after in itertools.pairwise(marks)]
            seconds = [total + step for total, step in zip(seconds, steps, strict=True)]
            count += decoded.num_rows
            sides = [decoded[INTERNAL + name].to_pylist() for name in ("height", "width")]
            area += sum((height or 0) * (width or 0) for height, width in zip(*sides, strict=True))
            mark = time.perf_counter()
        if sum(seconds) > ENOUGH:
            break
    return Estimate(run, device, count, area / count / 1e6, start, *(total / count for total in seconds))


def _samples(run: Run, parts: Sequence[Part]) -> Iterator[tuple[Part, pa.Table]]:
    """Rows from all over the source: some of the first ones read of every few parts."""
    places = min(PLACES, len(parts))
    each = SAMPLE // places
    for place in range(places):
        part = parts[place * len(parts) // places]
        table = next(part.read(run.source.store, run.columns))
        few = min(each, table.num_rows)
        yield part, table.take([row * table.num_rows // few for row in range(few)])


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
