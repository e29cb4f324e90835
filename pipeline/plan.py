"""What a run is to do: looked at, and checked, before anything starts. Knows nothing of Ray."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import time
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.errors import ConservatorError, OutputError, RecipeError, SourceError, transient_errors
from pipeline.imaging.signing import Credentials, load_credentials
from pipeline.lake.commits import Exchange
from pipeline.lake.decisions import Reviewed
from pipeline.lake.exchanges import find_exchanges
from pipeline.lake.fetch import UriReader
from pipeline.lake.inputs import ImageFile, ParquetFile, SourceFile
from pipeline.lake.keys import Duplicates, Keys, find_duplicates, name_duplicates, read_keys
from pipeline.lake.ledger import InputFile, State
from pipeline.lake.output import Output, Turn, open_output
from pipeline.lake.places import as_uri, join
from pipeline.lake.search import Search
from pipeline.lake.source import TABLES, Source, format_of, open_source
from pipeline.lake.storage import check_options, for_fsspec, resolved
from pipeline.lake.table import Table, fitted, partitions, storable
from pipeline.quality.gate import Decision
from pipeline.recipe import Recipe, Restoration, Scoring
from pipeline.redaction import redacted
from pipeline.schema import OUTPUT
from pipeline.stages.decode import DecodeStage

log = logging.getLogger(__name__)

Retry = Literal["transient", "all", "reviewed"]
"""Which rows are done again: those that failed with an error that may pass, all that failed, or those that a person has
decided about since they were marked `review`."""


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
    passed: pa.Schema
    """The source's columns that go through, with the types that the table has for them."""
    decisions: dict[str, Decision]
    """What persons have decided about results, by `result_id`."""
    decided_in: frozenset[str] = frozenset()
    """The table's data files with the rows that are only to become what was decided; empty: rows are restored."""
    waiting: int = 0
    """Rows that were decided about, and whose input files are gone or not finished."""
    search: Search | None = None
    """What looks through the rest of the source meanwhile, which is to be planned when this is done."""

    @property
    def decided(self) -> str:
        """SHA-256 over all decisions."""
        said = sorted((result, decision.accepted, decision.said) for result, decision in self.decisions.items())
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()

    def credentials(self) -> Credentials | None:
        """With what its images are signed.

        Raises:
            RecipeError: they cannot be.
        """
        signing = self.recipe.output.signing
        return None if signing is None else load_credentials(signing.certificates, signing.key, signing.algorithm)

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
    def schema(self) -> pa.Schema:
        """Of the table."""
        return _schema(self.passed, self.recipe)

    @property
    def key_column(self) -> str:
        """With the rows' keys, in the table."""
        return self.recipe.output.prefix + "source_row"

    @property
    def columns(self) -> list[str]:
        """The columns of the source that are read: those that go through, and those with images."""
        columns = self.source.columns
        roles = (columns.id, columns.image, columns.caption, columns.mask, columns.references, columns.truth)
        return list(dict.fromkeys([*self.passed.names, *(name for name in roles if name)]))

    def decode_stage(self, root: str, device: str = "cpu") -> DecodeStage:
        """Decodes rows of files below `root`, for a model on `device`."""
        reader = self.reader(root)
        return DecodeStage(self.recipe, self.source.columns, self.passed, reader, reader.open, root, device)

    def reader(self, root: str) -> UriReader:
        """Reads files that rows of files below `root` name."""
        store, limits, source = self.source.store, self.recipe.limits, self.recipe.source
        return UriReader(
            *(as_uri(store, root), source.allowed_uris, int(limits.max_image_mb * 1e6), limits.attempts),
            resolved(source.storage, "source.storage"),
            links=any(isinstance(file, ImageFile) for file in self.source.files[:1]),
        )


