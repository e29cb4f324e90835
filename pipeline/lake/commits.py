"""Commits: what is whole and not yet in the table is added to it in one numbered step.

First the list of files is written down under the number (`put_new`, so that no other run can take it), then the table
is changed, then the ledger. A crash in between leaves a list that the next run finishes: the table knows which numbers
it has seen.

Where rows take the place of others (a file has changed, a failed row was tried again), these go in the same step. The
rows of a file that has changed come in together, however long that takes.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import RunError
from pipeline.lake.intents import Intent, Intents, written
from pipeline.lake.lease import Lease
from pipeline.lake.ledger import Entry, InputFile, Ledger, State
from pipeline.lake.staging import Staged, Staging
from pipeline.lake.table import KEY_DIGITS, Table

log = logging.getLogger(__name__)

SETTLE = 30.0
"""Seconds from a write until it is committed, at least, while the run goes on."""


class Input(NamedTuple):
    """An input file of a run."""

    file: InputFile
    rows: int
    """How many of its rows come out."""
    ids: bytes = b""
    """Of these, 8 bytes each."""


class Exchange(NamedTuple):
    """Input files whose rows come in together, as those of others go."""

    new: frozenset[str]
    """Keys of files that the run reads."""
    old: frozenset[InputFile]


class Committer:
    """Commits for one run; may be called at any moment, from any thread."""

    def __init__(
        self,
        table: Table,
        intents: Intents,
        staging: Staging,
        ledger: Ledger,
        lease: Lease,
        *,
        schema: pa.Schema,
        key_column: str,
        run_id: str,
        recipe_digest: str,
        inputs: Mapping[str, Input],
        exchanges: Sequence[Exchange] = (),
    ) -> None:
        """What a run reads is in `inputs`, by the files' keys; `key_column` of the table holds the rows' keys."""
        self._table, self._intents, self._staging, self._ledger = table, intents, staging, ledger
        self._lease, self._schema, self._key_column = lease, schema, key_column
        self._run_id, self._recipe_digest, self._inputs = run_id, recipe_digest, inputs
        self._exchanges = list(exchanges)
        self._lock = threading.Lock()
        self._states: dict[InputFile, State] = {}
        self._before: frozenset[str] = frozenset()
        self._recorded: set[str] = set()
        self._is_recovering = True
        self._exchanged: set[InputFile] = set()
        self.rows = 0
        """How many were committed."""

    @property
    def finished(self) -> frozenset[str]:
        """Keys of the run's input files whose rows are all in the table."""
        return frozenset(self._recorded)

    @property
    def uncommitted(self) -> int:
        """Rows that are done and not yet in the table."""
        return sum(len(staged.keys) for staged in self._uncommitted())

    def recover(self) -> bool:
        """Finish what a killed run had begun, and throw away what it made of files that have changed since.

        Returns:
            Whether the ledger has changed: what was planned before is out of date then.
        """
        with self._lock:
            self._staging.recover()
            self._states = self._ledger.states()
            self._before = frozenset(file.key for file, state in self._states.items() if not state.gone)
            has_changed = self._finish()
            self._table.refresh()
            old = {file.key for exchange in self._exchanges for file in exchange.old}
            stale = [staged.name for staged in self._uncommitted() if old & set(staged.rows_by_file)]
            self._staging.discard(stale)
            self._staging.remove_half(stale)
            self._drop_doubled()
            self._is_recovering = False
            return has_changed

    def look(self) -> frozenset[str]:
        """Names of the writes that are whole and not yet in the table."""
        with self._lock:
            return frozenset(staged.name for staged in self._uncommitted())

    def commit(self, replace: bool = False, among: frozenset[str] | None = None) -> int:
        """Add what is whole and not yet in the table; returns how many rows that were.

        Args:
            replace: it takes the place of all that the table holds.
            among: only these writes.

        Raises:
            RunError: the lease was lost, or a row was written twice.
            OutputError: the table cannot take the files.
        """
        with self._lock:
            self._finish()
            before = self.rows
            self._drop_doubled()
            plain, exchanging, exchanges = self._ready(among)
            is_first = among is None and self._table.last_commit() == 0  # readers want a table even of no rows
            if plain or replace or is_first:
                self._make(plain, replace)
            if exchanging or exchanges:
                rows = [key for staged in exchanging for key in self._again(staged)]
                self._make(exchanging, False, rows, [file for exchange in exchanges for file in exchange.old])
            self._record()
            return self.rows - before

    def _drop_doubled(self) -> None:
        """Throw away writes of rows that others have written too: of a task that outlived the run before this."""
        doubled = self._staging.doubled({name for intent in self._intents.all() for name in intent.writes})
        if doubled:
            log.warning("%d writes hold rows that others hold too, and are thrown away", len(doubled))
            self._staging.discard(doubled)
            self._staging.remove_half(doubled)

    def _ready(self, among: frozenset[str] | None) -> tuple[list[Staged], list[Staged], list[Exchange]]:
        """Writes that only add; those whose rows take the place of others; and the exchanges that are complete."""
        writes = [staged for staged in self._uncommitted() if among is None or staged.name in among]
        done: Counter[str] = Counter()
        taken = {staged.name for staged in self._uncommitted()} - {staged.name for staged in writes}
        for staged in self._staging.whole():
            if staged.name not in taken:
                done.update(staged.rows_by_file)
        open_ = [exchange for exchange in self._exchanges if not exchange.old <= self._exchanged]
        exchanges = [
            exchange
            for exchange in open_
            if all(key in self._recorded or done[key] == self._inputs[key].rows for key in exchange.new)
        ]
        while True:  # a write that must wait keeps back the others of its files
            waiting = {key for exchange in open_ if exchange not in exchanges for key in exchange.new}
            held = {key for staged in writes if waiting & set(staged.rows_by_file) for key in staged.rows_by_file}
            kept_back = [exchange for exchange in exchanges if exchange.new & held]
            if not kept_back:
                break
            exchanges = [exchange for exchange in exchanges if exchange not in kept_back]
        writes = [staged for staged in writes if not waiting & set(staged.rows_by_file)]
        special = self._before.union(*(exchange.new for exchange in exchanges))
        exchanging = {staged.name: staged for staged in writes if special & set(staged.rows_by_file)}
        plain = [staged for staged in writes if staged.name not in exchanging]
        return plain, list(exchanging.values()), exchanges

    def _again(self, staged: Staged) -> Iterable[str]:
        """Keys of rows whose file was finished before: they were tried again."""
        owners = pc.utf8_slice_codeunits(staged.keys, 0, KEY_DIGITS)
        keys: list[str] = staged.keys.filter(pc.is_in(owners, pa.array(sorted(self._before), owners.type))).to_pylist()
        return keys

    def _make(
        self, writes: Sequence[Staged], replace: bool, rows: Sequence[str] = (), files: Sequence[InputFile] = ()
    ) -> None:
        names = sorted(staged.name for staged in writes)
        number = max([self._table.last_commit(), *(intent.number for intent in self._intents.all())]) + 1
        intent = Intent(
            *(number, self._run_id, self._recipe_digest, written(self._schema), replace, tuple(names)),
            *(tuple(self._staging.data_files(names)), tuple(rows), tuple(files)),
        )
        self._lease.check()
        self._intents.add(intent)
        self._finish()
        self._exchanged.update(files)
        self.rows += sum(file.rows for file in intent.files)

    def _finish(self) -> bool:
        """Carry out intents that the table has not seen, and enter all of them in the ledger."""
        for intent in self._intents.all():
            if intent.number > self._table.last_commit():
                removal = intent.removal(self._key_column)
                self._table.commit(intent.files, intent.schema, intent.commit, intent.replace, removal)
                log.info("commit %d of run %s: %d files", intent.number, intent.run_id, len(intent.files))
        return self._record()

    def _record(self) -> bool:
        """Write finished input files into the ledger, and forget what tells of their rows; whether there were any."""
        intents, staged = self._intents.all(), self._staging.whole()
        last = intents[-1].number if intents else 0
        committed = {name for intent in intents for name in intent.writes}
        counts: Counter[str] = Counter()
        for write in staged:
            if write.name in committed:
                counts.update(write.rows_by_file)
        twice = [read.file.path for key, read in self._inputs.items() if counts[key] > read.rows]
        if twice:
            raise RunError(f"rows of {', '.join(twice[:5])} were written twice; the table is not right")
        empty = set() if self._is_recovering else {key for key, read in self._inputs.items() if not read.rows}
        whole = {key for key, count in counts.items() if key in self._inputs and count == self._inputs[key].rows}
        finished = (whole | empty) - self._recorded
        gone = {
            file: intent
            for intent in intents
            for file in intent.gone_files
            if file not in self._states or self._states[file].commit < intent.number
        }
        self._ledger.add(
            [
                *(
                    Entry(file, 0, intent.run_id, intent.number, intent.recipe_digest, gone=True)
                    for file, intent in gone.items()
                ),
                *(
                    Entry(read.file, read.rows, self._run_id, last, self._recipe_digest, read.ids)
                    for read in map(self._inputs.__getitem__, sorted(finished))
                ),
            ]
        )
        self._states |= {file: State(intent.number, True) for file, intent in gone.items()}
        self._recorded |= finished
        left_table = {file.key for file, state in self._states.items() if state.gone} - set(self._inputs)
        settled = self._recorded | self._before | left_table
        over = [write.name for write in staged if write.name in committed and set(write.rows_by_file) <= settled]
        self._staging.forget(over)
        left = {write.name for write in staged} - set(over)
        for intent in intents:
            if intent.number != last and not left.intersection(intent.writes):
                self._intents.forget(intent)
        return bool(finished or gone)

    def _uncommitted(self) -> list[Staged]:
        taken = {name for intent in self._intents.all() for name in intent.writes}
        return [staged for staged in self._staging.whole() if staged.name not in taken]


class Interval:
    """Commits at intervals while its block runs.

    What was just written waits a little: Ray may not know yet that it is done, and write it once more if a machine is
    lost at that moment.
    """

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
        assert self._seconds is not None
        pause = min(SETTLE, self._seconds / 2)
        while not self._stop.wait(self._seconds - pause):
            try:
                seen = self._committer.look()
                if self._stop.wait(pause):
                    return
                self._committer.commit(among=seen)
            except Exception as error:  # the last commit tries again, and says what is wrong
                log.warning("a commit failed: %s: %s", type(error).__name__, error)
