"""Commits: what is whole and not yet in the table is added to it in one numbered step.

First the list of files is written down under the number (`put_new`, so that no other run can take it), then the table
is changed, then the ledger. A crash in between leaves a list that the next run finishes: the table knows which numbers
it has seen.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import posixpath
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import fsspec
import pyarrow as pa

from pipeline.errors import OutputError, RunError
from pipeline.lake.ids import hashed
from pipeline.lake.lease import Lease
from pipeline.lake.ledger import Entry, InputFile, Ledger
from pipeline.lake.places import join, make_folder, put_new
from pipeline.lake.staging import Staging
from pipeline.lake.table import Commit, DataFile, Table

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Intent:
    """What a commit adds, written down before it does."""

    number: int
    run_id: str
    recipe_digest: str
    replace: bool
    writes: tuple[str, ...]
    """Names in the checkpoint."""
    files: tuple[DataFile, ...]

    @property
    def commit(self) -> Commit:
        """For the table."""
        return Commit(self.number, self.run_id, self.recipe_digest)

    def to_json(self) -> bytes:
        """As a file."""
        return json.dumps(dataclasses.asdict(self), indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Intent:
        """The inverse."""
        content: dict[str, Any] = json.loads(data)
        files = tuple(DataFile(**file) for file in content.pop("files"))
        return cls(**content | {"files": files, "writes": tuple(content["writes"])})


class Input(NamedTuple):
    """An input file of a run."""

    file: InputFile
    rows: int
    ids: Sequence[str] = ()
    """Of its rows."""


class Committer:
    """Commits for one run; may be called at any moment, from any thread."""

    def __init__(
        self,
        store: fsspec.AbstractFileSystem,
        folder: str,
        table: Table,
        staging: Staging,
        ledger: Ledger,
        lease: Lease,
        schema: pa.Schema,
        run_id: str,
        recipe_digest: str,
        inputs: Mapping[str, Input],
    ) -> None:
        """`folder` is that of the intents; `inputs` what the run reads, by the files' keys."""
        self._store, self._folder, self._table, self._staging = store, folder, table, staging
        self._ledger, self._lease, self._schema = ledger, lease, schema
        self._run_id, self._recipe_digest, self._inputs = run_id, recipe_digest, inputs
        self._lock = threading.Lock()
        self._recorded: set[str] = set()
        self._others: set[str] = set()

    @property
    def finished(self) -> frozenset[str]:
        """Keys of the run's input files whose rows are all in the table."""
        return frozenset(self._recorded)

    def recover(self) -> None:
        """Finish the commit that a killed run had begun; what is left to be done is known after that only."""
        with self._lock:
            for number in self._numbers():
                intent = self._read(number)
                if intent.number > self._table.last_commit():
                    log.info("commit %d of run %s is finished", intent.number, intent.run_id)
                    self._table.commit(intent.files, self._schema, intent.commit, intent.replace)
            self._table.refresh()
            self._record()

    def commit(self, replace: bool = False) -> int:
        """Add what is whole and not yet in the table; returns how many rows that were.

        Args:
            replace: it takes the place of all that the table holds.

        Raises:
            RunError: the lease was lost, or a row was written twice.
            OutputError: the table cannot take the files.
        """
        with self._lock:
            taken = {name for number in self._numbers() for name in self._read(number).writes}
            new = [staged for staged in self._staging.whole() if staged.name not in taken]
            if not new and not replace:
                self._record()
                return 0
            names = sorted(staged.name for staged in new)
            files = self._staging.data_files(names)
            number = max([self._table.last_commit(), *self._numbers()]) + 1
            intent = Intent(number, self._run_id, self._recipe_digest, replace, tuple(names), tuple(files))
            self._lease.check()
            make_folder(self._store, self._folder)
            if not put_new(self._store, self._path(number), intent.to_json()):
                raise OutputError(f"commit {number} was taken by another run: two runs write to one output")
            self._table.commit(files, self._schema, intent.commit, replace)
            self._record()
            return sum(file.rows for file in files)

    def _record(self) -> None:
        """Write finished input files into the ledger, and forget what tells of their rows."""
        staged = self._staging.whole()
        numbers = self._numbers()
        intents = {number: self._read(number) for number in numbers}
        committed = {name for intent in intents.values() for name in intent.writes}
        counts: Counter[str] = Counter()
        for write in staged:
            if write.name in committed:
                counts.update(write.rows_by_file)
        self._settle(set(counts) - set(self._inputs) - self._others)
        twice = [read.file.path for key, read in self._inputs.items() if counts[key] > read.rows]
        if twice:
            raise RunError(f"rows of {', '.join(twice[:5])} were written twice; the table is not right")
        finished = {key for key, read in self._inputs.items() if counts[key] == read.rows}
        last = numbers[-1] if numbers else 0
        self._ledger.add(
            Entry(read.file, read.rows, self._run_id, last, self._recipe_digest, hashed(read.ids).tobytes())
            for read in map(self._inputs.__getitem__, sorted(finished - self._recorded))
        )
        self._recorded |= finished
        settled = self._recorded | self._others
        over = [write.name for write in staged if write.name in committed and set(write.rows_by_file) <= settled]
        self._staging.forget(over)
        left = {write.name for write in staged} - set(over)
        for number, intent in intents.items():
            if number != last and not left.intersection(intent.writes):
                self._store.rm_file(self._path(number))

    def _settle(self, unknown: set[str]) -> None:
        """Rows of files that this run does not read: finished ones, or such as the source does not hold any more."""
        if unknown:
            gone = unknown - {file.key for file in self._ledger.finished()}
            if gone:
                log.warning(
                    "%d input files have changed or gone since a run began with them; their rows that were done stay "
                    "in the table (source_row begins with %s)",
                    *(len(gone), ", ".join(sorted(gone)[:5])),
                )
            self._others |= unknown

    def _numbers(self) -> list[int]:
        self._store.invalidate_cache()
        if not self._store.exists(self._folder):
            return []
        names = (posixpath.basename(path) for path in self._store.ls(self._folder, detail=False))
        return sorted(int(name[:-5]) for name in names if name.endswith(".json") and not name.startswith("."))

    def _path(self, number: int) -> str:
        return join(self._folder, f"{number:08d}.json")

    def _read(self, number: int) -> Intent:
        return Intent.from_json(self._store.cat_file(self._path(number)))


class Interval:
    """Commits at intervals while its block runs."""

    def __init__(self, committer: Committer, seconds: float | None) -> None:
        """`seconds` between commits; None: none before the end."""
        self._committer, self._seconds = committer, seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="commits", daemon=True)

    def __enter__(self) -> Interval:
        if self._seconds is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._seconds is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._seconds):
            try:
                rows = self._committer.commit()
            except Exception as error:  # the last commit tries again, and says what is wrong
                log.warning("a commit failed: %s: %s", type(error).__name__, error)
            else:
                log.info("committed %d rows", rows)