def prepare(
    recipe: Recipe,
    fresh: bool = False,
    retry: Retry | None = None,
    found: Callable[[Run], None] | None = None,
    early: bool = False,
) -> Run:
    """Look at source, output and model, and find what is wrong with them before anything starts.

    Args:
        recipe: what to do.
        fresh: make all rows anew, to replace those that the output holds.
        retry: do such rows of the table again, and nothing else.
        found: called when it is known what is to be done, while the model is looked at, which takes seconds.
        early: if the source takes long to look through, plan for its first files alone.

    Raises:
        ConservatorError: one of them cannot be used.
    """
    for options, key in (
        *((recipe.source.storage, "source.storage"), (recipe.output.storage, "output.storage")),
        (recipe.restoration.storage, "restoration.storage"),
        *((recipe.source.catalog, "source.catalog"), (recipe.output.catalog, "output.catalog")),
    ):
        check_options(options, key)
    output = open_output(recipe.output.uri, recipe.output)
    turn = output.turn(_run_id(), recipe.digest(), fresh, retry is not None)
    run = plan(recipe, output, turn, retry, early=early)
    with ThreadPoolExecutor(1, "check") as beside:
        checked = beside.submit(_check_model, run)
        if found is not None:
            found(run)
        checked.result()
    return run


def _check_model(run: Run) -> None:
    """Whether what rows are restored with can be had; imports what takes seconds."""
    if run.source.files and not run.decided_in:
        run.credentials()
        if _comes_along(run.recipe):
            return
        import torch

        from pipeline.quality.appraise import Appraiser
        from pipeline.restoration.loading import check_generator, check_models
        from pipeline.restoration.local import stores_reached

        restoration = run.recipe.restoration
        with stores_reached(stores_of_models(run.recipe)):
            check_models(restoration.models, restoration.text_encoder)
            if restoration.lost == "generate":
                check_generator(restoration.generator)
            Appraiser(run.recipe, torch.device("cpu"))


def _comes_along(recipe: Recipe) -> bool:
    """Whether all that rows are restored with belongs to this package: then there is nothing to look at."""
    restoration, known = recipe.restoration, Restoration()
    return (
        restoration.models == known.models
        and restoration.text_encoder is None
        and restoration.generator == known.generator
        and recipe.scoring == Scoring(truth=recipe.scoring.truth)
        and not recipe.gate.find_text
    )


def stores_of_models(recipe: Recipe) -> Callable[[str], dict[str, Any]]:
    """Options of the stores that models lie in, by their protocol, with the secrets of this process's environment.

    Raises:
        RecipeError: an environment variable that the recipe names is not set.
    """
    options = resolved(recipe.restoration.storage, "restoration.storage")
    return functools.partial(for_fsspec, options=options)


def plan(
    recipe: Recipe,
    output: Output,
    turn: Turn,
    retry: Retry | None = None,
    search: Search | None = None,
    early: bool = False,
    stopped: Callable[[], bool] = bool,
) -> Run:
    """What is to be read of the source, and what takes the place of what.

    Args:
        recipe: what to do.
        output: where.
        turn: what the run is to it.
        retry: as `prepare` takes it.
        search: what looks through the source already.
        early: as `prepare` takes it.
        stopped: asked while the source is looked through.

    Raises:
        ConservatorError: source or output cannot be used.
        Interrupted: `stopped` said so.
    """
    states = output.ledger(turn.generation).states()
    finished = frozenset(file for file, state in states.items() if not state.gone)
    if search is None:
        kind = format_of(recipe.source.uri, recipe.source) if early and _may_begin(recipe, turn, retry) else ""
        if not kind or kind in TABLES:  # of a table all files that are gone must be known
            return _planned(recipe, output, turn, retry, states, finished)
        search = Search(kind, recipe.source.uri, recipe.columns, recipe.source, finished)
    try:
        return _searched(recipe, output, turn, states, finished, search, stopped)
    except BaseException:
        search.close()
        raise


