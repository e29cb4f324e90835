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
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import OutputError, RunError
from pipeline.lake.intents import Intent, Intents
from pipeline.lake.lease import Lease
from pipeline.lake.ledger import Entry, InputFile, Ledger, State
from pipeline.lake.staging import Staged, Staging, write_of
from pipeline.lake.table import KEY_DIGITS, Table, schema_text

log = logging.getLogger(__name__)


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
        generation: int = 1,
    ) -> None:
        """What a run reads is in `inputs`, by the files' keys; `key_column` of the table holds the rows' keys.

        What was begun in an earlier `generation` of the table is not finished: this one replaces it.
        """
        self._table, self._intents, self._staging, self._ledger = table, intents, staging, ledger
        self._lease, self._schema, self._key_column = lease, schema, key_column
        self._run_id, self._recipe_digest, self._inputs = run_id, recipe_digest, inputs
        self._exchanges, self._generation = list(exchanges), generation
        self._lock = threading.Lock()
        self._states: dict[InputFile, State] = {}
        self._before: frozenset[str] = frozenset()
        self._recorded: set[str] = set()
        self._is_recovering = True
        self._mine: dict[int, Intent] = {}
        self._made: set[int] = set()

    @property
    def rows(self) -> int:
        """How many were committed."""
        return sum(file.rows for intent in self._made_here() for file in intent.files)

    @property
    def finished(self) -> frozenset[str]:
        """Keys of the run's input files whose rows are all in the table."""
        return frozenset(self._recorded)

    @property
    def uncommitted(self) -> int:
        """Rows that are done and not yet in the table."""
        return sum(len(staged.keys) for staged in self._uncommitted())

    def done(self) -> dict[str, list[int]]:
        """Numbers of the rows that are not to be read any more, by their file's key.

        Of files whose failed rows alone are tried again, those in the table are not done.
        """
        done: dict[str, list[int]] = {}
        for _, keys in self._valid():
            for row in keys.to_pylist():
                done.setdefault(row[:KEY_DIGITS], []).append(int(row[KEY_DIGITS + 1 :]))
        return done

    def recover(self) -> bool:
        """Finish what a killed run had begun, and throw away what it made of files that have changed since.

        Returns:
            Whether the ledger has changed: what was planned before is out of date then.

        Raises:
            RunError: the lease was lost.
            OutputError: the table is not the one to which the last commits were made.
        """
        with self._lock:
            self._lease.check()
            self._check_table()
            self._staging.recover()
            self._states = self._ledger.states()
            self._before = frozenset(file.key for file, state in self._states.items() if not state.gone)
            has_changed = self._finish()
            self._table.refresh()
            self._forget_listed()
            self._throw_away(self._stale() | self._staging.short(staged.name for staged in self._uncommitted()))
            self._drop_doubled()
            self._is_recovering = False
            return has_changed

    def commit(self, is_last: bool = False) -> int:
        """Add what is whole and not yet in the table; returns how many rows that were.

        Args:
            is_last: there is a table then, even of no rows.

        Raises:
            RunError: the lease was lost, or a row was written twice.
            OutputError: the table cannot take the files.
        """
        with self._lock:
            before = self.rows
            self._begin()
            self._add(is_last and self._table.last_commit() == 0)
            return self.rows - before

    def replace(self, rows: int) -> None:
        """The only commit of a run that makes all rows anew: they take the place of all that the table holds.

        Args:
            rows: how many they are.

        Raises:
            RunError: as `commit`, or not all of them are there.
            OutputError: as `commit`.
        """
        with self._lock:
            self._begin()
            if self._own():
                self._add()  # it is done, for the newest intent stays; the rest came later
                return
            if self.uncommitted != rows:
                raise RunError(f"{rows} rows went in and {self.uncommitted} came out; nothing was replaced: run again")
            self._make(self._uncommitted(), True, (), [file for exchange in self._exchanges for file in exchange.old])
            self._record()

    def _begin(self) -> None:
        self._lease.check()
        self._finish()
        self._drop_doubled()

    def _add(self, even_nothing: bool = False) -> None:
        plain, exchanging, exchanges = self._ready()
        if plain or even_nothing:
            self._make(plain, False)
        if exchanging or exchanges:
            rows = [key for staged in exchanging for key in self._again(staged)]
            self._make(exchanging, False, rows, [file for exchange in exchanges for file in exchange.old])
        self._record()

    def _check_table(self) -> None:
        last = self._table.last_commit()
        for intent in self._own():
            if intent.after > last:
                raise OutputError(
                    f"the table knows of {last} commits, but {intent.after} were made: it was removed, renamed or set "
                    "back to an earlier state; put it back, or make it anew with --fresh"
                )

    def _stale(self) -> set[str]:
        """Writes with rows of a state of a file whose place another has taken or takes, or that nobody knows."""
        old = {file.key for exchange in self._exchanges for file in exchange.old}
        begun = {file.key: file.path for file in self._ledger.begun(self._states)}
        known = {file.path for file, state in self._states.items() if not state.gone}

        def is_stale(key: str) -> bool:
            is_other = key not in self._inputs and key not in self._before
            return key in old or (is_other and (key not in begun or begun[key] in known))

        return {staged.name for staged in self._uncommitted() if any(map(is_stale, staged.rows_by_file))}

    def _forget_listed(self) -> None:
        """Forget what seems to be uncommitted, but is in the table: a worker's belated request may bring it back."""
        again = {staged.name for staged in self._uncommitted() if self._before.intersection(staged.rows_by_file)}
        if again:
            self._staging.forget(again & self._listed())

    def _drop_doubled(self) -> None:
        """Throw away writes of rows that others hold too: of a task that was repeated, or outlived its run."""
        doubled = self._doubled()
        late = {staged.name for staged in self._uncommitted() if self._recorded.intersection(staged.rows_by_file)}
        if doubled | late:
            log.warning("%d writes hold rows that others hold too, and are thrown away", len(doubled | late))
            self._throw_away(doubled | late)

    def _doubled(self) -> set[str]:
        """Names of the uncommitted writes with rows that others hold, too."""
        committed = self._numbers()
        writes = sorted(self._valid(), key=lambda write: (write[0] not in committed, write[0]))
        every = pa.chunked_array([chunk for _, keys in writes for chunk in keys.chunks], pa.string())
        if len(pc.unique(every)) == len(every):
            return set()
        seen: set[str] = set()
        doubled = set()
        for name, keys in writes:
            rows = set(keys.to_pylist())
            if rows & seen and name not in committed:
                doubled.add(name)
            else:
                seen |= rows
        return doubled

    def _throw_away(self, names: set[str]) -> None:
        if names:
            self._lease.confirm()
            listed = names & self._listed()
            self._staging.forget(listed)
            self._staging.discard(names - listed)
            self._staging.remove_half(names - listed)

    def _listed(self) -> set[str]:
        """Names of the writes whose data files the table lists."""
        return {write_of(path) for path in self._table.files()}

    def _ready(self) -> tuple[list[Staged], list[Staged], list[Exchange]]:
        """Writes that only add; those whose rows take the place of others; and the exchanges that are complete."""
        writes, done = self._uncommitted(), self._counts()
        open_ = self._open()
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

    def _open(self) -> list[Exchange]:
        """Exchanges that are still to be made."""
        made = {file for intent in self._made_here() for file in intent.gone_files}
        return [exchange for exchange in self._exchanges if not exchange.old <= made]

    def _again(self, staged: Staged) -> Iterable[str]:
        """Keys of rows whose file was finished before: they were tried again."""
        owners = pc.utf8_slice_codeunits(staged.keys, 0, KEY_DIGITS)
        keys: list[str] = staged.keys.filter(pc.is_in(owners, pa.array(sorted(self._before), owners.type))).to_pylist()
        return keys

    def _make(
        self, writes: Sequence[Staged], replace: bool, rows: Sequence[str] = (), files: Sequence[InputFile] = ()
    ) -> None:
        self._table.check(self._schema, replace)
        names = sorted(staged.name for staged in writes)
        last = self._table.last_commit()
        number = max([last, *(intent.number for intent in self._intents.all())]) + 1
        intent = Intent(
            *(number, self._generation, last, self._run_id, self._recipe_digest, schema_text(self._schema), replace),
            *(tuple(names), tuple(self._staging.data_files(names)), tuple(rows), tuple(files)),
        )
        self._lease.confirm()
        self._mine[number] = intent  # should the store take it and its answer get lost, it is ours
        self._intents.add(intent)
        self._finish()

    def _finish(self) -> bool:
        """Carry out intents that the table has not seen, and enter all of them in the ledger."""
        for intent in self._own():
            if intent.number > self._table.last_commit():
                self._lease.check()
                removal = intent.removal(self._key_column)
                self._table.commit(intent.files, intent.schema, intent.commit, intent.replace, removal)
                log.info("commit %d of run %s: %d files", intent.number, intent.run_id, len(intent.files))
            elif intent == self._mine.get(intent.number) and intent.number not in self._made:
                self._table.refresh()  # it failed after the table had changed
            self._made.add(intent.number)
        return self._record()

    def _made_here(self) -> list[Intent]:
        """The intents that this committer has written down and carried out."""
        return [intent for number, intent in self._mine.items() if number in self._made]

    def _record(self) -> bool:
        """Write finished input files into the ledger, and forget what tells of their rows; whether there were any."""
        intents, staged, numbers = self._own(), self._staging.whole(), self._numbers()
        counts = self._counts(numbers)
        twice = [read.file.path for key, read in self._inputs.items() if counts[key] > read.rows]
        if twice:
            raise RunError(f"rows of {', '.join(twice[:5])} were written twice; the table is not right")
        waiting = {key for exchange in self._open() for key in exchange.new}
        empty = {key for key, read in self._inputs.items() if not read.rows} - waiting
        whole = {key for key, count in counts.items() if key in self._inputs and count == self._inputs[key].rows}
        # Those of no rows wait for a first commit: until then nothing ties the ledger to this recipe.
        finished = (whole | empty if intents and not self._is_recovering else whole) - self._recorded
        last = intents[-1].number if intents else 0
        gone = {
            file: intent
            for intent in intents
            for file in intent.gone_files
            if file not in self._states or self._states[file].commit < intent.number
        }
        if finished or gone:
            self._lease.check()
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
        over = [write.name for write in staged if write.name in numbers and set(write.rows_by_file) <= settled]
        self._staging.forget(over)
        left = {write.name for write in staged} - set(over)
        for intent in self._intents.all()[:-1]:  # the last keeps the number
            is_over = intent.generation == self._generation or intents  # those before, once they are replaced
            if is_over and not left.intersection(intent.writes):
                self._intents.forget(intent)
        return bool(finished or gone)

    def _valid(self, among: Collection[str] | None = None) -> Iterator[tuple[str, pa.ChunkedArray]]:
        """The writes, with the keys of those of their rows that count; `among`: only these writes.

        What is in a commit counts as long as its file is read by this run, and its rows have not left the table since.
        """
        numbers = self._numbers()
        gone = {file.key: state.commit for file, state in self._states.items() if state.gone}
        for intent in self._own():
            gone |= {file.key: max(intent.number, gone.get(file.key, 0)) for file in intent.gone_files}
        for staged in self._staging.whole():
            if among is not None and staged.name not in among:
                continue
            number, files = numbers.get(staged.name), staged.rows_by_file
            count = [key for key in files if number is None or (key in self._inputs and gone.get(key, 0) < number)]
            if len(count) == len(files):
                yield staged.name, staged.keys
            elif count:
                owners = pc.utf8_slice_codeunits(staged.keys, 0, KEY_DIGITS)
                yield staged.name, staged.keys.filter(pc.is_in(owners, pa.array(count, owners.type)))

    def _counts(self, among: Collection[str] | None = None) -> Counter[str]:
        """How many rows of each input file count; `among`: in these writes."""
        counts: Counter[str] = Counter()
        for name, keys in self._valid(among):
            counts.update(Staged(name, keys).rows_by_file)
        return counts

    def _own(self) -> list[Intent]:
        """The intents of this generation of the table."""
        return [intent for intent in self._intents.all() if intent.generation == self._generation]

    def _numbers(self) -> dict[str, int]:
        """The commits of all writes that are in one."""
        return {name: intent.number for intent in self._intents.all() for name in intent.writes}

    def _uncommitted(self) -> list[Staged]:
        taken = self._numbers()
        return [staged for staged in self._staging.whole() if staged.name not in taken]
