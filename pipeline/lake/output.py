"""The output place: `data/` with the table, `state/` with what the job knows, and the reports beside them.

data/                  the table's folder: Parquet files, and _manifest/, metadata/ or _delta_log/
reviews/               what persons have decided about rows marked `review`
reports/RUN/           summary and report of each run; those of the last beside data/
state/run.json         the last run: its id, recipe, generation, and whether it is finished
state/recipe.yaml      its recipe
state/attempts/        what the attempts of runs have done and cost
state/estimate.json    what the last `--dry-run` has found, for reports to tell beside it
state/lease/           who may write
images/0001/           restored images, if they are not in the table
state/ledger/0001/     input files that are finished, by generation of the table
state/checkpoint/0001/ rows that are done of those that are not
state/commits/         what a commit adds, written down before it does
"""

from __future__ import annotations

import dataclasses
import json
import posixpath
import re
from collections.abc import Collection, Mapping
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.dataset as pads

from pipeline.errors import OutputError, SourceError
from pipeline.lake.decisions import Decisions
from pipeline.lake.images import ImageWriter
from pipeline.lake.intents import Intents
from pipeline.lake.lease import Lease
from pipeline.lake.ledger import Ledger
from pipeline.lake.lookup import Lookup
from pipeline.lake.manifest import COLUMNS, ManifestTable
from pipeline.lake.places import as_uri, explained, join, make_folder, names_in, open_store, put
from pipeline.lake.rewriting import PREFIX as REWRITTEN
from pipeline.lake.scan import Scan
from pipeline.lake.staging import Staging, write_of
from pipeline.lake.storage import resolved
from pipeline.lake.table import Table, plain
from pipeline.quality.gate import Decision
from pipeline.recipe import Output as Settings
from pipeline.redaction import redacted
from pipeline.schema import OUTPUT

_OURS = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{6}_")
"""How the names of data files begin: with the run's id."""
_MADE = (REWRITTEN, COLUMNS)
"""And those that commits make."""
RUN = "state/run.json"
RECIPE = "state/recipe.yaml"
REPORTS = "reports"
ATTEMPTS = "state/attempts"
ESTIMATE = "state/estimate.json"


@dataclasses.dataclass(frozen=True)
class Turn:
    """What a run is to the output: it begins, goes on where another was killed, or replaces the table."""

    run_id: str
    generation: int
    """Of the table; `--fresh` begins the next."""
    replaces: bool
    """Whether its rows take the place of all others when it is finished."""
    resumed: bool
    retries: bool = False
    """Whether it does rows again that have failed, and no others."""


