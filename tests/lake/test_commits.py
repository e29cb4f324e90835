"""Commits under crashes: a writer that keeps Ray's protocol is killed at every single operation of the store."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import RunError
from pipeline.lake.commits import Committer, Input
from pipeline.lake.lease import Lease
from pipeline.lake.ledger import InputFile, Ledger
from pipeline.lake.manifest import ManifestTable
from pipeline.lake.staging import PENDING, Staging
from pipeline.lake.table import Table

INPUTS = [InputFile(f"in/{name}.parquet", 1, "v1") for name in "abc"]
ROWS = {INPUTS[0].key: 5, INPUTS[1].key: 0, INPUTS[2].key: 4}
SCHEMA = pa.schema([("source_row", pa.string())])


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
    import pipeline.lake.commits as commits
    import pipeline.lake.ledger as ledger
    import pipeline.lake.manifest as manifest

    for module, name in ((commits, "put_new"), (ledger, "put"), (manifest, "put"), (manifest, "put_new")):
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


def keys() -> list[str]:
    return [f"{key}-{row}" for key, count in ROWS.items() for row in range(count)]


class Job:
    """One process of a run: reads what is not done, writes as Ray's sink does, commits in between."""

    def __init__(self, root: Path, at: int = -1) -> None:
        self.store = Mortal(at)
        self.root = root
        (root / "data").mkdir(parents=True, exist_ok=True)
        self.staging = Staging(self.store, str(root / "data"), str(root / "state/checkpoint"))
        self.table: Table = ManifestTable(self.store, str(root / "data"))
        self.ledger = Ledger(self.store, str(root / "state/ledger"))

    def run(self, name: str, rows_a_write: int = 2) -> None:
        lease = Lease(fsspec.filesystem("file"), str(self.root / "state/lease"), name)
        with lease:
            self.staging.recover()
            inputs = {file.key: Input(file, ROWS[file.key]) for file in INPUTS if file not in self.ledger.finished()}
            committer = Committer(
                *(self.store, str(self.root / "state/commits"), self.table, self.staging, self.ledger, lease),
                *(SCHEMA, "run", "digest", inputs),
            )
            committer.recover()
            done = {key for part in self.staging.done(inputs).values() for key in part.to_pylist()}
            files = set(inputs) - committer.finished
            left = [key for key in keys() if key.partition("-")[0] in files and key not in done]
            for number, start in enumerate(range(0, len(left), rows_a_write)):
                self.write(f"run_{name}_{number:06d}", left[start : start + rows_a_write])
                if number % 2:
                    committer.commit()
            committer.commit()

    def write(self, name: str, rows: list[str]) -> None:
        """As ray.data writes with a checkpoint: pending, data, move."""
        folder = self.root / "state/checkpoint"
        self.store.live()
        pq.write_table(pa.table({"source_row": rows}), folder / f"{name}{PENDING}")
        self.store.live()
        pq.write_table(pa.table({"source_row": rows}), self.root / f"data/{name}-0.parquet")
        self.store.live()
        pq.write_table(pa.table({"source_row": rows}), folder / f"{name}.parquet")  # a move on object stores is a copy
        self.store.live()
        (folder / f"{name}{PENDING}").unlink()
        self.store.live()


def rows_of(root: Path) -> list[str]:
    """What the table holds, read through its list of files."""
    files = (root / "data/_symlink_format_manifest/manifest").read_text().split()
    return sorted(row for file in files for row in pq.read_table(file)["source_row"].to_pylist())


def crashes() -> Iterator[int]:
    return itertools.count(1)


def check(root: Path) -> None:
    assert rows_of(root) == sorted(keys())
    listed = {Path(file).name for file in (root / "data/_symlink_format_manifest/manifest").read_text().split()}
    assert {path.name for path in (root / "data").glob("*.parquet")} == listed  # no orphans
    assert list((root / "state/checkpoint").iterdir()) == []
    assert Ledger(Mortal(), str(root / "state/ledger")).finished() == set(INPUTS)


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


def test_a_run_with_nothing_new_commits_nothing(tmp_path: Path) -> None:
    Job(tmp_path).run("first")
    before = sorted((tmp_path / "data/_manifest").iterdir())
    Job(tmp_path).run("second")
    assert sorted((tmp_path / "data/_manifest").iterdir()) == before


def test_a_row_that_was_written_twice_stops_the_run(tmp_path: Path) -> None:
    job = Job(tmp_path)
    (tmp_path / "state/checkpoint").mkdir(parents=True)
    twice = [f"{INPUTS[2].key}-{row}" for row in (0, 1, 2, 3, 3)]
    job.write("run_x_000000", twice)
    with pytest.raises(RunError, match="twice"):
        job.run("first")


def test_data_files_that_somebody_changed_are_not_committed(tmp_path: Path) -> None:
    job = Job(tmp_path)
    (tmp_path / "state/checkpoint").mkdir(parents=True)
    job.write("run_x_000000", [f"{INPUTS[2].key}-0", f"{INPUTS[2].key}-1"])
    pq.write_table(pa.table({"source_row": ["?"]}), tmp_path / "data/run_x_000000-0.parquet")
    with pytest.raises(RunError, match="hold 1 rows, but 2 were written"):
        job.run("first")
