"""Commits under crashes: a writer that keeps Ray's protocol is killed at every single operation of the store."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import RunError
from pipeline.lake.commits import Committer, Exchange, Input
from pipeline.lake.intents import Intents
from pipeline.lake.lease import Lease
from pipeline.lake.ledger import InputFile, Ledger
from pipeline.lake.manifest import ManifestTable
from pipeline.lake.staging import PENDING, Staging
from pipeline.lake.table import Table

INPUTS = [InputFile(f"in/{name}.parquet", 1, "v1") for name in "abc"]
CHANGED = InputFile("in/a.parquet", 1, "v2")
ROWS = {INPUTS[0].key: 5, INPUTS[1].key: 0, INPUTS[2].key: 4, CHANGED.key: 3}
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

    def __init__(self, root: Path, at: int = -1) -> None:
        self.store = Mortal(at)
        self.root = root
        (root / "data").mkdir(parents=True, exist_ok=True)
        self.staging = Staging(self.store, str(root / "data"), str(root / "state/checkpoint"))
        self.table: Table = ManifestTable(self.store, str(root / "data"))
        self.ledger = Ledger(self.store, str(root / "state/ledger"))

    def run(self, name: str, files: Sequence[InputFile] = INPUTS, again: Sequence[str] = ()) -> None:
        """`again`: rows of finished files that are done once more."""
        lease = Lease(fsspec.filesystem("file"), str(self.root / "state/lease"), name)
        with lease:
            committer, inputs = self.plan(files, lease)
            if committer.recover():
                committer, inputs = self.plan(files, lease)
                assert not committer.recover()
            self.ledger.begin(read.file for read in inputs.values())
            done = {key for staged in self.staging.whole() for key in staged.keys.to_pylist()}
            left = [key for key in keys([read.file for read in inputs.values()]) if key not in done]
            left += [key for key in again if key not in done]
            expected = committer.uncommitted + len(left)
            for number, start in enumerate(range(0, len(left), 2)):
                self.write(f"run_{name}_{number:06d}", left[start : start + 2])
                if number % 2:
                    committer.commit()
            committer.commit()
            assert committer.rows == expected
            assert committer.finished == set(inputs)
            self.ledger.forget_begun(self.ledger.states())

    def plan(self, files: Sequence[InputFile], lease: Lease) -> tuple[Committer, dict[str, Input]]:
        states = self.ledger.states()
        finished = {file for file, state in states.items() if not state.gone}
        inputs = {file.key: Input(file, ROWS[file.key]) for file in files if file not in finished}
        left = {file for file, state in states.items() if state.gone}
        known = finished | (self.ledger.begun() - left)
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
        )
        return committer, inputs

    def write(self, name: str, rows: list[str]) -> None:
        """As ray.data writes with a checkpoint: pending, data, move."""
        folder = self.root / "state/checkpoint"
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


def check(root: Path, files: Sequence[InputFile] = INPUTS) -> None:
    assert rows_of(root) == sorted(keys(files))
    if files is INPUTS:  # else those from before the change are left, until the output is tidied
        assert {path.name for path in (root / "data").glob("*.parquet")} == {Path(file).name for file in listed(root)}
    assert list((root / "state/checkpoint").iterdir()) == []
    assert list((root / "state/ledger/begun").iterdir()) == []
    states = Ledger(Mortal(), str(root / "state/ledger")).states()
    assert {file for file, state in states.items() if not state.gone} == set(files)


def test_an_undisturbed_run(tmp_path: Path) -> None:
    Job(tmp_path).run("first")
    check(tmp_path)


def test_killed_at_any_moment_the_next_run_makes_it_right(tmp_path: Path) -> None:
    killed = 0
    for at in crashes():
        root = tmp_path / str(at)
        try:
            Job(root, at).run("first")
        except Killed:
            killed += 1
        else:
            break
        Job(root).run("second")
        check(root)
    assert killed > 50


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
    for at in crashes():
        root = tmp_path / str(at)
        Job(root).run("first")
        files = [CHANGED, *INPUTS[1:]]
        try:
            Job(root, at).run("second", files)
        except Killed:
            assert rows_of(root) in (sorted(keys(INPUTS)), sorted(keys(files)))
            Job(root).run("third", files)
        else:
            break
        check(root, files)
    assert at > 20


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
    (tmp_path / "state/checkpoint").mkdir(parents=True)
    job.write("run_x_000000", [f"{INPUTS[2].key}-{row}" for row in (0, 1)])
    job.write("run_y_000001", [f"{INPUTS[2].key}-{row}" for row in (1, 2)])  # by a task that outlived its run
    job.run("first")
    check(tmp_path)


def test_data_files_that_somebody_changed_are_not_committed(tmp_path: Path) -> None:
    job = Job(tmp_path)
    (tmp_path / "state/checkpoint").mkdir(parents=True)
    job.write("run_x_000000", [f"{INPUTS[2].key}-0", f"{INPUTS[2].key}-1"])
    pq.write_table(pa.table({"source_row": ["?"]}), tmp_path / "data/run_x_000000-0.parquet")
    with pytest.raises(RunError, match="hold 1 rows, but 2 were written"):
        job.run("first")
