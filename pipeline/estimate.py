"""What a run would do, how long it may take and what it may cost, measured on some of its rows where it would run."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import ray
import ray.exceptions

from pipeline.actors import RestoreSettings
from pipeline.cluster import Pool, cause_of, pool_of
from pipeline.errors import ConservatorError, RunError
from pipeline.lake.reader import Part, plan_parts
from pipeline.plan import Run, stores_of_models
from pipeline.recipe import shown_model
from pipeline.redaction import redacted, without_secrets
from pipeline.schema import INTERNAL
from pipeline.stages.encode import EncodeStage
from pipeline.stages.restore import RestoreStage
from pipeline.workers import Decode

log = logging.getLogger(__name__)

SAMPLE = 24
"""Rows tried, at most, or so."""
PLACES = 4
"""Parts of the source that they are taken from, at most."""
ENOUGH = 90.0
"""Seconds of trying after which no further place is tried."""
AT_ONCE = 8
"""Actors that try rows, at most, where they share a machine's cores: one alone would be faster than among others."""
RAY = 6.0
"""Seconds that Ray needs to start, on a small machine."""
RAY_CORES = 0.12
"""Cores that Ray's own processes take while rows are on their way, measured on a machine of two."""
WAIT = 900.0
"""Seconds in which a restoring actor has to be there."""

_TABLES = {"parquet": "Parquet files", "iceberg": "an Iceberg table", "delta": "a Delta table"}


class Spent(NamedTuple):
    """What trying some rows took on one actor."""

    rows: int
    pixels: int
    decode: float
    """Seconds, as the others."""
    restore: float
    encode: float

    def plus(self, other: Spent) -> Spent:
        """Both together."""
        return Spent(
            *(self.rows + other.rows, self.pixels + other.pixels, self.decode + other.decode),
            *(self.restore + other.restore, self.encode + other.encode),
        )


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The plan of a run with its cost."""

    run: Run
    pool: Pool
    cores: float = 0.0
    """Of the whole cluster."""
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
    def row_seconds(self) -> float:
        """Seconds of the run for one row, while rows are on their way."""
        if not self.sampled:
            return 0.0
        restore, beside = self.restore / self.pool.actors, (self.decode + self.encode) / self.cores
        if self.pool.device == "cuda":
            return max(restore, beside)
        return (restore + beside) * self.cores / max(self.cores - RAY_CORES, self.cores / 2)

    @property
    def flow_seconds(self) -> float:
        """While rows are on their way."""
        return self.run.rows * self.row_seconds

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return RAY + self.start + self.flow_seconds

    @property
    def actor_hours(self) -> float:
        """Of all restoring actors."""
        return self.flow_seconds * self.pool.actors / 3600

    @property
    def core_hours(self) -> float:
        """Of all cores, whatever they do."""
        return self.flow_seconds * self.cores / 3600

    def as_dict(self) -> dict[str, Any]:
        """What a later run's report needs to tell beside what the run took: by the row, as it may have others."""
        return {
            "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "recipe_digest": self.run.recipe.digest(),
            "device": self.pool.device,
            "rows_sampled": self.sampled,
            "actor_hours_a_row": self.row_seconds * self.pool.actors / 3600,
            "core_hours_a_row": self.row_seconds * self.cores / 3600,
        }

    def as_text(self) -> str:
        """For the console."""
        run, recipe, pool = self.run, self.run.recipe, self.pool
        read = [file for file in run.source.files if run.rows_of(file)]
        models = " + ".join(shown_model(name, redacted) for name in recipe.restoration.models)
        places = ", ".join(redacted(uri) for uri in recipe.source.uri)
        source = f"{run.rows} rows of {len(read)} files ({sum(file.size for file in read) / 1e6:.1f} MB)"
        sample = f"{self.sampled} rows of {self.megapixels:.2f} MP in the mean"
        actors = f"{pool.actors} restoring actor{'s' if pool.actors > 1 else ''}"
        lines = [
            f"read     {source} at {places}",
            f"decode   CPU tasks, {self.decode * 1000:.0f} ms a row",
            f"restore  model {models} on {pool.device}, {actors}, "
            f"tiles of {recipe.restoration.tile}, {self.restore * 1000:.0f} ms a row and actor",
            f"encode   CPU tasks, {recipe.output.format}, {self.encode * 1000:.0f} ms a row",
            f"write    {_TABLES[recipe.output.table]} in {redacted(recipe.output.uri)}/data",
            f"estimate {_duration(self.seconds)} with {actors} and {self.cores:g} cores, from {sample}",
            f"         {self.actor_hours:.3g} hours of {'GPUs' if pool.device == 'cuda' else 'restoring actors'}, "
            f"{self.core_hours:.3g} hours of cores{self._cost()}",
        ]
        return "\n".join(lines)

    def _cost(self) -> str:
        prices = self.run.recipe.resources.prices
        cost = prices.cost(self.actor_hours, self.core_hours)
        return "" if cost is None else f": {cost:.2f} {prices.currency}"


