"""Commits under crashes: a writer that keeps Ray's protocol is killed at every single operation of the store."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import OutputError, RunError
from pipeline.lake.commits import Committer, Exchange, Input
from pipeline.lake.intents import Intents
from pipeline.lake.lease import Lease
from pipeline.lake.ledger import InputFile, Ledger
from pipeline.lake.manifest import ManifestTable
from pipeline.lake.staging import PENDING, Staging
from pipeline.lake.table import Table

INPUTS = [InputFile(f"in/{name}.parquet", 1, "v1") for name in "abc"]
CHANGED = InputFile("in/a.parquet", 1, "v2")
EMPTIED = InputFile("in/a.parquet", 1, "v3")
ROWS = {INPUTS[0].key: 5, INPUTS[1].key: 0, INPUTS[2].key: 4, CHANGED.key: 3, EMPTIED.key: 0}
SCHEMA = pa.schema([("source_row", pa.string()), ("writer", pa.string())])


class Killed(BaseException):
    pass


class Mortal(LocalFileSystem):  # type: ignore[misc]
    """A local store that dies at one of its changing operations, before or after it was done."""

    cachable = False

    def __init__(self, at: int = -1, **options: Any) -> None:
        super().__init__(**options)
        self.left = at

    def live(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed


@pytest.fixture(autouse=True)
def every_change_may_be_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """`put`, `put_new` and removals of the modules under test ask the store whether it still lives."""
    import pipeline.lake.intents as intents
    import pipeline.lake.ledger as ledger
    import pipeline.lake.manifest as manifest
    import pipeline.lake.staging as staging

    for module, name in (
        *((intents, "put_new"), (ledger, "put"), (staging, "put")),
        *((manifest, "put"), (manifest, "put_new"), (manifest, "rewrite")),
    ):
        original = getattr(module, name)

        def dying(store: Any, *arguments: Any, original: Any = original) -> Any:
            store.live()
            done = original(store, *arguments)
            store.live()
            return done

        monkeypatch.setattr(module, name, dying)
    for name in ("rm", "rm_file"):
        removal = getattr(LocalFileSystem, name)

        def dying_removal(store: Any, paths: Any, *rest: Any, removal: Any = removal) -> Any:
            if isinstance(store, Mortal):
                for path in [paths] if isinstance(paths, str) else list(paths):
                    store.live()
                    LocalFileSystem.rm_file(fsspec.filesystem("file"), path)
                store.live()
                return None
            return removal(store, paths, *rest)

        monkeypatch.setattr(Mortal, name, dying_removal, raising=False)


def keys(files: Sequence[InputFile] = INPUTS) -> list[str]:
    return [f"{file.key}-{row}" for file in files for row in range(ROWS[file.key])]


class Job:
    """One process of a run: reads what is not done, writes as Ray's sink does, commits in between."""

    def __init__(self, root: Path, at: int = -1, generation: int = 1) -> None:
        self.store = Mortal(at)
        self.root, self.generation = root, generation
        self.checkpoint = root / f"state/checkpoint/{generation}"
        (root / "data").mkdir(parents=True, exist_ok=True)
        self.staging = Staging(self.store, str(root / "data"), str(self.checkpoint))
        self.table: Table = ManifestTable(self.store, str(root / "data"))
        self.ledger = Ledger(self.store, str(root / f"state/ledger/{generation}"))

    def run(self, name: str, files: Sequence[InputFile] = INPUTS, again: Sequence[str] = ()) -> None:
        """`again`: rows of finished files that are done once more."""
        lease = Lease(fsspec.filesystem("file"), str(self.root / "state/lease"), name)
        with lease:
            committer, inputs = self.plan(files, lease)
            if committer.recover():
                committer, inputs = self.plan(files, lease)
                assert not committer.recover()
            self.ledger.begin((read.file for read in inputs.values()), self.table.last_commit())
            done = {f"{key}-{row}" for key, rows in committer.done().items() for row in rows}
            left = [key for key in keys([read.file for read in inputs.values()]) if key not in done]
            left += [key for key in again if key not in done]
            expected = committer.uncommitted + len(left)
            for number, start in enumerate(range(0, len(left), 2)):
                self.write(f"run_{name}_{number:06d}", left[start : start + 2])
                if number % 2 and self.generation == 1:
                    committer.commit()
            if self.generation == 1:
                committer.commit(is_last=True)
            else:
                committer.replace(expected)
            assert committer.rows == expected
            assert committer.finished == set(inputs)
            self.ledger.forget_begun(self.ledger.states())

    def plan(self, files: Sequence[InputFile], lease: Lease) -> tuple[Committer, dict[str, Input]]:
        states = self.ledger.states()
        finished = {file for file, state in states.items() if not state.gone}
        inputs = {file.key: Input(file, ROWS[file.key]) for file in files if file not in finished}
        known = finished | self.ledger.begun(states)
        exchanges = []
        for read in inputs.values():
            old = {file for file in known if file.path == read.file.path and file != read.file}
            exchanges += [Exchange(frozenset([read.file.key]), frozenset(old))] if old else []
        committer = Committer(
            *(self.table, Intents(self.store, str(self.root / "state/commits")), self.staging, self.ledger, lease),
            schema=SCHEMA,
            key_column="source_row",
            run_id="run",
            recipe_digest="digest",
            inputs=inputs,
            exchanges=exchanges,
            generation=self.generation,
        )
        return committer, inputs

    def write(self, name: str, rows: list[str]) -> None:
        """As ray.data writes with a checkpoint: pending, data, move."""
        folder = self.checkpoint
        content = pa.table({"source_row": rows, "writer": [name.split("_")[1]] * len(rows)})
        self.store.live()
        pq.write_table(content.select(["source_row"]), folder / f"{name}{PENDING}")
        self.store.live()
        pq.write_table(content, self.root / f"data/{name}-0.parquet")
        self.store.live()
        pq.write_table(pa.table({"source_row": rows}), folder / f"{name}.parquet")  # a move on object stores is a copy
        self.store.live()
        (folder / f"{name}{PENDING}").unlink()
        self.store.live()


