"""What runs in Ray's tasks, on CPUs: decoding, encoding and decisions, with what tells of the work.

Without torch, whose import takes each of many processes seconds and 200 MB.
"""

from __future__ import annotations

import collections
import functools
import logging
import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
from ray.data.datasource import FilenameProvider

from pipeline import logs
from pipeline.errors import WorkerDied
from pipeline.lake.table import partitions
from pipeline.metrics import RowMeter, StageMeter
from pipeline.recipe import Recipe
from pipeline.schema import ROW_KEY, megapixels
from pipeline.stages.decide import DecideStage
from pipeline.stages.decode import DecodeStage
from pipeline.stages.encode import EncodeStage
from pipeline.survival import Guard, Work

if TYPE_CHECKING:
    from pipeline.plan import Run

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

    def __init__(self, run: Run, device: str, desk: Any = None) -> None:
        """For a model on `device`; at `desk` workers write down what they are at. None: they do not."""
        roots = {file.root for file in run.source.files}
        self._stages = {root: run.decode_stage(root, device) for root in roots}
        self._desk, self._run_id = desk, run.run_id

    def __call__(self, table: pa.Table, root: str) -> Iterator[pa.Table]:
        """Rows of a file below `root`, decoded."""
        tell_logs(self._run_id, "decode")
        stage = self._stages[root]
        guard = guard_of(self._desk, "decode", stage.recipe, stage.failed)
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
        self._partitions = dict(partitions(recipe.output.partition_by, recipe.output.table))
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


def encode(table: pa.Table, stage: EncodeStage, folders: dict[str, str], desk: Any = None) -> pa.Table:
    """Restored rows as they stand in the output; `desk` is told of them."""
    tell_logs(stage.run_id, "encode")
    guard = guard_of(desk, "encode", stage.recipe, stage.failed)
    with StageMeter("encode").working():
        out = whole(guard, table, stage)
    _log_failures(out, stage.recipe)
    RowMeter().count(out, stage.recipe.output.prefix)
    if desk is not None:
        prefix = stage.recipe.output.prefix
        statuses = collections.Counter(out[prefix + "status"].to_pylist())
        desk.add.remote(dict(statuses), pc.sum(megapixels(out, prefix)).as_py() or 0.0)
    return _with_folders(out, folders)


def guard_of(
    desk: Any, stage: str, recipe: Recipe, fail: Callable[[pa.Table, WorkerDied], pa.Table]
) -> Callable[[pa.Table, Work], Iterator[pa.Table]]:
    """What does a stage's work on a table; without a desk nothing is written down, and the work is just done."""
    if desk is None:
        return lambda table, work: work(table)
    guard = Guard(desk, stage, recipe.limits.row_seconds, fail)
    return lambda table, work: guard(table, table[ROW_KEY].to_pylist(), work)


def whole(
    guard: Callable[[pa.Table, Work], Iterator[pa.Table]], table: pa.Table, stage: Callable[[pa.Table], pa.Table]
) -> pa.Table:
    """A table's rows by a stage that hands on one table for one."""
    return pa.concat_tables(list(guard(table, lambda rows: iter([stage(rows)]))))


def tell_logs(run_id: str, stage: str) -> None:
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


def _with_folders(table: pa.Table, folders: dict[str, str]) -> pa.Table:
    for name, folder in folders.items():
        if folder != name:
            table = table.append_column(folder, table[name])
    return table