@dataclasses.dataclass(frozen=True)
class Output:
    """One output place on any store."""

    uri: str
    store: fsspec.AbstractFileSystem
    root: str
    settings: Settings

    @property
    def data(self) -> str:
        """Path of the table's folder."""
        return join(self.root, "data")

    def intents(self) -> Intents:
        """The commits that were begun."""
        return Intents(self.store, join(self.root, "state/commits"))

    def run(self) -> dict[str, Any] | None:
        """What the last run wrote about itself; None before the first."""
        path = join(self.root, RUN)
        with explained(self.uri, OutputError):
            self.store.invalidate_cache()
            if not self.store.exists(path):
                return None
            try:
                content: dict[str, Any] = json.loads(self.store.cat_file(path))
            except json.JSONDecodeError as error:
                raise OutputError(f"{redacted(path)} is not JSON; remove it, or give another output") from error
            return content

    def recipe(self) -> str:
        """The recipe of the last run, as YAML."""
        with explained(self.uri, OutputError):
            text: str = self.store.cat_file(join(self.root, RECIPE)).decode()
            return text

    def turn(self, run_id: str, recipe_digest: str, fresh: bool, retries: bool = False) -> Turn:
        """What a run with this recipe would be; writes nothing.

        Args:
            run_id: of a new run; one that goes on keeps the id of the one that was killed.
            recipe_digest: of its recipe.
            fresh: replace all that the table holds.
            retries: do rows again that have failed.

        Raises:
            OutputError: the place holds foreign data, or rows of another recipe.
        """
        last = self.run()
        if last is None:
            if retries:
                raise OutputError(f"{redacted(self.uri)} holds no run whose rows could be tried again")
            if self._data_files():
                raise OutputError(
                    f"{redacted(self.uri)}/data holds Parquet files of something else; give an empty output"
                )
            return Turn(run_id, 1, False, False)
        if "generation" not in last:
            raise OutputError(f"{redacted(self.uri)} was written by an older version; give another output")
        self._check_kind(last)
        if fresh:
            if last["state"] == "running" and last["replaces"] and last["recipe_digest"] == recipe_digest:
                return Turn(last["run_id"], last["generation"], True, True)  # it was begun, and goes on
            return Turn(run_id, last["generation"] + 1, True, False)
        has_rows = self.has_rows(last["generation"])
        is_other = last["recipe_digest"] != recipe_digest
        if is_other and last.get("former") and last["state"] == "running" and not has_rows:
            last = last["former"] | {"state": "finished"}  # nothing was replaced: the table is what it was
            has_rows, is_other = self.has_rows(last["generation"]), last["recipe_digest"] != recipe_digest
        if is_other and last["state"] == "running" and not self.staging(last["generation"]).is_empty:
            raise OutputError(
                f"files are half done by run {last['run_id']} in {redacted(self.uri)}, which has another recipe "
                f"({last['recipe_digest'][:12]}, this one is {recipe_digest[:12]}); run again with that one, which "
                f"{RECIPE} holds, or make all rows anew with --fresh"
            )
        if is_other and has_rows and not self.settings.mixed:
            raise OutputError(
                f"{redacted(self.uri)} holds rows of another recipe ({last['recipe_digest'][:12]}, this one is "
                f"{recipe_digest[:12]}); --fresh makes all of them anew, --set output.mixed=true does new files with "
                "this one, and another --output keeps them apart"
            )
        if last["state"] == "finished" or is_other:  # of the one before nothing is left to do, or to go on with
            return Turn(run_id, last["generation"], False, False, retries)
        if retries and not last["retries"]:
            raise OutputError(
                f"run {last['run_id']} in {redacted(self.uri)} is not finished; "
                "run again without --retry-failed, which goes on with it"
            )
        return Turn(last["run_id"], last["generation"], last["replaces"], True, retries)

    def has_rows(self, generation: int) -> bool:
        """Whether a commit was made, or begun, for a generation of the table."""
        return any(intent.generation == generation for intent in self.intents().all())

    def _check_kind(self, last: dict[str, Any]) -> None:
        settings, place = self.settings, redacted(self.uri)
        if last["table"] != settings.table:
            raise OutputError(
                f"{place} holds a {last['table']} table, not a {settings.table} one; give another --output"
            )
        if settings.table == "iceberg" and last["table_name"] != settings.table_name:
            raise OutputError(
                f"the table in {place} is called {last['table_name']}, not {settings.table_name}; give another --output"
            )
        if last["partition_by"] != list(settings.partition_by):
            before, now = (", ".join(names) or "nothing" for names in (last["partition_by"], settings.partition_by))
            raise OutputError(f"the table in {place} is divided by {before}, not by {now}; give another --output")

    def begin(self, run: dict[str, Any], recipe: str) -> None:
        """Write down that a run works here."""
        self.write(RUN, json.dumps(run | self._kind | {"state": "running"}, indent=2))
        self.write(RECIPE, recipe)
        with explained(self.uri, OutputError):
            make_folder(self.store, self.data)

    def finish(self, run: dict[str, Any]) -> None:
        """The run is over, and its rows are in the table."""
        self.write(RUN, json.dumps(run | self._kind | {"state": "finished"}, indent=2))

    def main_run(self) -> str | None:
        """Id of the last run that was more than the carrying out of decisions; None before the first is finished."""
        last = self.run()
        return None if last is None else last.get("main")

    def runs(self) -> list[str]:
        """Ids of the runs that have left a report, oldest first."""
        return names_in(self.store, join(self.root, REPORTS))

    def measured(self, run_id: str) -> dict[str, Any]:
        """What a run has measured that the table does not tell; empty if that is not known."""
        last = self.run()
        if last is not None and last["run_id"] == run_id:
            return dict(last.get("measured", {}))
        return self.summary(run_id)

    def summary(self, run_id: str) -> dict[str, Any]:
        """What a run has left as its `summary.json`; empty if there is none."""
        with explained(self.uri, OutputError):
            try:
                summary = json.loads(self.store.cat_file(join(self.root, f"{REPORTS}/{run_id}/summary.json")))
            except (FileNotFoundError, json.JSONDecodeError):
                return {}
        return dict(summary)

    def tell_attempt(self, run_id: str, told: dict[str, Any]) -> None:
        """Write down what an attempt of a run has done so far, in place of what it told before."""
        self.write(f"{ATTEMPTS}/{run_id}-{told['began'].replace(':', '')}.json", json.dumps(told) + "\n")

    def attempts(self, run_id: str) -> list[dict[str, Any]]:
        """Of a run, all that have told what they did, oldest first."""
        with explained(self.uri, OutputError):
            folder = join(self.root, ATTEMPTS)
            names = [name for name in names_in(self.store, folder) if name.startswith(f"{run_id}-")]
            return [json.loads(self.store.cat_file(join(folder, name))) for name in sorted(names)]

    def keep_estimate(self, told: dict[str, Any]) -> None:
        """Write down what a run is expected to take."""
        self.write(ESTIMATE, json.dumps(told, indent=2) + "\n")

    def estimate(self, recipe_digest: str, device: str) -> dict[str, Any] | None:
        """What was expected of runs with this recipe on such a device; None: nothing."""
        with explained(self.uri, OutputError):
            try:
                told: dict[str, Any] = json.loads(self.store.cat_file(join(self.root, ESTIMATE)))
            except (FileNotFoundError, json.JSONDecodeError):
                return None
        return told if (told.get("recipe_digest"), told.get("device")) == (recipe_digest, device) else None

    @property
    def _kind(self) -> dict[str, Any]:
        settings = self.settings
        return {
            "table": settings.table,
            "table_name": settings.table_name if settings.table == "iceberg" else None,
            "partition_by": list(settings.partition_by),
        }

    def lease(self, run_id: str) -> Lease:
        """The right to write here."""
        return Lease(self.store, join(self.root, "state/lease"), run_id, self.settings.lease_seconds)

    def ledger(self, generation: int) -> Ledger:
        """Of a generation of the table."""
        return Ledger(self.store, join(self.root, f"state/ledger/{generation:04d}"))

    def staging(self, generation: int) -> Staging:
        """Of a generation of the table."""
        return Staging(self.store, self.data, join(self.root, f"state/checkpoint/{generation:04d}"))

    def abandon_others(self, generation: int, table: Table) -> None:
        """Throw away what killed runs have written for other generations of the table, and not committed."""
        is_replaced = self.has_rows(generation)
        for name in names_in(self.store, join(self.root, "state/checkpoint")):
            if not name.isdecimal() or int(name) == generation:
                continue
            staging = self.staging(int(name))
            staging.recover()
            if int(name) < generation and is_replaced:  # their data files belong to the table's history
                staging.forget([staged.name for staged in staging.whole()])
                continue
            taken = {write for intent in self.intents().all() for write in intent.writes}
            left = {staged.name for staged in staging.whole()} - taken
            if left:
                left -= {write_of(path) for path in table.files()}
                staging.discard(left)
                staging.remove_half(left)

    def table(self) -> Table:
        """The table, of the kind that the recipe names.

        Raises:
            OutputError: its library is not installed, or its catalog cannot be reached.
        """
        settings = self.settings
        try:
            if settings.table == "delta":
                from pipeline.lake.delta import DeltaLakeTable

                return DeltaLakeTable(self.store, self.data, settings.storage, settings.partition_by)
            if settings.table == "iceberg":
                from pipeline.lake.iceberg import IcebergTable

                with explained(f"the catalog of {settings.table_name}", OutputError):
                    return IcebergTable(
                        *(self.store, self.data, settings.table_name, settings.catalog, settings.storage),
                        settings.partition_by,
                    )
        except ImportError as error:
            kind = settings.table
            raise OutputError(f"output.table is {kind}, but {error}; pip install '.[{kind}]'") from error
        return ManifestTable(self.store, self.data)

    def scan(self, table: Table, run_id: str | None = None) -> Scan:
        """The rows of the table; only those of one run."""
        paths = sorted(join(self.data, path) for path in table.files())
        if run_id is not None:  # files of other names hold rows of several runs
            paths = [path for path in paths if _name(path).startswith(f"{run_id}_") or not _OURS.match(_name(path))]
        mine = None if run_id is None else pads.field(self.settings.prefix + "run_id") == run_id
        return Scan(self.store, self.data, tuple(paths), table.schema() or pa.schema([]), mine)

    def failed_rows(self, table: Table, kinds: Collection[str] | None) -> list[str]:
        """Keys of the rows of the table that failed with errors of these types; None: of any."""
        prefix = self.settings.prefix
        names = {name: pads.field(prefix + name) for name in ("source_row", "error_type")}
        failed = pads.field(prefix + "status") == "failed"
        rows = self.scan(table).table(names, failed).to_pylist()
        return [row["source_row"] for row in rows if kinds is None or row["error_type"] in kinds]

    def decided_rows(self, table: Table, decided: Mapping[str, Decision]) -> dict[str, str]:
        """Rows of the table that are not yet what persons have decided about their results, by `result_id`.

        Of what was rejected before, the result is not there any more: that cannot be taken back.

        Returns:
            The paths of the data files with them, by the rows' keys.
        """
        prefix = self.settings.prefix
        if not decided or prefix + "result_id" not in (table.schema() or pa.schema([])).names:
            return {}
        names = {name: pads.field(prefix + name) for name in ("source_row", "result_id", "status")}
        unsettled = pads.field(prefix + "status").isin(["review", "restored"])
        found = {}
        for path, rows in self.scan(table).batches(names, unsettled):
            for row, result, status in zip(*(column.to_pylist() for column in rows.columns), strict=True):
                decision = decided.get(result)
                if decision is not None and (status == "review" or not decision.accepted):
                    found[row] = path
        return found

    def lookup(self, table: Table, paths: Collection[str]) -> Lookup:
        """Reads rows of the table by their keys, from these of its data files."""
        prefix = self.settings.prefix
        own = {prefix + field.name: field.type for field in OUTPUT}
        # Without the numbers that Iceberg gives its fields: they do not belong into data files.
        schema = pa.schema([(field.name, own.get(field.name, plain(field.type))) for field in table.schema() or ()])
        return Lookup(Scan(self.store, self.data, tuple(sorted(paths)), schema), prefix + "source_row")

    def decisions(self) -> Decisions:
        """What persons have decided about rows marked `review`."""
        return Decisions(self.store, join(self.root, "reviews"))

    def image_writer(self, generation: int) -> ImageWriter:
        """Writes restored images beside the table."""
        folder = as_uri(self.store, join(self.root, f"images/{generation:04d}"))
        return ImageWriter(folder, resolved(self.settings.storage, "output.storage"))

    def tidy(self, table: Table, generation: int) -> None:
        """Remove what the table does not list any more: data files that were replaced, images of generations before.

        Iceberg and Delta keep them for their history, and remove them by their own means. Nobody may be writing.
        """
        if self.settings.table != "parquet":
            return
        listed = {join(self.data, path) for path in table.files()}
        ours = (path for path in self._data_files() if _OURS.match(_name(path)) or _name(path).startswith(_MADE))
        self.remove([path for path in ours if path not in listed])
        folder = join(self.root, "images")
        with explained(self.uri, OutputError):
            if generation > 1 and self.store.exists(folder):
                old = (path for path in self.store.ls(folder, detail=False) if _name(path) < f"{generation:04d}")
                for path in old:
                    self.store.rm(path, recursive=True)

    def write(self, name: str, text: str) -> None:
        """Write a small file below the output, whole or not at all."""
        with explained(self.uri, OutputError):
            path = join(self.root, name)
            make_folder(self.store, posixpath.dirname(path))
            put(self.store, path, text.encode())

    def remove(self, paths: list[str]) -> None:
        """Remove files."""
        with explained(self.uri, OutputError):
            if paths:
                self.store.rm(paths)

    def _data_files(self) -> list[str]:
        with explained(self.uri, OutputError):
            self.store.invalidate_cache()
            if not self.store.exists(self.data):
                return []
            return [path for path in self.store.find(self.data) if path.endswith(".parquet")]


def _name(path: str) -> str:
    return posixpath.basename(path)


def open_output(uri: str, settings: Settings | None = None) -> Output:
    """The output at a folder or an fsspec URL.

    Raises:
        OutputError: no place is given, or its store cannot be opened.
    """
    if not uri:
        raise OutputError("no output is given: --output PATH_OR_URL")
    try:
        store, root = open_store(uri, settings.storage if settings else None)
    except SourceError as error:
        raise OutputError(error.message) from error
    return Output(uri, store, root.rstrip("/"), settings or Settings())
