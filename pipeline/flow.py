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
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import ray
import ray.data
import ray.exceptions
from ray.data.checkpoint import CheckpointConfig
from ray.data.datasource import FilenameProvider

from pipeline.errors import OutputError, RecipeError, RunError, SourceError
from pipeline.imaging.cells import redacted
from pipeline.lake.commits import Committer, Input, Interval
from pipeline.lake.fetch import UriReader
from pipeline.lake.ids import Duplicates, find_duplicates, read_ids
from pipeline.lake.output import Output, Turn, open_output
from pipeline.lake.places import as_uri, is_local, join
from pipeline.lake.reader import NothingToFilter, Piece, Rows, plan_pieces
from pipeline.lake.source import Source, open_source
from pipeline.lake.table import storable
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


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that is about to start, or to be shown by `--dry-run`."""

    recipe: Recipe
    source: Source
    output: Output
    turn: Turn
    before: dict[str, Any] | None
    """What stood in the output when it was looked at."""
    ids: dict[str, list[str]]
    """Of the source's rows, by the files' keys."""
    duplicates: Duplicates | None
    """Ids that come twice."""

    @property
    def run_id(self) -> str:
        """Of its rows and files."""
        return self.turn.run_id

    @property
    def rows(self) -> int:
        """Rows that will have come out at its end, with those that a killed run has done."""
        limit = self.recipe.limits.rows
        return self.source.rows if limit is None else min(limit, self.source.rows)

    @property
    def passed(self) -> pa.Schema:
        """The source's columns that go through, with types that the table can hold."""
        return self.source.passed if self.recipe.output.table == "parquet" else storable(self.source.passed)

    @property
    def schema(self) -> pa.Schema:
        """Of the table."""
        prefix = self.recipe.output.prefix
        return pa.schema([*self.passed, *(field.with_name(prefix + field.name) for field in OUTPUT)])

    def decode_stage(self, root: str) -> DecodeStage:
        """Decodes rows of files below `root`."""
        store, limits = self.source.store, self.recipe.limits
        fetch = UriReader(
            as_uri(store, root), self.recipe.source.allowed_uris, int(limits.max_image_mb * 1e6), limits.attempts
        )
        return DecodeStage(self.recipe, self.source.columns, self.passed, fetch)


def prepare(recipe: Recipe, fresh: bool = False) -> Run:
    """Look at source, output and model, and find what is wrong with them before anything starts.

    Args:
        recipe: what to do.
        fresh: make all rows anew, to replace those that the output holds.

    Raises:
        ConservatorError: one of them cannot be used.
    """
    output = open_output(recipe.output.uri, recipe.output)
    before = output.run()
    turn = output.turn(_run_id(), recipe.digest(), fresh)
    ledger = output.ledger(turn.generation)
    source = open_source(recipe.source.uri, recipe.columns, ledger.finished())
    own = {recipe.output.prefix + name for name in OUTPUT.names}
    taken = [name for name in source.passed.names if name in own]
    if taken:
        raise SourceError(
            f"the source's columns {', '.join(taken)} have names that the output needs; "
            "give the added columns a prefix: --set output.prefix=restored_"
        )
    _keep_apart(source, output)
    ids = read_ids(source.store, source.files, source.columns.id)
    duplicates = find_duplicates(ids, ledger.ids())
    if source.files:
        load_model(recipe.restoration.model)
        minilm_folder()
    return Run(recipe, source, output, turn, before, ids, duplicates)


