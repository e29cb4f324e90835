"""The flow: the one module that composes the Ray Dataset.

source table ──► decode ──► restore ──► encode ──► Parquet ──► counts asserted ──► report
                 CPU tasks  actors      CPU tasks
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import socket
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import ray
import ray.data
import ray.exceptions
from ray.data.checkpoint import CheckpointConfig
from ray.data.datasource import FilenameProvider

from pipeline.drain import Drain
from pipeline.errors import Interrupted, OutputError, RecipeError, RunError, SourceError, transient_errors
from pipeline.imaging.cells import redacted
from pipeline.lake.attempts import Attempts
from pipeline.lake.commits import Committer, Exchange, Input, Interval
from pipeline.lake.exchanges import find_exchanges
from pipeline.lake.fetch import UriReader
from pipeline.lake.inputs import SourceFile
from pipeline.lake.keys import Duplicates, Keys, find_duplicates, name_duplicates, read_keys
from pipeline.lake.lease import Lease
from pipeline.lake.ledger import InputFile
from pipeline.lake.output import Output, Turn, open_output
from pipeline.lake.places import as_uri, is_local, join
from pipeline.lake.reader import NothingToFilter, Part, Rows, plan_parts
from pipeline.lake.source import Source, open_source
from pipeline.lake.storage import check_options
from pipeline.lake.table import PARTITION, Table, storable
from pipeline.progress import Tally
from pipeline.recipe import Recipe
from pipeline.reporting.page import render
from pipeline.reporting.summary import Summary, summarise
from pipeline.restoration.text import minilm_folder
from pipeline.restoration.weights import load_model
from pipeline.schema import OUTPUT
from pipeline.stages.decode import DecodeStage
from pipeline.stages.encode import EncodeStage
from pipeline.stages.restore import RestoreStage

log = logging.getLogger(__name__)

COMMITS = 8
"""Attempts of the last commit: a store that is away has about a minute to come back."""


Retry = Literal["transient", "all"]
"""Which failed rows are tried again: those whose error may pass, or all."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that is about to start, or to be shown by `--dry-run`."""

    recipe: Recipe
    source: Source
    output: Output
    turn: Turn
    before: dict[str, Any] | None
    """What stood in the output when it was looked at."""
    keys: dict[str, Keys]
    """What is known of the files' rows, by the files' keys."""
    wanted: dict[str, npt.NDArray[np.bool_]]
    """Of files not all of whose rows are read, those that are."""
    exchanges: tuple[Exchange, ...]
    """Files that take the place of others."""
    duplicates: Duplicates | None
    """Ids that come twice."""

    @property
    def run_id(self) -> str:
        """Of its rows and files."""
        return self.turn.run_id

    @property
    def rows(self) -> int:
        """How many it takes from the source."""
        return sum(self.rows_of(file) for file in self.source.files)

    def rows_of(self, file: SourceFile) -> int:
        """How many it takes from a file."""
        return int(self.wanted[file.key].sum()) if file.key in self.wanted else file.rows

    @property
    def is_needed(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.source.files or self.exchanges or self.turn.resumed or self.turn.replaces or not self.before)

    @property
    def passed(self) -> pa.Schema:
        """The source's columns that go through, with types that the table can hold."""
        return self.source.passed if self.recipe.output.table == "parquet" else storable(self.source.passed)

    @property
    def schema(self) -> pa.Schema:
        """Of the table."""
        prefix = self.recipe.output.prefix
        return pa.schema([*self.passed, *(field.with_name(prefix + field.name) for field in OUTPUT)])

    @property
    def key_column(self) -> str:
        """With the rows' keys, in the table."""
        return self.recipe.output.prefix + "source_row"

    def decode_stage(self, root: str) -> DecodeStage:
        """Decodes rows of files below `root`."""
        store, limits, source = self.source.store, self.recipe.limits, self.recipe.source
        fetch = UriReader(
            *(as_uri(store, root), source.allowed_uris, int(limits.max_image_mb * 1e6), limits.attempts),
            source.storage,
        )
        return DecodeStage(self.recipe, self.source.columns, self.passed, fetch)