def listed(root: Path) -> list[str]:
    """The data files that a reader of the table finds."""
    return (root / "data/_symlink_format_manifest/manifest").read_text().split()


def rows_of(root: Path, column: str = "source_row") -> list[str]:
    return sorted(row for file in listed(root) for row in pq.read_table(file)[column].to_pylist())


def crashes() -> Iterator[int]:
    return itertools.count(1)


def killed_at_every_moment(
    tmp_path: Path,
    name: str,
    files: Sequence[InputFile] = INPUTS,
    before: Callable[[Path], None] = lambda root: None,
    generation: int = 1,
    at_least: int = 1,
) -> Iterator[Path]:
    """Outputs in each of which the run of this name was killed at another of its operations, after `before`."""
    for at in crashes():
        root = tmp_path / str(at)
        before(root)
        try:
            Job(root, at, generation).run(name, files)
        except Killed:
            yield root
        else:
            break
    assert at > at_least


def first(root: Path) -> None:
    """An undisturbed run."""
    Job(root).run("first")


def check(root: Path, files: Sequence[InputFile] = INPUTS, generation: int = 1) -> None:
    job = Job(root, generation=generation)
    assert rows_of(root) == sorted(keys(files))
    if files is INPUTS and generation == 1:  # else those from before are left, until the output is tidied
        assert {path.name for path in (root / "data").glob("*.parquet")} == {Path(file).name for file in listed(root)}
    assert list(job.checkpoint.iterdir()) == []
    assert list((root / f"state/ledger/{generation}/begun").iterdir()) == []
    assert {file for file, state in job.ledger.states().items() if not state.gone} == set(files)


def test_an_undisturbed_run(tmp_path: Path) -> None:
    Job(tmp_path).run("first")
    check(tmp_path)


def test_killed_at_any_moment_the_next_run_makes_it_right(tmp_path: Path) -> None:
    for root in killed_at_every_moment(tmp_path, "first", at_least=51):
        Job(root).run("second")
        check(root)


def test_killed_again_and_again_it_comes_to_an_end(tmp_path: Path) -> None:
    for at in range(3, 40):
        root = tmp_path / str(at)
        for attempt in itertools.count():
            try:
                Job(root, at + attempt).run(f"try{attempt}")
            except Killed:
                continue
            break
        check(root)


def test_a_file_that_changed_takes_its_old_rows_place_in_one_step(tmp_path: Path) -> None:
    files = [CHANGED, *INPUTS[1:]]
    for root in killed_at_every_moment(tmp_path, "second", files, first, at_least=20):
        assert rows_of(root) in (sorted(keys(INPUTS)), sorted(keys(files)))
        Job(root).run("third", files)
        check(root, files)


def test_a_file_that_changes_while_no_run_lives_leaves_no_old_rows(tmp_path: Path) -> None:
    files = [CHANGED, *INPUTS[1:]]
    for at in itertools.count(1):
        root = tmp_path / str(at)
        try:
            Job(root, at).run("first")
        except Killed:
            Job(root).run("second", files)
            check(root, files)
        else:
            break
    Job(root).run("back", files)
    Job(root).run("forth", INPUTS)
    assert rows_of(root) == sorted(keys(INPUTS))