def _searched(
    recipe: Recipe,
    output: Output,
    turn: Turn,
    states: Mapping[InputFile, State],
    finished: frozenset[InputFile],
    search: Search,
    stopped: Callable[[], bool],
) -> Run:
    """The plan for what is known of a source by now, if that is something; else for all of it."""
    said = ""
    while not search.is_over(stopped):
        try:
            source = search.first(finished)
            if source.files:
                run = _planned(recipe, output, turn, None, states, finished, source)
                return dataclasses.replace(run, search=search)
        except ConservatorError as error:  # the rest of the source may be what is missing
            if str(error) != said:
                said = str(error)
                log.info("the source is still being looked through, and its first files are not enough: %s", said)
    return _planned(recipe, output, turn, None, states, finished, search.whole(finished))


def _may_begin(recipe: Recipe, turn: Turn, retry: Retry | None) -> bool:
    """Whether a run can begin with some files of its source: not what must know all, since it replaces the table, goes
    on with what was half done, or does some rows only."""
    is_part = retry is not None or recipe.limits.rows is not None
    return recipe.source.early and not (is_part or turn.replaces or turn.resumed)


def _planned(
    recipe: Recipe,
    output: Output,
    turn: Turn,
    retry: Retry | None,
    states: Mapping[InputFile, State],
    finished: frozenset[InputFile],
    source: Source | None = None,
) -> Run:
    """The plan for a source, or for the files of it that are known; None: for all of it, which is opened now."""
    before = output.run()
    decisions = _decisions(output)
    ledger = output.ledger(turn.generation)
    table = output.table()
    decided = output.decided_rows(table, decisions) if retry == "reviewed" else {}
    again = _again(output, table, retry, finished, decided) if retry else {}
    known = finished if not retry else frozenset(file for file in finished if file.key not in again)
    if source is None:
        source = open_source(recipe.source.uri, recipe.columns, known, recipe.source)
    if retry:
        source = dataclasses.replace(source, files=tuple(file for file in source.files if file.key in again))
    _check_kind(recipe, source, turn, before or {})
    _check_names(recipe, source)
    _check_partitions(recipe, source)
    _keep_apart(source, output)
    last = table.last_commit()
    has_replaced = any(one.generation == turn.generation and one.number <= last for one in output.intents().all())
    passed = _passed(recipe, source, table, turn.replaces and not has_replaced)
    if decided:
        passed = _columns_of(table, recipe)
    if retry:
        wanted = {file.key: _chosen(file, again[file.key]) for file in source.files}
        chosen = sum(int(rows.sum()) for rows in wanted.values())
        return Run(
            *(recipe, source, output, turn, before, {}, wanted, (), None, passed, decisions),
            decided_in=frozenset(decided.values()),
            waiting=len(decided) - chosen,
        )
    _check_half_done(recipe, source, output, turn)
    keys = read_keys(source.store, source.files, source.columns.id, recipe.source.filters, source.keys)
    exchanges = find_exchanges(source, finished | ledger.begun(states))
    wanted = {key: known.wanted for key, known in keys.items() if known.wanted is not None}
    if recipe.limits.rows is not None:
        wanted |= _limited(source, keys, wanted, recipe.limits.rows, exchanges)
    leaving = frozenset(file for exchange in exchanges for file in exchange.old)
    twice = find_duplicates(keys, ledger.ids(finished - leaving))
    duplicates = name_duplicates(source.store, source.files, source.columns.id, twice)
    return Run(recipe, source, output, turn, before, keys, wanted, exchanges, duplicates, passed, decisions)


def _passed(recipe: Recipe, source: Source, table: Table, replaces: bool) -> pa.Schema:
    """The columns that go through, as the table can hold them.

    Raises:
        OutputError: it cannot.
    """
    is_plain = recipe.output.table == "parquet"
    passed = source.passed if is_plain else storable(source.passed)
    known = None if replaces else table.schema()
    if known is not None:  # which may say more of a type than its values, such as Iceberg's field ids
        passed = fitted(passed, known) if is_plain else storable(fitted(passed, known))
    if source.files:
        table.check(_schema(passed, recipe), replaces)
    return passed


