"""The flow: the one module that composes the Ray Dataset.

source table ──► decode ──► restore ──► encode ──► Parquet ──► counts asserted ──► report
                 CPU tasks  actors      CPU tasks
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pyarrow.fs as pafs
import ray
import ray.data
import ray.exceptions
from ray.data.checkpoint import CheckpointConfig

from pipeline.actors import Restore, RestoreSettings
from pipeline.cluster import beside_driver, cause_of, pool_of
from pipeline.desk import Desk
from pipeline.drain import Drain
from pipeline.errors import ConservatorError, Interrupted, OutputError, RunError, Stopped
from pipeline.imaging.cells import is_bytes
from pipeline.lake.attempts import Attempts, GaveUp
from pipeline.lake.commits import Committer, Input
from pipeline.lake.inputs import ImageFile, ParquetFile
from pipeline.lake.interval import Interval
from pipeline.lake.lease import Lease
from pipeline.lake.output import REPORTS, Output
from pipeline.lake.places import is_local
from pipeline.lake.reader import NothingToFilter, Part, Rows, plan_parts
from pipeline.lake.scan import Scan
from pipeline.lake.table import Table, partitions
from pipeline.metrics import RunMeter
from pipeline.plan import Retry, Run, plan
from pipeline.progress import Tally
from pipeline.recipe import Recipe
from pipeline.redaction import redacted, without_secrets
from pipeline.reporting.page import render
from pipeline.reporting.summary import Summary
from pipeline.reporting.survey import Survey, survey
from pipeline.stages.encode import EncodeStage
from pipeline.workers import Decide, Decode, Names, encode

log = logging.getLogger(__name__)

_ROW_GROUP, _LARGEST_GROUP, _GROUP_BYTES = 64, 1024, 4_000_000
"""Rows of a row group, at least and at most, and about what images of the source are in one."""
COMMITS = 8
"""Attempts of the last commit: a store that is away has about a minute to come back."""


def restore(run: Run, drain: Drain | None = None, retry: Retry | None = None) -> Summary:
    """Restore what is new in the source, as `prepare` found it.

    Args:
        run: what to do.
        drain: asked whether to end early.
        retry: as `prepare` was told.

    Raises:
        OutputError: the output cannot be used, or another run is writing to it.
        RunError: not as many rows came out as went in.
        Interrupted: it was told to end early, or (`Stopped`) had to; what was done is in the table.
    """
    started = time.monotonic()
    drain = drain or Drain(0)
    recipe, output, turn = run.recipe, run.output, run.turn
    if run.source.files and not run.decided_in:
        pool_of(recipe)  # or there is none, before anything is written
    # the desk takes a second to start, in which the rest is looked at
    looking = contextlib.closing(run.search) if run.search else contextlib.nullcontext()
    with looking, beside_driver(Desk) as desk, output.lease(run.run_id) as lease:
        if output.run() != run.before:
            raise OutputError(
                f"another run has written to {redacted(output.uri)} since this one looked; run again", True
            )
        lease.when_lost(drain.give_up)
        table, staging, ledger = output.table(), output.staging(turn.generation), output.ledger(turn.generation)
        record: dict[str, object] = {"run_id": run.run_id, "recipe_digest": recipe.digest(), "started": _now()}
        record |= {"generation": turn.generation, "replaces": turn.replaces, "retries": turn.retries}
        if run.search:
            record["images"] = isinstance(run.source.files[0], ImageFile)
        former = _former(output, run.before) if turn.replaces else None
        if former:
            record["former"] = former
        output.begin(record, recipe.to_yaml(redacted))  # from here on, what other generations had begun is over
        output.abandon_others(turn.generation, table)
        before = run.before or {}
        record |= {name: before[name] for name in ("main", "decided") if name in before}
        legs = [_leg(run, table, lease, retry)]
        ended, tally = False, Tally(desk)
        attempt = Attempt(run, tally)
        meter = RunMeter(run.run_id, tally.rows_left, lease.left, tally.statuses, attempt.tell)
        if legs[0].parts or run.search:
            end = "failed"
            try:
                with meter, tally, drain.told(desk, tally.megapixels) as stopped:
                    ended = _travel(legs, table, lease, tally, drain, stopped)
                    end = (drain.reason or "told to stop") if ended else "done"
            except KeyboardInterrupt:
                ended, end = True, drain.reason or "told to stop"
            finally:
                attempt.tell(meter, end)
            lease.check()
        leg = legs[-1]
        if ended and turn.replaces:
            raise _ended(drain, f"run {run.run_id} replaces the table when all of its rows are done: run again")
        _commit(leg.committer, leg.expected if turn.replaces else None)
        if ended:
            done, of = sum(one.committer.rows for one in legs), sum(one.expected for one in legs)
            raise _ended(drain, f"{done} of {of} rows are done; run again to go on from here")
        _check_whole(leg)
        run = leg.run
        record["rows"] = sum(one.run.rows for one in legs)
        ledger.forget_begun(ledger.states())
        lease.confirm()
        staging.recover()  # what repeated tasks have left
        output.tidy(table, turn.generation)
        rows = output.scan(table, run.run_id)
        seen = survey(rows, run.run_id, recipe.output.prefix)
        summary = seen.summary
        _tell(summary, legs, tally)
        summary.seconds = time.monotonic() - started
        if tally.done.first_at is not None:
            summary.first_at = tally.done.first_at
            summary.first_seconds = tally.done.first_at - (time.time() - summary.seconds)
        main = before.get("main") if run.decided_in else run.run_id
        report(output, rows, seen, recipe, is_main=main == run.run_id)
        if turn.replaces or (run.decided_in and not run.waiting):
            record["decided"] = run.decided  # and need not be looked for again
        record |= {"finished": _now(), "by_status": summary.by_status, "measured": summary.measured, "main": main}
        output.finish(record)
    return summary


class Leg(NamedTuple):
    """A part of a run: all of it, but where the rest of its source is not known when work begins."""

    run: Run
    committer: Committer
    parts: list[Part]
    expected: int
    """Rows that come out of it."""


def _leg(run: Run, table: Table, lease: Lease, retry: Retry | None) -> Leg:
    """Finish what a killed run had begun, and write down what this leg is about to read."""
    run, committer = _recovered(run, table, lease, retry)
    parts = plan_parts(run.source.files, run.wanted, committer.done())
    if run.source.files:
        ledger = run.output.ledger(run.turn.generation)
        ledger.begin((file.input for file in run.source.files), table.last_commit())
    return Leg(run, committer, parts, committer.uncommitted + sum(part.rows for part in parts))


def _travel(
    legs: list[Leg], table: Table, lease: Lease, tally: Tally, drain: Drain, stopped: Callable[[], bool]
) -> bool:
    """Do the rows of a leg, and of those that follow it, which are added to `legs`; whether the run ended early.

    Raises:
        ConservatorError: as `_write`, `_commit`, `_check_whole` and `plan`.
    """
    try:
        while True:
            leg = legs[-1]
            run = leg.run
            if leg.parts:
                tally.expect(sum(part.rows for part in leg.parts))
                with Interval(leg.committer, None if run.turn.replaces else 60 * run.recipe.output.commit_minutes):
                    _write(leg, tally, stopped)
            if run.search is None or drain.requested:
                return drain.requested
            lease.check()
            _commit(leg.committer, None)
            _check_whole(leg)
            rest = plan(run.recipe, run.output, run.turn, search=run.search, stopped=lambda: drain.requested)
            if drain.requested:
                return True
            log.info("then %d rows of %d files", rest.rows, len(rest.source.files))
            if rest.duplicates:
                log.warning("%s", rest.duplicates)
            legs.append(_leg(rest, table, lease, None))
    except Interrupted:
        return True


def _ended(drain: Drain, message: str) -> Interrupted:
    if drain.reason is None:
        return Interrupted(f"stopped: {message}")
    return Stopped(f"stopped at {drain.reason}: {message}")


def _former(output: Output, before: dict[str, Any] | None) -> dict[str, Any] | None:
    """Of which run the rows are that a run is about to replace."""
    assert before is not None
    if before["replaces"] and before["state"] == "running" and not output.has_rows(before["generation"]):
        former: dict[str, Any] | None = before.get("former")
        return former
    return {name: before[name] for name in ("run_id", "recipe_digest", "generation", "replaces", "retries")}


def _recovered(run: Run, table: Table, lease: Lease, retry: Retry | None) -> tuple[Run, Committer]:
    """Finish what a killed run had begun; that changes what is left to be done."""
    committer = _committer(run, table, lease)
    if committer.recover():
        run = plan(run.recipe, run.output, run.turn, retry, run.search)
        committer = _committer(run, table, lease)
        committer.recover()
    return run, committer


class Attempt:
    """Writes down what this attempt of a run has done and cost; the run may take several, and any may be killed."""

    def __init__(self, run: Run, tally: Tally) -> None:
        self._run, self._tally, self._began = run, tally, _now()

    def tell(self, meter: RunMeter, end: str | None = None) -> None:
        """What is done so far; `end`: how it has ended, if it has."""
        pool = self._tally.pool
        try:
            seconds, done = self._tally.so_far()
            told = {"began": self._began, "ended": _now(), "end": end, "seconds": seconds}
            told |= {"rows": done.rows, "megapixels": done.megapixels, "actor_hours": 0.0, "core_hours": 0.0}
            if pool:  # of GPUs that were wanted, only those that were there are paid for
                actors = min(pool.actors, meter.there("GPU")) if pool.device == "cuda" else pool.actors
                told |= {"actor_hours": seconds / 3600 * actors, "core_hours": seconds / 3600 * meter.there("CPU")}
            self._run.output.tell_attempt(self._run.run_id, told)
        except (OutputError, ray.exceptions.RayError) as error:  # then its cost is not known
            log.warning("what this attempt has done could not be written down: %s", error)


def _tell(summary: Summary, legs: Sequence[Leg], tally: Tally) -> None:
    """Add to a summary what the table does not tell."""
    run, parts = legs[-1].run, [part for leg in legs for part in leg.parts]
    if tally.pool:
        summary.device, summary.actors = tally.pool.device, tally.pool.actors
    summary.flow_seconds, summary.bare_speed = tally.seconds, tally.bare_speed
    summary.flow_rows, summary.flow_megapixels = tally.done.rows, tally.done.megapixels
    summary.steady_speed = tally.done.steady_speed
    if summary.actors:
        prices, attempts = run.recipe.resources.prices, run.output.attempts(run.run_id)
        summary.actor_hours = sum(one["actor_hours"] for one in attempts)
        summary.core_hours = sum(one["core_hours"] for one in attempts)
        summary.cost = prices.cost(summary.actor_hours, summary.core_hours)
        summary.currency = "" if summary.cost is None else prices.currency
        told = None if run.turn.retries else run.output.estimate(run.recipe.digest(), summary.device)
        if told:  # of as many rows as attempts have told of: those that were killed have not
            seconds = told["start_seconds"] + told["row_seconds"] * sum(one["rows"] for one in attempts)
            hours = seconds / 3600 * told["actors"], seconds / 3600 * told["cores"]
            summary.estimate = {"made": told["made"], "actors": told["actors"], "cores": told["cores"]}
            summary.estimate |= {"actor_hours": hours[0], "core_hours": hours[1], "cost": prices.cost(*hours)}
    summary.files_read = len({path for part in parts for path in part.paths})
    summary.bytes_read = sum(part.size for part in parts)
    summary.duplicate_ids = sum(leg.run.duplicates.count for leg in legs if leg.run.duplicates)


def _committer(run: Run, table: Table, lease: Lease) -> Committer:
    inputs = {
        file.key: Input(file.input, run.keys[file.key].rows, run.keys[file.key].ids.tobytes())
        for file in run.source.files
        if file.key in run.keys
    }
    # What `--limit` leaves out does not take others' place now, and nothing that was made for it is kept.
    files = [file for file in run.source.files if file.key in inputs]
    limited = {file.key for file in files if run.rows_of(file) < inputs[file.key].rows}
    postponed = {key for exchange in run.exchanges if exchange.new & limited for key in exchange.new}
    inputs = {key: read for key, read in inputs.items() if key not in postponed}
    output, generation = run.output, run.turn.generation
    return Committer(
        *(table, output.intents(), output.staging(generation), output.ledger(generation), lease),
        schema=run.schema,
        key_column=run.key_column,
        run_id=run.run_id,
        recipe_digest=run.recipe.digest(),
        inputs=inputs,
        exchanges=[exchange for exchange in run.exchanges if not exchange.new & postponed],
        generation=generation,
    )


def _commit(committer: Committer, replacing: int | None) -> None:
    """The last commit of a run; `replacing`: with so many rows, what the table held.

    Raises:
        RunError: the store did not come back in time.
        OutputError: the table cannot take the files.
    """
    try:
        Attempts(COMMITS)(lambda: committer.commit(True) if replacing is None else committer.replace(replacing))
    except GaveUp as end:
        cause = end.__cause__
        if isinstance(cause, ConservatorError):
            raise cause from None
        said = f"{type(cause).__name__}: {without_secrets(str(cause))}"
        raise RunError(
            f"the last commit failed in {end.attempts} attempts ({said}); what was written is kept: run again"
        ) from cause


def _check_whole(leg: Leg) -> None:
    """The promise: what went in has come out.

    Raises:
        RunError: it has not.
    """
    run, committer, _, expected = leg
    if committer.rows != expected:
        raise RunError(f"{expected} rows went in and {committer.rows} came out of run {run.run_id}; run again")
    read = [file for file in run.source.files if file.key in run.keys]  # else its failed rows only
    whole = {file.key: file.path for file in read if run.rows_of(file) == run.keys[file.key].rows}
    missing = [path for key, path in whole.items() if key not in committer.finished]
    if missing:
        raise RunError(f"{len(missing)} files are not finished, such as {', '.join(missing[:5])}; run again")


def _write(leg: Leg, tally: Tally, stopped: Callable[[], bool]) -> None:
    """Run the flow into the table's folder.

    Raises:
        ConservatorError: a file of the source is broken inside, or a worker lacks what the recipe asks for.
        RunError: a file of the source or the output could not be read or written.
    """
    run, parts = leg.run, leg.parts
    output, settings = run.output, run.recipe.output
    store = pafs.LocalFileSystem() if is_local(output.store) else pafs.PyFileSystem(pafs.FSSpecHandler(output.store))
    context = ray.data.DataContext.get_current()
    context.checkpoint_config = CheckpointConfig(
        id_column=run.key_column,
        checkpoint_path=output.staging(run.turn.generation).folder,
        override_filesystem=store,
        delete_checkpoint_on_success=False,
        checkpoint_manager_cls=NothingToFilter,
    )
    try:
        compose(run, parts, tally, stopped).write_parquet(
            output.data,
            filesystem=store,
            filename_provider=Names(run.run_id),
            min_bytes_per_file=settings.file_mb * 1_000_000,
            row_group_size=row_group(run, parts),
            partition_cols=[folder for _, folder in partitions(settings.partition_by, settings.table)] or None,
            ray_remote_args={"num_cpus": run.recipe.resources.task_cpus},
        )
    except ray.exceptions.RayError as error:
        cause = cause_of(error)
        if isinstance(cause, ConservatorError):
            raise cause from error
        if isinstance(cause, OSError):
            raise RunError(
                f"a file could not be read or written ({type(cause).__name__}: {without_secrets(str(cause))}); "
                "see to it, and run again: it goes on from here"
            ) from error
        raise
    finally:
        context.checkpoint_config = None


def row_group(run: Run, parts: Sequence[Part]) -> int:
    """Rows of a row group: each costs readers 0.1 MB of memory, so where rows are small many go together."""
    if run.recipe.output.row_group is not None:
        return run.recipe.output.row_group
    image = run.source.columns.image
    schemas = [file.schema for file in run.source.files if isinstance(file, ParquetFile)]
    held = all(image in schema.names and is_bytes(schema.field(image).type) for schema in schemas)
    if run.recipe.output.images != "inline" or not held:
        return _ROW_GROUP  # how large a row will be is not known
    size, rows = sum(part.size for part in parts), sum(part.rows for part in parts)
    return min(max(int(_GROUP_BYTES * rows / max(1, size)), _ROW_GROUP), _LARGEST_GROUP)


def compose(
    run: Run, parts: Sequence[Part], tally: Tally | None = None, stopped: Callable[[], bool] = bool
) -> ray.data.Dataset:
    """The dataset: read and decode, restore, encode; `tally` is told of the rows that are done.

    When `stopped` says so, nothing more is read.
    """
    recipe, resources = run.recipe, run.recipe.resources
    context = ray.data.DataContext.get_current()
    if run.decided_in:
        context.target_max_block_size = resources.block_bytes("cpu")
        edits = Rows(run.source.store, parts, run.columns, Decide(run), stopped)
        return ray.data.read_datasource(edits, num_cpus=resources.task_cpus, override_num_blocks=edits.tasks)
    pool = pool_of(recipe, sum(part.rows for part in parts))
    context.target_max_block_size = resources.block_bytes(pool.device)  # else small blocks are put together again
    publish = run.output.image_writer(run.turn.generation) if recipe.output.images == "files" else None
    stage = EncodeStage(recipe, run.run_id, publish, run.credentials())
    folders = dict(partitions(recipe.output.partition_by, recipe.output.table))
    desk = tally.desk if tally else None
    at_once = int(2 * ray.cluster_resources().get("CPU", 0))
    rows = Rows(run.source.store, parts, run.columns, Decode(run, pool.device, desk), stopped, at_once)
    if tally:
        tally.pool = pool
    flow: ray.data.Dataset = (
        ray.data.read_datasource(rows, num_cpus=resources.task_cpus, override_num_blocks=rows.tasks)
        .map_batches_internal(  # a whole block at a time, which `map_batches` does not do on GPUs
            Restore,
            fn_constructor_args=(RestoreSettings.of(run), pool, desk),
            compute=ray.data.ActorPoolStrategy(size=pool.actors),
            batch_format="pyarrow",
            udf_modifying_row_count=False,
            scheduling_strategy="SPREAD",  # what differs from the readers' is not fused with them
            **pool.demands,
        )
        .map_batches(
            encode,
            fn_args=(stage, folders, desk),
            batch_format="pyarrow",
            num_cpus=resources.task_cpus,
            udf_modifying_row_count=False,
        )
    )
    flow.set_name(f"conservator {run.run_id}")  # in Ray's dashboard
    return flow


def report(output: Output, rows: Scan, seen: Survey, recipe: Recipe, is_main: bool = True) -> None:
    """Write `summary.json` and `report.html` of a run; if it is the last but for decisions, beside the table too."""
    columns = recipe.columns
    summary = json.dumps(seen.summary.as_dict(), indent=2) + "\n"
    page = render(rows, seen, columns.id, columns.caption, recipe.output.prefix)
    for folder in (f"{REPORTS}/{seen.summary.run_id}/", *([""] if is_main else [])):
        output.write(folder + "summary.json", summary)
        output.write(folder + "report.html", page)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