def prepare(recipe: Recipe, fresh: bool = False, retry: Retry | None = None) -> Run:
    """Look at source, output and model, and find what is wrong with them before anything starts.

    Args:
        recipe: what to do.
        fresh: make all rows anew, to replace those that the output holds.
        retry: do failed rows of the table again, and nothing else.

    Raises:
        ConservatorError: one of them cannot be used.
    """
    for options, key in (
        *((recipe.source.storage, "source.storage"), (recipe.output.storage, "output.storage")),
        *((recipe.source.catalog, "source.catalog"), (recipe.output.catalog, "output.catalog")),
    ):
        check_options(options, key)
    output = open_output(recipe.output.uri, recipe.output)
    turn = output.turn(_run_id(), recipe.digest(), fresh, retry is not None)
    run = _plan(recipe, output, turn, retry)
    if run.source.files:
        load_model(recipe.restoration.model)
        minilm_folder()
    return run


def _plan(recipe: Recipe, output: Output, turn: Turn, retry: Retry | None) -> Run:
    """What is to be read of the source, and what takes the place of what."""
    before = output.run()
    ledger = output.ledger(turn.generation)
    states = ledger.states()
    finished = frozenset(file for file, state in states.items() if not state.gone)
    again = _failed(output, retry, finished) if retry else {}
    known = finished if not retry else frozenset(file for file in finished if file.key not in again)
    source = open_source(recipe.source.uri, recipe.columns, known, recipe.source)
    if retry:
        source = dataclasses.replace(source, files=tuple(file for file in source.files if file.key in again))
    own = {recipe.output.prefix + name for name in OUTPUT.names}
    taken = [name for name in source.passed.names if name in own]
    if taken:
        raise SourceError(
            f"the source's columns {', '.join(taken)} have names that the output needs; "
            "give the added columns a prefix: --set output.prefix=restored_"
        )
    _check_partitions(recipe, source)
    _keep_apart(source, output)
    if retry:
        wanted = {file.key: _chosen(file, again[file.key]) for file in source.files}
        return Run(recipe, source, output, turn, before, {}, wanted, (), None)
    keys = read_keys(source.store, source.files, source.columns.id, recipe.source.filters)
    unfinished = ledger.begun() - {file for file, state in states.items() if state.gone}
    exchanges = find_exchanges(source, finished | unfinished)
    wanted = {key: known.wanted for key, known in keys.items() if known.wanted is not None}
    if recipe.limits.rows is not None:
        wanted |= _limited(source, keys, wanted, recipe.limits.rows, exchanges)
    leaving = frozenset(file for exchange in exchanges for file in exchange.old)
    twice = find_duplicates(keys, ledger.ids(finished - leaving))
    duplicates = name_duplicates(source.store, source.files, source.columns.id, twice)
    return Run(recipe, source, output, turn, before, keys, wanted, exchanges, duplicates)


def _failed(output: Output, retry: Retry, finished: Collection[InputFile]) -> dict[str, list[int]]:
    """Numbers of the rows to be tried again, by the keys of their files."""
    kinds = transient_errors() if retry == "transient" else None
    keys = {file.key for file in finished}
    rows: dict[str, list[int]] = {}
    for row in output.failed_rows(output.table(), kinds):
        key, _, number = row.rpartition("-")
        if key in keys:
            rows.setdefault(key, []).append(int(number))
    return rows


def _chosen(file: SourceFile, rows: Sequence[int]) -> npt.NDArray[np.bool_]:
    chosen = np.zeros(file.rows, np.bool_)
    chosen[list(rows)] = True
    return chosen


def _limited(
    source: Source,
    keys: dict[str, Keys],
    wanted: dict[str, npt.NDArray[np.bool_]],
    limit: int,
    exchanges: Sequence[Exchange],
) -> dict[str, npt.NDArray[np.bool_]]:
    """The first rows only. A file that takes another's place is read whole or not at all."""
    whole = {key for exchange in exchanges for key in exchange.new}
    if any(len(exchange.new) > 1 for exchange in exchanges):
        raise SourceError("the source table has lost files since the last run, and takes no --limit; run without it")
    limited = {}
    for file in source.files:
        rows = keys[file.key].rows
        if rows > limit:
            chosen = wanted.get(file.key, np.ones(file.rows, np.bool_)).copy()
            chosen[np.flatnonzero(chosen)[0 if file.key in whole else limit :]] = False
            limited[file.key] = chosen
        limit -= min(rows, limit)
    return limited