class Sampler:
    """An actor that takes the time of a run's stages, one after the other."""

    def __init__(self, settings: RestoreSettings, pool: Pool, decode: Decode) -> None:
        self._settings, self._pool, self._decode = settings, pool, decode

    def start(self, rows: pa.Table, root: str) -> float:
        """Load the model and try these rows with it; the seconds that the loading took.

        Raises:
            ConservatorError: it cannot be loaded. (An error of `__init__` would come without its cause.)
        """
        began = time.perf_counter()
        settings, pool = self._settings, self._pool
        threads = (pool.threads, pool.cores) if pool.threads else None
        decisions, readers = settings.decisions, settings.readers
        with stores_of_models(settings.recipe):
            self._restore = RestoreStage(settings.recipe, pool.device, threads, decisions, readers)
        self._encode = EncodeStage(settings.recipe, settings.run_id)
        seconds = time.perf_counter() - began
        self._try(rows, root)
        return seconds

    def try_rows(self, samples: Sequence[tuple[pa.Table, str]]) -> Spent:
        """Rows with the places in the source below which they lie."""
        total = Spent(0, 0, 0.0, 0.0, 0.0)
        for rows, root in samples:
            total = total.plus(self._try(rows, root))
            if total.decode + total.restore + total.encode > ENOUGH:
                break
        return total

    def _try(self, rows: pa.Table, root: str) -> Spent:
        count, pixels, seconds = 0, 0, [0.0, 0.0, 0.0]
        mark = time.perf_counter()
        for decoded in self._decode(rows, root):
            marks = [mark, time.perf_counter()]
            restored = self._restore(decoded)
            marks.append(time.perf_counter())
            self._encode(restored)
            marks.append(time.perf_counter())
            steps = [after - before for before, after in itertools.pairwise(marks)]
            seconds = [total + step for total, step in zip(seconds, steps, strict=True)]
            count += decoded.num_rows
            sides = [decoded[INTERNAL + name].to_pylist() for name in ("height", "width")]
            pixels += sum((height or 0) * (width or 0) for height, width in zip(*sides, strict=True))
            mark = time.perf_counter()
        return Spent(count, pixels, *seconds)


def estimate(run: Run) -> Estimate:
    """Run some rows through the stages on restoring actors like those of the run, and write nothing.

    Raises:
        RunError: no such actor could start, or the rows end it.
        ConservatorError: a model or a package is missing there.
    """
    recipe = run.recipe
    pool, cores = pool_of(recipe).at_most(max(run.rows, 1)), ray.cluster_resources().get("CPU", 1)
    parts = plan_parts(run.source.files, run.wanted, {})
    if not parts or run.decided_in:
        return Estimate(run, pool, cores)
    samples = _samples(run, parts)
    actors: list[Any] = []
    try:
        settings, decode = RestoreSettings.of(run), Decode(run, pool.device)
        kind = ray.remote(**pool.demands, scheduling_strategy="SPREAD")(Sampler)
        copies = 1 if pool.device == "cuda" else min(pool.actors, AT_ONCE, sum(rows.num_rows for rows, _ in samples))
        actors = [kind.remote(settings, pool, decode) for _ in range(copies)]
        first, root = samples[0]
        started = ray.get([actor.start.remote(first.slice(0, 1), root) for actor in actors], timeout=WAIT)
        dealt = [_deal(samples, turn, copies) for turn in range(copies)]
        spent = ray.get([actor.try_rows.remote(mine) for actor, mine in zip(actors, dealt, strict=True)])
    except ray.exceptions.GetTimeoutError as error:
        demands = ", ".join(f"{amount:g} {name.removeprefix('num_')}" for name, amount in pool.demands.items())
        raise RunError(
            f"no restoring actor ({demands}) was there within {WAIT / 60:.0f} minutes; see that the cluster has or "
            "starts machines for it, or set restoration.device",
            True,
        ) from error
    except ray.exceptions.RayActorError as error:
        raise RunError(
            f"the worker that tried some rows has died ({without_secrets(str(error)).splitlines()[0]}); a run would "
            "go on without a row on which that happens"
        ) from error
    except ray.exceptions.RayError as error:
        cause = cause_of(error)
        raise (cause if isinstance(cause, ConservatorError) else error) from error
    finally:
        for actor in actors:
            ray.kill(actor)
    total = functools.reduce(Spent.plus, spent)
    rows, seconds = total.rows, (total.decode, total.restore, total.encode)
    return Estimate(run, pool, cores, rows, total.pixels / rows / 1e6, max(started), *(each / rows for each in seconds))


def _samples(run: Run, parts: Sequence[Part]) -> list[tuple[pa.Table, str]]:
    """Rows from all over the source: some of the first ones read of every few parts."""
    places = min(PLACES, len(parts))
    each = SAMPLE // places
    samples = []
    for place in range(places):
        part = parts[place * len(parts) // places]
        table = next(part.read(run.source.store, run.columns))
        few = min(each, table.num_rows)
        samples.append((table.take([row * table.num_rows // few for row in range(few)]), part.root))
    return samples


def _deal(samples: Sequence[tuple[pa.Table, str]], turn: int, hands: int) -> list[tuple[pa.Table, str]]:
    """Every so many rows, from one on."""
    dealt, before = [], 0
    for rows, root in samples:
        mine = [row for row in range(rows.num_rows) if (before + row) % hands == turn]
        before += rows.num_rows
        if mine:
            dealt.append((rows.take(mine), root))
    return dealt


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