def restore(run: Run) -> Summary:
    """Restore what is new in the source, as `prepare` found it.

    Raises:
        OutputError: the output cannot be used, or another run is writing to it.
        RunError: not as many rows came out as went in.
    """
    started = time.monotonic()
    recipe, output, turn = run.recipe, run.output, run.turn
    with output.lease(run.run_id) as lease:
        if output.run() != run.before:
            raise OutputError(f"another run has written to {redacted(output.uri)} since this one looked; run again")
        staging, ledger = output.staging(turn.generation), output.ledger(turn.generation)
        staging.recover()
        inputs = {file.key: Input(file.input, file.rows, run.ids[file.key]) for file in run.source.files}
        table = output.table()
        committer = Committer(
            *(output.store, output.commits, table, staging, ledger, lease),
            *(run.schema, run.run_id, recipe.digest(), inputs),
        )
        committer.recover()
        pieces = plan_pieces(run.source.files, staging.done(inputs), committer.finished, recipe.limits.rows)
        record = {"run_id": run.run_id, "recipe_digest": recipe.digest(), "started": _now(), "rows": run.rows}
        record |= {"generation": turn.generation, "replaces": turn.replaces}
        output.begin(record, recipe.to_yaml(redacted))
        if pieces:
            _device(recipe)
            with Interval(committer, None if turn.replaces else 60 * recipe.output.commit_minutes):
                _write(run, pieces, staging.folder)
        committer.commit(turn.replaces)
        output.tidy(table)
        dataset = output.dataset(run.run_id)
        summary = summarise(dataset, run.run_id, recipe.output.prefix)
        if summary.rows != run.rows:
            raise RunError(
                f"{run.rows} rows went in and {summary.rows} came out of run {run.run_id}; the output is not whole"
            )
        summary.seconds = time.monotonic() - started
        summary.duplicate_ids = run.duplicates.count if run.duplicates else 0
        report(output, dataset, summary, recipe)
        output.finish(record | {"finished": _now(), "seconds": summary.seconds, "by_status": summary.by_status})
    return summary


def _write(run: Run, pieces: Sequence[Piece], checkpoint: str) -> None:
    """Run the flow into the table's folder.

    Raises:
        SourceError: a file of the source is broken inside.
        RunError: a file of the source or the output could not be read or written.
    """
    output, settings = run.output, run.recipe.output
    store = pafs.LocalFileSystem() if is_local(output.store) else pafs.PyFileSystem(pafs.FSSpecHandler(output.store))
    context = ray.data.DataContext.get_current()
    context.checkpoint_config = CheckpointConfig(
        id_column=settings.prefix + "source_row",
        checkpoint_path=checkpoint,
        override_filesystem=store,
        delete_checkpoint_on_success=False,
        checkpoint_manager_cls=NothingToFilter,
    )
    try:
        with Tally(sum(int(piece.wanted.sum()) for piece in pieces)) as tally:
            compose(run, pieces, tally).write_parquet(
                output.data,
                filesystem=store,
                filename_provider=FilenameProvider(dataset_uuid=run.run_id, file_format="parquet"),
                min_bytes_per_file=settings.file_mb * 1_000_000,
                row_group_size=settings.row_group,
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
    finally:
        context.checkpoint_config = None


def _cause(error: BaseException) -> BaseException:
    """What lies at the bottom of an error that came through Ray."""
    deeper = getattr(error, "cause", None) or error.__cause__
    return _cause(deeper) if isinstance(deeper, BaseException) else error


def compose(run: Run, pieces: Sequence[Piece], tally: Tally | None = None) -> ray.data.Dataset:
    """The dataset: read and decode, restore, encode; `tally` is told of the rows that are done."""
    recipe, resources = run.recipe, run.recipe.resources
    device, actors = _device(recipe)
    context = ray.data.DataContext.get_current()
    context.target_max_block_size = resources.block_mb * 1_000_000  # else small blocks are put together again
    encode = EncodeStage(recipe, run.run_id)
    return (
        ray.data.read_datasource(Rows(run.source.store, pieces, _Decode(run)), num_cpus=resources.task_cpus)
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
            fn_args=(encode, tally.counter if tally else None),
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


def _encode(table: pa.Table, stage: EncodeStage, counter: Any) -> pa.Table:
    out = stage(table)
    if counter is not None:
        counter.add.remote(out.num_rows)
    return out


def _run_id() -> str:
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()) + "-" + uuid.uuid4().hex[:6]


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