def restore(run: Run, drain: Drain | None = None, retry: Retry | None = None) -> Summary:
    """Restore what is new in the source, as `prepare` found it.

    Args:
        run: what to do.
        drain: asked whether to end early.
        retry: as `prepare` was told.

    Raises:
        OutputError: the output cannot be used, or another run is writing to it.
        RunError: not as many rows came out as went in.
        Interrupted: it was told to end early; what was done is in the table.
    """
    started = time.monotonic()
    drain = drain or Drain(0)
    recipe, output, turn = run.recipe, run.output, run.turn
    with output.lease(run.run_id) as lease:
        if output.run() != run.before:
            raise OutputError(f"another run has written to {redacted(output.uri)} since this one looked; run again")
        table, staging, ledger = output.table(), output.staging(turn.generation), output.ledger(turn.generation)
        committer = _committer(run, table, lease)
        if committer.recover():  # what a killed run has done changes what is left to be done
            run = _plan(recipe, output, turn, retry)
            committer = _committer(run, table, lease)
            committer.recover()
        done = staging.done({file.key for file in run.source.files})
        parts = plan_parts(run.source.files, run.wanted, done)
        expected = committer.uncommitted + sum(part.rows for part in parts)
        record = {"run_id": run.run_id, "recipe_digest": recipe.digest(), "started": _now(), "rows": run.rows}
        record |= {"generation": turn.generation, "replaces": turn.replaces, "retries": turn.retries}
        output.begin(record, recipe.to_yaml(redacted))
        ledger.begin(file.input for file in run.source.files)
        ended = False
        if parts:
            _device(recipe)
            with Interval(committer, None if turn.replaces else 60 * recipe.output.commit_minutes):
                ended = _write(run, parts, staging.folder, drain)
        if ended and turn.replaces:
            raise Interrupted(f"stopped; run {run.run_id} replaces the table when all of its rows are done: run again")
        Attempts(COMMITS)(lambda: committer.commit(turn.replaces))
        if ended:
            raise Interrupted(f"stopped after {committer.rows} of {expected} rows; run again to go on from here")
        _check_whole(run, committer, expected)
        ledger.forget_begun(ledger.states())
        output.tidy(table, turn.generation)
        dataset = output.dataset(table, run.run_id)
        summary = summarise(dataset, run.run_id, recipe.output.prefix)
        summary.seconds = time.monotonic() - started
        summary.files_read = len({path for part in parts for path in part.paths})
        summary.bytes_read = sum(part.size for part in parts)
        summary.duplicate_ids = run.duplicates.count if run.duplicates else 0
        report(output, dataset, summary, recipe)
        output.finish(record | {"finished": _now(), "seconds": summary.seconds, "by_status": summary.by_status})
    return summary


def _committer(run: Run, table: Table, lease: Lease) -> Committer:
    inputs = {
        file.key: Input(file.input, run.keys[file.key].rows, run.keys[file.key].ids.tobytes())
        for file in run.source.files
        if file.key in run.keys
    }
    output, generation = run.output, run.turn.generation
    return Committer(
        *(table, output.intents(), output.staging(generation), output.ledger(generation), lease),
        schema=run.schema,
        key_column=run.key_column,
        run_id=run.run_id,
        recipe_digest=run.recipe.digest(),
        inputs=inputs,
        exchanges=run.exchanges,
    )


def _check_whole(run: Run, committer: Committer, expected: int) -> None:
    """The promise: what went in has come out.

    Raises:
        RunError: it has not.
    """
    if committer.rows != expected:
        raise RunError(f"{expected} rows went in and {committer.rows} came out of run {run.run_id}; run again")
    whole = {file.key: file.path for file in run.source.files if run.rows_of(file) == run.keys[file.key].rows}
    missing = [path for key, path in whole.items() if key not in committer.finished]
    if missing:
        raise RunError(f"{len(missing)} files are not finished, such as {', '.join(missing[:5])}; run again")


