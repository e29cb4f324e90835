"""The flow: the one module that composes the Ray Dataset.

source table ──► decode ──► restore ──► encode ──► Parquet ──► counts asserted ──► report
                 CPU tasks  actors      CPU tasks
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import time
import uuid
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import ray
import ray.data
from ray.data.datasource import FilenameProvider

from pipeline.errors import RecipeError, RunError, SourceError
from pipeline.lake.fetch import UriReader
from pipeline.lake.output import Output, open_output
from pipeline.lake.places import is_local
from pipeline.lake.source import Source, open_source
from pipeline.progress import Tally
from pipeline.recipe import Recipe
from pipeline.reporting.page import render
from pipeline.reporting.summary import Summary, summarise
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
    run_id: str

    @property
    def rows(self) -> int:
        """Rows that will come out."""
        limit = self.recipe.limits.rows
        return self.source.rows if limit is None else min(limit, self.source.rows)

    def reader(self) -> UriReader:
        """Reads the images that the source names by URI."""
        source, limits = self.source, self.recipe.limits
        base = source.base if is_local(source.store) else source.store.unstrip_protocol(source.base)
        return UriReader(base, self.recipe.source.allowed_uris, int(limits.max_image_mb * 1e6), limits.attempts)


def prepare(recipe: Recipe) -> Run:
    """Look at source, output and model, and find what is wrong with them before anything starts.

    Raises:
        ConservatorError: one of them cannot be used.
    """
    source = open_source(recipe.source.uri, recipe.columns)
    own = {recipe.output.prefix + name for name in OUTPUT.names}
    taken = [name for name in source.passed.names if name in own]
    if taken:
        raise SourceError(
            f"the source's columns {', '.join(taken)} have names that the output needs; "
            "give the added columns a prefix: --set output.prefix=restored_"
        )
    load_model(recipe.restoration.model)
    return Run(recipe, source, open_output(recipe.output.uri), _run_id())


def restore(run: Run, fresh: bool = False) -> Summary:
    """Restore the whole source.

    Args:
        run: as `prepare` made it.
        fresh: replace the finished run that the output holds.

    Raises:
        OutputError: the output cannot be used.
        RunError: not as many rows came out as went in.
    """
    started = time.monotonic()
    recipe, output = run.recipe, run.output
    record = {"run_id": run.run_id, "recipe_digest": recipe.digest(), "started": _now(), "rows": run.rows}
    output.begin(record, recipe.to_yaml(), fresh)
    if run.rows:
        with Tally(run.rows) as tally:
            compose(run, tally).write_parquet(
                output.data,
                filesystem=None if is_local(output.store) else output.store,
                filename_provider=FilenameProvider(dataset_uuid=run.run_id, file_format="parquet"),
                min_bytes_per_file=recipe.output.file_mb * 1_000_000,
            )
    dataset = output.dataset(run.run_id) if run.rows else _empty(run)
    summary = summarise(dataset, run.run_id, recipe.output.prefix)
    if summary.rows != run.rows:
        raise RunError(
            f"{run.rows} rows went in and {summary.rows} came out of run {run.run_id}; the output is not whole"
        )
    summary.seconds = time.monotonic() - started
    report(output, dataset, summary, recipe)
    output.finish(record | {"finished": _now(), "seconds": summary.seconds, "by_status": summary.by_status})
    return summary


def compose(run: Run, tally: Tally | None = None) -> ray.data.Dataset:
    """The dataset: read, decode, restore, encode; `tally` is told of the rows that are done."""
    recipe, source = run.recipe, run.source
    resources = recipe.resources
    device, actors = _device(recipe)
    decode = DecodeStage(recipe, source.passed, run.reader())
    encode = EncodeStage(recipe, run.run_id)
    dataset = _read(source, resources.task_cpus)
    if recipe.limits.rows is not None:
        dataset = dataset.limit(recipe.limits.rows)
    return (
        dataset.map_batches(_decode, fn_args=(decode,), batch_format="pyarrow", num_cpus=resources.task_cpus)
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
            fn_args=(encode,),
            batch_format="pyarrow",
            num_cpus=resources.task_cpus,
            udf_modifying_row_count=False,
        )
    )


def start_ray(recipe: Recipe) -> None:
    """Join the cluster that the environment names, else start Ray on this machine."""
    if ray.is_initialized():
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(logging_level=logging.WARNING)
    else:
        ray.init(
            include_dashboard=False,
            object_store_memory=recipe.resources.object_store_mb * 1_000_000,
            logging_level=logging.WARNING,
            log_to_driver=False,
        )


def report(output: Output, dataset: pads.Dataset, summary: Summary, recipe: Recipe) -> None:
    """Write `summary.json` and `report.html`."""
    columns = recipe.columns
    output.write("summary.json", json.dumps(summary.as_dict(), indent=2) + "\n")
    output.write("report.html", render(dataset, summary, columns.id, columns.caption, recipe.output.prefix))


def _read(source: Source, cpus: float) -> ray.data.Dataset:
    filesystem = None if is_local(source.store) else source.store
    parts = [
        ray.data.read_parquet([file.path for file in group], filesystem=filesystem, num_cpus=cpus)
        for group in source.groups()
    ]
    return parts[0].union(*parts[1:]) if len(parts) > 1 else parts[0]


def _device(recipe: Recipe) -> tuple[str, int]:
    """Where the model runs, and how many actors do."""
    wanted, actors = recipe.restoration.device, recipe.resources.actors
    gpus = int(ray.cluster_resources().get("GPU", 0))
    if wanted == "cuda" and not gpus:
        raise RecipeError("restoration.device is cuda, but the cluster has no GPU; use auto or cpu")
    device = "cuda" if gpus and wanted != "cpu" else "cpu"
    return device, actors or (gpus if device == "cuda" else len([node for node in ray.nodes() if node["Alive"]]))


def _decode(table: pa.Table, stage: DecodeStage) -> Any:
    yield from stage(table)


def _encode(table: pa.Table, stage: EncodeStage, counter: Any) -> pa.Table:
    out = stage(table)
    if counter is not None:
        counter.add.remote(out.num_rows)
    return out


def _empty(run: Run) -> pads.Dataset:
    prefix = run.recipe.output.prefix
    fields = [*run.source.passed, *(field.with_name(prefix + field.name) for field in OUTPUT)]
    return pads.dataset(pa.schema(fields).empty_table())


def _run_id() -> str:
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()) + "-" + uuid.uuid4().hex[:6]


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