def _columns_of(table: Table, recipe: Recipe) -> pa.Schema:
    """The columns of a table that are not ours."""
    own = {recipe.output.prefix + name for name in OUTPUT.names}
    return pa.schema([field for field in table.schema() or () if field.name not in own])


def _schema(passed: pa.Schema, recipe: Recipe) -> pa.Schema:
    prefix = recipe.output.prefix
    return pa.schema([*passed, *(field.with_name(prefix + field.name) for field in OUTPUT)])


def _check_half_done(recipe: Recipe, source: Source, output: Output, turn: Turn) -> None:
    """A file is done by one recipe, also where `--limit` has divided it.

    Raises:
        OutputError: rows of one are in the table that another has made.
    """
    digests = {name: intent.recipe_digest for intent in output.intents().all() for name in intent.writes}
    paths = {file.key: file.path for file in source.files}
    for staged in output.staging(turn.generation).whole() if recipe.output.mixed else ():
        half = [paths[key] for key in staged.rows_by_file if key in paths]
        if half and digests.get(staged.name, recipe.digest()) != recipe.digest():
            raise OutputError(
                f"{redacted(half[0])} is half done with another recipe ({digests[staged.name][:12]}); finish it with "
                "that one first, or make all rows anew with --fresh"
            )


def _check_kind(recipe: Recipe, source: Source, turn: Turn, before: dict[str, Any]) -> None:
    """A run that began with images before all files were known does not go on with Parquet files.

    Raises:
        SourceError: it would.
    """
    began_with_images = before.get("run_id") == turn.run_id and before.get("images")
    if began_with_images and recipe.source.format == "auto" and isinstance(next(iter(source.files), None), ParquetFile):
        raise SourceError(
            "work began with the images of the source, but it holds Parquet files, too, such as "
            f"{redacted(source.files[0].path)}: say which are meant with --set source.format=images or =parquet"
        )


def _check_names(recipe: Recipe, source: Source) -> None:
    """Many readers do not tell upper case from lower, and Delta tables do not take both.

    Raises:
        SourceError: two columns would have one name.
    """
    own = {(recipe.output.prefix + name).casefold() for name in OUTPUT.names}
    names = source.passed.names
    taken = [name for name in names if name.casefold() in own]
    if taken:
        raise SourceError(
            f"the source's columns {', '.join(taken)} have names that the output needs; "
            "give the added columns a prefix: --set output.prefix=restored_"
        )
    folded = Counter(name.casefold() for name in names)
    alike = [name for name in names if folded[name.casefold()] > 1]
    if alike:
        raise SourceError(
            f"the source's columns {', '.join(alike)} differ in their case alone, which many readers ignore; "
            "choose among them with columns.keep"
        )


def _decisions(output: Output) -> dict[str, Decision]:
    def said(one: Reviewed) -> str:
        return f"{one.reviewer} on {one.decided_at:%Y-%m-%d}" + (f" ({one.note})" if one.note else "")

    latest = output.decisions().latest()
    return {result: Decision(one.decision == "accepted", said(one)) for result, one in latest.items()}


def _again(
    output: Output,
    table: Table,
    retry: Retry,
    finished: Collection[InputFile],
    decided: Iterable[str],
) -> dict[str, list[int]]:
    """Numbers of the rows to be done again, by the keys of their files."""
    keys = {file.key for file in finished}
    rows: dict[str, list[int]] = {}
    found = decided
    if retry != "reviewed":
        found = output.failed_rows(table, transient_errors() if retry == "transient" else None)
    for row in found:
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


def _check_partitions(recipe: Recipe, source: Source) -> None:
    """The table can only be divided by columns that it has, of which rows share values.

    Raises:
        RecipeError: one is none of them.
    """
    for name, folder in partitions(recipe.output.partition_by, recipe.output.table) if source.files else ():
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


def _run_id() -> str:
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()) + "-" + uuid.uuid4().hex[:6]