def _write(run: Run, parts: Sequence[Part], checkpoint: str, drain: Drain) -> bool:
    """Run the flow into the table's folder; whether it ended early.

    Raises:
        SourceError: a file of the source is broken inside.
        RunError: a file of the source or the output could not be read or written.
    """
    output, settings = run.output, run.recipe.output
    store = pafs.LocalFileSystem() if is_local(output.store) else pafs.PyFileSystem(pafs.FSSpecHandler(output.store))
    context = ray.data.DataContext.get_current()
    context.checkpoint_config = CheckpointConfig(
        id_column=run.key_column,
        checkpoint_path=checkpoint,
        override_filesystem=store,
        delete_checkpoint_on_success=False,
        checkpoint_manager_cls=NothingToFilter,
    )
    try:
        with drain.told() as stopped, Tally(sum(part.rows for part in parts)) as tally:
            compose(run, parts, tally, stopped).write_parquet(
                output.data,
                filesystem=store,
                filename_provider=FilenameProvider(dataset_uuid=run.run_id, file_format="parquet"),
                min_bytes_per_file=settings.file_mb * 1_000_000,
                row_group_size=settings.row_group,
                partition_cols=[partition for _, partition in _partitions(run.recipe)] or None,
            )
    except ray.exceptions.RayError as error:
        cause = _cause(error)
        if isinstance(cause, pa.ArrowInvalid):
            raise SourceError(f"a file of the source is broken: {cause}; repair or remove it, and run again") from error
        if isinstance(cause, OSError):
            raise RunError(
                f"a file could not be read or written ({type(cause).__name__}: {cause}); "
                "see to it, and run again: it goes on from here"
            ) from error
        raise
    except KeyboardInterrupt:
        return True
    finally:
        context.checkpoint_config = None
    return drain.requested


def _partitions(recipe: Recipe) -> list[tuple[str, str]]:
    """The columns by which the table is divided, each with the one that names its folders.

    The column of the folders is not in the data files. That is what readers of Hive and Delta tables expect; Iceberg
    wants it there, so the folders go by a copy.
    """
    names = recipe.output.partition_by
    return [(name, PARTITION + name if recipe.output.table == "iceberg" else name) for name in names]


def _check_partitions(recipe: Recipe, source: Source) -> None:
    """The table can only be divided by columns that it has, of which rows share values.

    Raises:
        RecipeError: one is none of them.
    """
    for name, folder in _partitions(recipe) if source.files else ():
        if name not in source.passed.names:
            raise RecipeError(
                f"output.partition_by names {name!r}, which does not pass through; "
                f"these do: {', '.join(source.passed.names)}"
            )
        kind = source.passed.field(name).type
        if pa.types.is_nested(kind) or pa.types.is_floating(kind) or name == source.columns.id:
            raise RecipeError(f"output.partition_by names {name!r}, whose values ({kind}) make no partitions")
        if folder != name and folder in source.passed.names:
            raise RecipeError(f"output.partition_by names {name!r}, but the source has a column {folder!r}")


def _cause(error: BaseException) -> BaseException:
    """What lies at the bottom of an error that came through Ray."""
    deeper = getattr(error, "cause", None) or error.__cause__
    return _cause(deeper) if isinstance(deeper, BaseException) else error


def compose(
    run: Run, parts: Sequence[Part], tally: Tally | None = None, stopped: Callable[[], bool] = bool
) -> ray.data.Dataset:
    """The dataset: read and decode, restore, encode; `tally` is told of the rows that are done.

    When `stopped` says so, nothing more is read.
    """
    recipe, resources = run.recipe, run.recipe.resources
    device, actors = _device(recipe)
    context = ray.data.DataContext.get_current()
    context.target_max_block_size = resources.block_mb * 1_000_000  # else small blocks are put together again
    publish = run.output.image_writer(run.turn.generation) if recipe.output.images == "files" else None
    encode = EncodeStage(recipe, run.run_id, publish)
    rows = Rows(run.source.store, parts, read_columns(run), _Decode(run), stopped)
    return (
        ray.data.read_datasource(rows, num_cpus=resources.task_cpus)
        .map_batches(
            RestoreStage,
            fn_constructor_args=(recipe, device, resources.threads),
            compute=ray.data.ActorPoolStrategy(size=actors),
            batch_format="pyarrow",
            num_cpus=1,
            num_gpus=1 if device == "cuda" else 0,
            udf_modifying_row_count=False,
        )
        .map_batches(
            _encode,
            fn_args=(encode, dict(_partitions(recipe)), tally.counter if tally else None),
            batch_format="pyarrow",
            num_cpus=resources.task_cpus,
            udf_modifying_row_count=False,
        )
    )


