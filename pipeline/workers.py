"""What runs in Ray's workers: the stages, with what tells of their work."""

from __future__ import annotations

import functools
import logging
import uuid
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from ray.data.datasource import FilenameProvider

from pipeline import logs
from pipeline.errors import WorkerDied
from pipeline.lake.fetch import UriReader
from pipeline.lake.images import ImageWriter
from pipeline.metrics import ActorMeter, RowMeter, StageMeter
from pipeline.plan import Run, partitions
from pipeline.quality.gate import Decision
from pipeline.recipe import Recipe
from pipeline.schema import ROW_KEY, megapixels
from pipeline.stages.decide import DecideStage
from pipeline.stages.decode import DecodeStage
from pipeline.stages.encode import EncodeStage
from pipeline.stages.restore import RestoreStage
from pipeline.survival import Guard, Work

log = logging.getLogger(__name__)


class Names(FilenameProvider):  # type: ignore[misc]  # Ray is untyped here
    """Names of data files: no two attempts of a task share one, so what is repeated overwrites nothing."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._attempt = ""

    def __getstate__(self) -> dict[str, str]:
        return {"_run_id": self._run_id, "_attempt": ""}

    def get_filename_for_task(self, write_uuid: str, task_index: int) -> str:
        """The same for all that one attempt writes: it has a copy of this object to itself."""
        self._attempt = self._attempt or uuid.uuid4().hex[:8]
        return f"{self._run_id}_{write_uuid}_{task_index:06d}_{self._attempt}.parquet"


class Decode:
    """Decodes what a reading task has read."""

    def __init__(self, run: Run, book: Any = None) -> None:
        """`book`: the actor in which workers write down what they are at; None: they do not."""
        roots = {file.root for file in run.source.files}
        self._stages = {root: run.decode_stage(root) for root in roots}
        self._book, self._run_id = book, run.run_id

    def __call__(self, table: pa.Table, root: str) -> Iterator[pa.Table]:
        """Rows of a file below `root`, decoded."""
        _tell_logs(self._run_id, "decode")
        stage = self._stages[root]
        guard = _guard(self._book, "decode", stage.recipe, stage.failed)
        return guard(table, functools.partial(self._decoded, stage))

    @staticmethod
    def _decoded(stage: DecodeStage, table: pa.Table) -> Iterator[pa.Table]:
        tables, meter = stage(table), StageMeter("decode")
        while True:
            with meter.working():
                decoded = next(tables, None)
            if decoded is None:
                return
            yield decoded


class Decide:
    """Makes of rows of the table what persons have decided, instead of restoring those of the source."""

    def __init__(self, run: Run) -> None:
        output, recipe = run.output, run.recipe
        lookup = output.lookup(output.table(), run.decided_in)
        publish = output.image_writer(run.turn.generation) if recipe.output.images == "files" else None
        self._partitions = dict(partitions(recipe))
        self._stages = {
            root: DecideStage(
                *(recipe, run.run_id, run.source.columns.image, run.decisions, lookup),
                fetch=run.reader(root),
                reader=run.reader(root),
                publish=publish,
            )
            for root in {file.root for file in run.source.files}
        }

    def __call__(self, table: pa.Table, root: str) -> Iterator[pa.Table]:
        """The table's rows for rows of a file below `root`."""
        yield _with_folders(self._stages[root](table), self._partitions)


class RestoreSettings(NamedTuple):
    """What restoring actors are told of a run."""

    recipe: Recipe
    decisions: dict[str, Decision]
    readers: dict[str, UriReader]
    """By the place in the source below which rows lie."""
    images: ImageWriter
    """Where large results go."""
    run_id: str

    @classmethod
    def of(cls, run: Run) -> RestoreSettings:
        """Of this run."""
        readers = {root: run.reader(root) for root in {file.root for file in run.source.files}}
        return cls(run.recipe, run.decisions, readers, run.output.image_writer(run.turn.generation), run.run_id)


class Restore:
    """What an actor of the cluster holds."""

    def __init__(self, settings: RestoreSettings, device: str, counter: Any, book: Any = None) -> None:
        _tell_logs(settings.run_id, "restore")
        recipe = settings.recipe
        threads, publish = recipe.resources.threads, settings.images.file
        self._stage = RestoreStage(recipe, device, threads, settings.decisions, settings.readers, publish)
        if counter is not None:
            speed = self._stage.bare_speed()
            if speed is not None:
                counter.found_speed.remote(speed)
        self._meter = ActorMeter("restore")
        self._guard = _guard(book, "restore", recipe, self._stage.failed)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Decoded rows, restored."""
        with self._meter.working():
            return _whole(self._guard, table, self._stage)


def encode(table: pa.Table, stage: EncodeStage, partitions: dict[str, str], counter: Any, book: Any = None) -> pa.Table:
    """Restored rows as they stand in the output; `counter` is told of them."""
    _tell_logs(stage.run_id, "encode")
    guard = _guard(book, "encode", stage.recipe, stage.failed)
    with StageMeter("encode").working():
        out = _whole(guard, table, stage)
    _log_failures(out, stage.recipe)
    RowMeter().count(out, stage.recipe.output.prefix)
    if counter is not None:
        counter.add.remote(out.num_rows, pc.sum(megapixels(out, stage.recipe.output.prefix)).as_py() or 0.0)
    return _with_folders(out, partitions)


def _guard(
    book: Any, stage: str, recipe: Recipe, fail: Callable[[pa.Table, WorkerDied], pa.Table]
) -> Callable[[pa.Table, Work], Iterator[pa.Table]]:
    """What does a stage's work on a table; without a book nothing is written down, and the work is just done."""
    if book is None:
        return lambda table, work: work(table)
    guard = Guard(book, stage, recipe.limits.row_seconds, fail)
    return lambda table, work: guard(table, table[ROW_KEY].to_pylist(), work)


def _whole(
    guard: Callable[[pa.Table, Work], Iterator[pa.Table]], table: pa.Table, stage: Callable[[pa.Table], pa.Table]
) -> pa.Table:
    """A table's rows by a stage that hands on one table for one."""
    return pa.concat_tables(list(guard(table, lambda rows: iter([stage(rows)]))))


def _tell_logs(run_id: str, stage: str) -> None:
    """What stands in this worker's lines, if they are for collectors."""
    if logs.wants_json():
        logs.configure(run_id=run_id, stage=stage)


def _log_failures(out: pa.Table, recipe: Recipe) -> None:
    """A line for each row that failed, for collectors: others find them in the table."""
    if not logs.wants_json():
        return
    prefix = recipe.output.prefix
    names = [prefix + name for name in ("source_row", "error_stage", "error_type", "error_message")]
    failed = out.filter(pc.equal(out[prefix + "status"], "failed"))
    for key, stage, kind, message in zip(*(failed[name].to_pylist() for name in names), strict=True):
        log.warning("row failed: %s", message, extra={"row_id": key, "stage": stage, "error_type": kind})


def _with_folders(table: pa.Table, partitions: dict[str, str]) -> pa.Table:
    for name, folder in partitions.items():
        if folder != name:
            table = table.append_column(folder, table[name])
    return table