def test_rows_that_are_tried_again_take_their_own_place(tmp_path: Path) -> None:
    again = [f"{INPUTS[0].key}-1", f"{INPUTS[0].key}-2", f"{INPUTS[2].key}-0"]
    for at in crashes():
        root = tmp_path / str(at)
        Job(root).run("first")
        try:
            Job(root, at).run("second", again=again)
        except Killed:
            assert rows_of(root) == sorted(keys())
            Job(root).run("third")  # finishes what was made, and no more
            assert rows_of(root) == sorted(keys())
            Job(root).run("fourth", again=again)
        else:
            break
        assert rows_of(root) == sorted(keys())
        assert rows_of(root, "writer").count("first") == len(keys()) - len(again)
    assert at > 15


def test_a_run_with_nothing_new_commits_nothing(tmp_path: Path) -> None:
    Job(tmp_path).run("first")
    before = sorted((tmp_path / "data/_manifest").iterdir())
    Job(tmp_path).run("second")
    assert sorted((tmp_path / "data/_manifest").iterdir()) == before


def test_a_row_that_was_written_twice_is_taken_once(tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.checkpoint.mkdir(parents=True)
    job.write("run_x_000000", [f"{INPUTS[2].key}-{row}" for row in (0, 1)])
    job.write("run_y_000001", [f"{INPUTS[2].key}-{row}" for row in (1, 2)])  # by a task that outlived its run
    job.run("first")
    check(tmp_path)


def test_data_files_with_foreign_rows_are_not_committed(tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.checkpoint.mkdir(parents=True)
    job.write("run_x_000000", [f"{INPUTS[2].key}-0", f"{INPUTS[2].key}-1"])
    pq.write_table(pa.table({"source_row": ["?"] * 3}), tmp_path / "data/run_x_000000-0.parquet")
    with pytest.raises(RunError, match="hold 3 rows, but 2 were written"):
        job.run("first")


def test_data_files_that_somebody_removed_are_made_again(tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.checkpoint.mkdir(parents=True)
    job.write("run_x_000000", [f"{INPUTS[2].key}-0", f"{INPUTS[2].key}-1"])
    job.write("run_x_000001", [f"{INPUTS[2].key}-2", f"{INPUTS[2].key}-3"])
    (tmp_path / "data/run_x_000000-0.parquet").unlink()
    os.truncate(tmp_path / "data/run_x_000001-0.parquet", 0)  # as by a loss of power
    job.run("first")
    check(tmp_path)


def test_a_replacement_is_made_once_and_whole(tmp_path: Path) -> None:
    for root in killed_at_every_moment(tmp_path, "second", before=first, generation=2, at_least=20):
        assert rows_of(root) == sorted(keys())
        Job(root, generation=2).run("third")
        check(root, generation=2)
        assert not {"first"}.intersection(rows_of(root, "writer"))


def test_a_replacement_that_is_given_up_leaves_everything_as_it_was(tmp_path: Path) -> None:
    """The run before goes on, whatever was begun, and makes no commit of rows that are gone."""
    for root in killed_at_every_moment(tmp_path, "first", at_least=50):
        with contextlib.suppress(Killed):
            Job(root, 12, generation=2).run("second")
        assert all(intent.generation == 1 for intent in Intents(Mortal(), str(root / "state/commits")).all())
        Job(root).run("third")
        assert rows_of(root) == sorted(keys())


def test_a_replacement_in_which_a_file_changes_is_one_step(tmp_path: Path) -> None:
    files = [CHANGED, *INPUTS[1:]]
    for root in killed_at_every_moment(tmp_path, "second", before=first, generation=2):
        Job(root, generation=2).run("third", files)
        check(root, files, generation=2)
        manifests = [json.loads(path.read_text()) for path in sorted((root / "data/_manifest").glob("*.json"))]
        assert [one["operation"] for one in manifests if one["commit"] > 3][:1] in (["replace"], [])


def test_a_replacement_does_not_finish_what_was_begun_before(tmp_path: Path) -> None:
    for root in killed_at_every_moment(tmp_path, "first"):
        Job(root, generation=2).run("second")
        check(root, generation=2)
        assert {"second"} == set(rows_of(root, "writer"))


@pytest.mark.parametrize("now", [INPUTS, INPUTS[1:]], ids=["it is as it was", "it is not there"])
def test_half_of_a_change_that_did_not_last_is_not_committed(tmp_path: Path, now: list[InputFile]) -> None:
    changed = [CHANGED, *INPUTS[1:]]
    for root in killed_at_every_moment(tmp_path, "second", changed, first):
        Job(root).run("third", now)
        assert rows_of(root) in (sorted(keys(INPUTS)), *([sorted(keys(changed))] if now is not INPUTS else []))


def test_a_file_that_changes_back_while_it_is_done_again(tmp_path: Path) -> None:
    def changed(root: Path) -> None:
        first(root)
        Job(root).run("second", [CHANGED, *INPUTS[1:]])

    for root in killed_at_every_moment(tmp_path, "third", before=changed):
        Job(root).run("fourth", [EMPTIED, *INPUTS[1:]])
        check(root, [EMPTIED, *INPUTS[1:]])


def test_a_file_of_which_nothing_is_wanted_any_more_takes_its_rows_along(tmp_path: Path) -> None:
    files = [EMPTIED, *INPUTS[1:]]
    for root in killed_at_every_moment(tmp_path, "second", files, first, at_least=5):
        Job(root).run("third", files)
        check(root, files)


@pytest.mark.parametrize("broken", ["_write_hive", "commit"])
def test_a_commit_that_fails_in_passing_is_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    original, calls = getattr(ManifestTable, broken), itertools.count()

    def fails_now_and_then(*arguments: Any, **more: Any) -> Any:
        if broken == "commit":
            original(*arguments, **more)
        if next(calls) % 2 == 0:
            raise OSError("busy")
        return original(*arguments, **more) if broken != "commit" else None

    monkeypatch.setattr(ManifestTable, broken, fails_now_and_then)
    commit = Committer.commit

    def tried_again(committer: Committer, is_last: bool = False) -> int:
        try:
            return commit(committer, is_last)
        except OSError:
            return commit(committer, is_last)

    monkeypatch.setattr(Committer, "commit", tried_again)
    Job(tmp_path).run("first")
    check(tmp_path)


def test_a_late_write_of_a_file_that_is_finished_is_thrown_away(tmp_path: Path) -> None:
    """By a task that Ray had given up, while its run still lives."""
    job = Job(tmp_path)
    write, late = job.write, []

    def then_late(name: str, rows: list[str]) -> None:
        if not late and job.ledger.states():  # a file is finished
            late.append(name)
            write("run_late_000000", [f"{INPUTS[0].key}-0"])
        write(name, rows)

    job.write = then_late  # type: ignore[method-assign]
    job.run("first")
    assert late
    check(tmp_path)


def test_what_left_the_table_is_done_again_if_it_comes_back(tmp_path: Path) -> None:
    """Its old write is still known, since it holds rows of a file that is not finished."""
    job, more = Job(tmp_path), InputFile("in/d.parquet", 1, "v1")
    ROWS[more.key] = 3
    job.checkpoint.mkdir(parents=True)
    job.write("run_x_000000", [*(f"{INPUTS[0].key}-{row}" for row in range(5)), f"{more.key}-0"])
    lease = Lease(fsspec.filesystem("file"), str(tmp_path / "state/lease"), "zero")
    with lease:
        committer, inputs = job.plan([*INPUTS[:1], more], lease)
        job.ledger.begin((read.file for read in inputs.values()), 0)
        committer.recover()
        committer.commit()
    Job(tmp_path).run("first", [CHANGED])
    Job(tmp_path).run("second", [INPUTS[0]])
    Job(tmp_path).run("third", [INPUTS[0], more])
    assert rows_of(tmp_path) == sorted(keys([INPUTS[0], more]))


def test_a_table_that_was_set_back_is_noticed(tmp_path: Path) -> None:
    Job(tmp_path).run("first")
    for path in sorted((tmp_path / "data/_manifest").iterdir())[1:]:
        path.unlink()
    with pytest.raises(OutputError, match=r"knows of 1 commits, but \d were made.*--fresh"):
        Job(tmp_path).run("second", [CHANGED, *INPUTS[1:]])


def test_who_has_lost_the_lease_changes_nothing(tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.checkpoint.mkdir(parents=True)
    lease = Lease(fsspec.filesystem("file"), str(tmp_path / "state/lease"), "slow", 3600)
    with lease:
        committer, inputs = job.plan(INPUTS, lease)
        committer.recover()
        job.ledger.begin((read.file for read in inputs.values()), 0)
        job.write("run_slow_000000", keys()[:2])
        newest = sorted((tmp_path / "state/lease").glob("*.json"))[-1]
        newest.with_name("00000009.json").write_bytes(newest.read_bytes())  # another follows
        before = sorted(path for path in tmp_path.rglob("*") if "lease" not in str(path))
        with pytest.raises(RunError, match="lease"):
            committer.commit()
        assert sorted(path for path in tmp_path.rglob("*") if "lease" not in str(path)) == before