class _Decode:
    """Decodes what a reading task has read."""

    def __init__(self, run: Run) -> None:
        roots = {file.root for file in run.source.files}
        self._stages = {root: run.decode_stage(root) for root in roots}

    def __call__(self, table: pa.Table, root: str) -> Iterator[pa.Table]:
        return self._stages[root](table)


def start_ray(recipe: Recipe) -> None:
    """Join the cluster that the environment names, else start Ray on this machine."""
    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS")
    if address:
        _check_address(address)
        ray.init(logging_level=logging.WARNING)
    else:
        os.environ.setdefault("RAY_DATA_PARQUET_FOOTER_NUM_ACTORS", "1")  # else 32 for every group of files
        ray.init(
            address="local",  # not one that somebody else has left running here
            num_cpus=max(2, len(os.sched_getaffinity(0))),
            include_dashboard=False,
            object_store_memory=recipe.resources.object_store_mb * 1_000_000,
            logging_level=logging.WARNING,
            log_to_driver=False,
        )


def _check_address(address: str) -> None:
    """Refuse what Ray would try for minutes.

    Raises:
        RecipeError: nothing answers there, or it is not the address of a cluster's control store.
    """
    if "://" in address:
        raise RecipeError(
            f"RAY_ADDRESS={address} is for clients; send the job to the cluster with ray job submit, "
            "or give the address that ray start printed, such as 10.0.0.1:6379"
        )
    host, separator, port = address.rpartition(":")
    if separator and port.isdecimal():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            raise RecipeError(
                f"no Ray cluster answers at RAY_ADDRESS={address} ({error}); start it, or unset the variable"
            ) from error


def report(output: Output, dataset: pads.Dataset, summary: Summary, recipe: Recipe) -> None:
    """Write `summary.json` and `report.html`."""
    columns = recipe.columns
    output.write("summary.json", json.dumps(summary.as_dict(), indent=2) + "\n")
    output.write("report.html", render(dataset, summary, columns.id, columns.caption, recipe.output.prefix))


def _keep_apart(source: Source, output: Output) -> None:
    """A run must not read what it or another run writes."""
    if type(source.store) is not type(output.store):
        return
    inside = any(file.path.startswith(output.data + "/") for file in source.files)
    if inside or source.would_read(join(output.data, "part.parquet")):
        raise SourceError(
            f"the output {redacted(output.uri)} lies in the source, or the source in the output's data; the next run "
            "would read what this one writes: give another --output"
        )


def _device(recipe: Recipe) -> tuple[str, int]:
    """Where the model runs, and how many actors do."""
    wanted, actors = recipe.restoration.device, recipe.resources.actors
    gpus = int(ray.cluster_resources().get("GPU", 0))
    cpus = ray.cluster_resources().get("CPU", 0)
    if wanted == "cuda" and not gpus and not os.environ.get("RAY_ADDRESS"):
        raise RecipeError("restoration.device is cuda, but this machine has no GPU; use auto or cpu")
    if wanted == "cuda" or (wanted == "auto" and gpus):  # a cluster may start its GPU machines when they are asked for
        return "cuda", actors or max(gpus, 1)
    actors = actors or len([node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")])
    if actors + 2 * recipe.resources.task_cpus > cpus and not os.environ.get("RAY_ADDRESS"):
        raise RecipeError(
            f"resources.actors ({actors}) and twice resources.task_cpus ({recipe.resources.task_cpus:g}) are more than "
            f"the {cpus:g} CPUs; set one of them lower"
        )
    return "cpu", max(actors, 1)


def read_columns(run: Run) -> list[str]:
    """The columns of the source that are read: those that go through, and those with images."""
    columns = run.source.columns
    roles = (columns.id, columns.image, columns.caption, columns.mask, columns.references, columns.truth)
    return list(dict.fromkeys([*run.passed.names, *(name for name in roles if name)]))


def _encode(table: pa.Table, stage: EncodeStage, partitions: dict[str, str], counter: Any) -> pa.Table:
    out = stage(table)
    for name, folder in partitions.items():
        if folder != name:
            out = out.append_column(folder, out[name])
    if counter is not None:
        counter.add.remote(out.num_rows)
    return out


def _run_id() -> str:
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()) + "-" + uuid.uuid4().hex[:6]


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
