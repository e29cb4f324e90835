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
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.actors import RestoreSettings
from pipeline.cluster import Pool, cause_of, pool_of, resources_here
from pipeline.errors import ConservatorError, RunError
from pipeline.lake.reader import Part, plan_parts
from pipeline.plan import Run
from pipeline.recipe import shown_model
from pipeline.redaction import redacted, without_secrets
from pipeline.restoration.local import stores_reached
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
SLOW = 5.0
"""Seconds for one row, from which on rows are tried one by one."""
AT_ONCE = 16
"""Actors that try rows, at most, where they share a machine's cores: one alone would be faster than among others."""
RAY = 6.0
"""Seconds that Ray needs to start, on a small machine."""
RAY_CORES = 0.12
"""Cores that Ray's own processes take while rows are on their way, measured on a machine of two."""
WAIT = 900.0
"""Seconds in which a restoring actor has to be there, and to be done with each step."""

_TABLES = {"parquet": "Parquet files", "iceberg": "an Iceberg table", "delta": "a Delta table"}


class Spent(NamedTuple):
    """What trying some rows took on one actor."""

    rows: int
    pixels: int
    decode: float
    """Seconds, as the others."""
    restore: float
    encode: float
    bands: int = 0
    """Rows too large to be tried."""

    def plus(self, other: Spent) -> Spent:
        """Both together."""
        return Spent(
            *(self.rows + other.rows, self.pixels + other.pixels, self.decode + other.decode),
            *(self.restore + other.restore, self.encode + other.encode, self.bands + other.bands),
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
    bands: int = 0
    """Of the rows tried, those that a run restores in bands: reckoned by the speed of the model."""
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
    def paid_seconds(self) -> float:
        """That restoring actors are there, their start included."""
        return self.start + self.flow_seconds

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return RAY + self.paid_seconds

    @property
    def actor_hours(self) -> float:
        """Of all restoring actors."""
        return self.paid_seconds * self.pool.actors / 3600

    @property
    def core_hours(self) -> float:
        """Of all cores, whatever they do."""
        return self.paid_seconds * self.cores / 3600

    def as_dict(self) -> dict[str, Any]:
        """What a later run's report needs to tell beside what the run took: by the row, as it may have others."""
        return {
            "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "recipe_digest": self.run.recipe.digest(),
            "device": self.pool.device,
            "rows_sampled": self.sampled,
            "actors": self.pool.actors,
            "cores": self.cores,
            "start_seconds": self.start,
            "row_seconds": self.row_seconds,
        }

    def as_text(self) -> str:
        """For the console."""
        run, recipe, pool = self.run, self.run.recipe, self.pool
        read = [file for file in run.source.files if run.rows_of(file)]
        models = " + ".join(shown_model(name, redacted) for name in recipe.restoration.models)
        places = ", ".join(redacted(uri) for uri in recipe.source.uri)
        source = f"{run.rows} rows of {len(read)} files ({sum(file.size for file in read) / 1e6:.1f} MB)"
        sample = f"{self.sampled} rows of {self.megapixels:.2f} MP in the mean"
        sample += f", {self.bands} of them in bands, not tried" if self.bands else ""
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
        self._at_once = SAMPLE

    def machine(self) -> tuple[str, float, float]:
        """Which it runs on, and the CPUs and GPUs of that."""
        has = resources_here()
        return ray.get_runtime_context().get_node_id(), has.get("CPU", 0), has.get("GPU", 0)

    def start(self, rows: pa.Table, root: str) -> float:
        """Load the model and try a row with it; the seconds that the loading took.

        Raises:
            ConservatorError: it cannot be loaded. (An error of `__init__` would come without its cause.)
        """
        began = time.perf_counter()
        settings, pool = self._settings, self._pool
        with stores_reached(settings.stores):
            self._restore = RestoreStage(settings.recipe, pool.device, pool.threads_here(), settings.decisions)
        self._encode = EncodeStage(settings.recipe, settings.run_id)
        loaded = time.perf_counter()
        self._try(rows, root)
        if time.perf_counter() - loaded > SLOW:
            self._at_once = 1
        return loaded - began

    def try_rows(self, samples: Sequence[tuple[pa.Table, str]]) -> Spent:
        """Rows with the places in the source below which they lie."""
        total = Spent(0, 0, 0.0, 0.0, 0.0)
        for rows, root in samples:
            for first in range(0, rows.num_rows, self._at_once):
                total = total.plus(self._try(rows.slice(first, self._at_once), root))
                if total.decode + total.restore + total.encode > ENOUGH:
                    return total
        return total

    def _try(self, rows: pa.Table, root: str) -> Spent:
        count, pixels, bands, seconds = 0, 0, 0, [0.0, 0.0, 0.0]
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
            names = [INTERNAL + name for name in ("height", "width", "large")]
            for height, width, large in zip(*(decoded[name].to_pylist() for name in names), strict=True):
                pixels += (height or 0) * (width or 0)
                if large is not None and (speed := self._restore.bare_speed()):  # nothing can be written here
                    bands += 1
                    seconds[1] += height * width / 1e6 / speed
            mark = time.perf_counter()
        return Spent(count, pixels, seconds[0], seconds[1], seconds[2], bands)


def estimate(run: Run) -> Estimate:
    """Run some rows through the stages on restoring actors like those of the run, and write nothing.

    Raises:
        RunError: no such actor could start, or the rows end it.
        ConservatorError: a model or a package is missing there.
    """
    pool = pool_of(run.recipe, run.rows)
    parts = plan_parts(run.source.files, run.wanted, {})
    if not parts or run.decided_in:
        return Estimate(run, pool, ray.cluster_resources().get("CPU", 0))
    samples = _samples(run, parts)
    actors: list[Any] = []
    try:
        kind = ray.remote(**pool.demands)(Sampler).options
        told = (RestoreSettings.of(run), pool, Decode(run, pool.device))
        actors.append(kind(scheduling_strategy="SPREAD").remote(*told))
        machine, cpus, gpus = ray.get(actors[0].machine.remote(), timeout=WAIT)
        cores = _cores(pool, cpus, gpus)
        if pool.device == "cpu":  # what the run has on a machine works on it at once
            many = min(int(pool.actors * cpus / cores) or 1, AT_ONCE, sum(rows.num_rows for rows, _ in samples))
            here = kind(scheduling_strategy=NodeAffinitySchedulingStrategy(machine, soft=True))
            actors += [here.remote(*told) for _ in range(many - 1)]
        first, root = samples[0]
        started = ray.get([actor.start.remote(first.slice(0, 1), root) for actor in actors], timeout=WAIT)
        dealt = [_deal(samples, turn, len(actors)) for turn in range(len(actors))]
        trying = [actor.try_rows.remote(mine) for actor, mine in zip(actors, dealt, strict=True)]
        spent = ray.get(trying, timeout=WAIT)
    except ray.exceptions.GetTimeoutError as error:
        demands = ", ".join(
            f"{amount:g} {name.removeprefix('num_')}" for name, amount in pool.demands.items() if amount
        )
        raise RunError(
            f"no restoring actor (of {demands}) had tried some rows within {WAIT / 60:.0f} minutes; see with "
            "`ray status` whether the cluster has or starts machines for it",
            True,
        ) from error
    except ray.exceptions.RayActorError as error:
        raise RunError(
            f"a worker that tried some rows has died ({without_secrets(str(error)).splitlines()[0]}): its machine was "
            "lost, or a row ends it, without which a run would go on",
            True,
        ) from error
    except ray.exceptions.RayError as error:
        cause = cause_of(error)
        raise (cause if isinstance(cause, ConservatorError) else error) from error
    finally:
        for actor in actors:
            ray.kill(actor)
    total = functools.reduce(Spent.plus, spent)
    means = (seconds / total.rows for seconds in (total.decode, total.restore, total.encode))
    megapixels = total.pixels / total.rows / 1e6
    return Estimate(run, pool, cores, total.rows, megapixels, max(started), total.bands, *means)


def _cores(pool: Pool, cpus: float, gpus: float) -> float:
    """Of the cluster, when all actors are there: machines with GPUs may only just have been asked for."""
    there = float(ray.cluster_resources().get("CPU", 0))
    return max(there, cpus / gpus * pool.actors) if pool.device == "cuda" and gpus else max(there, cpus)


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
