"""Rows on which workers die fail alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as pads
import pytest

from pipeline import survival
from pipeline.errors import WorkerDied
from tests.conftest import ROOT, encoded, noise

Write = Callable[..., Path]


@pytest.mark.slow
def test_rows_on_which_workers_die_fail_and_the_others_come_out(write_table: Write, tmp_path: Path) -> None:
    deadly = {3: "decode crashes", 5: "restore is killed", 9: "encode hangs"}
    rows = [
        {"id": f"{n}", "image": encoded(noise(40, 56, n)), "caption": deadly.get(n, "a picture")} for n in range(12)
    ]
    write_table(rows)
    words = ["restore", "--source", str(tmp_path / "source"), "--output", str(tmp_path / "out")]
    words += ["--set", "limits.row_seconds=4", "--log-format", "json"]
    short = tempfile.mkdtemp(prefix="ray")  # sockets have short names
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.poisoned", *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_TMPDIR": short},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 3, done.stderr[-3000:]
    table = pads.dataset(tmp_path / "out/data").to_table().sort_by("id").to_pylist()
    assert sorted(row["id"] for row in table) == sorted(str(n) for n in range(12))
    failed = {int(row["id"]): row for row in table if row["status"] == "failed"}
    assert set(failed) == set(deadly)
    for n, row in failed.items():
        assert (row["error_stage"], row["error_type"]) == (deadly[n].split()[0], "WorkerDied")
        assert "died each of the 2 times" in row["error_message"]
    lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]  # beside Ray's own
    assert any(line.get("run_id") == table[0]["run_id"] for line in lines)
    logs = [path.read_text() for path in Path(short).glob("ray/session_2*/logs/worker-*.err")]
    facts = [json.loads(line) for log in logs for line in log.splitlines() if '"row failed: ' in line]
    assert {line["stage"] for line in facts} == {"decode", "restore", "encode"}
    assert {line["row_id"] for line in facts} == {row["source_row"] for row in failed.values()}
    assert all(line["run_id"] == table[0]["run_id"] for line in facts)


class Direct:
    """A book in this process, called as an actor is."""

    def __init__(self, alive: set[str]) -> None:
        self._book = survival.Book(lambda: alive)

    def __getattr__(self, name: str) -> object:
        method = getattr(self._book, name)

        class Call:
            remote = staticmethod(method)

        return Call


class Here:
    """Stands for Ray's context of a worker."""

    machine = "a"

    def get_node_id(self) -> str:
        return self.machine


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Here:
    context = Here()
    monkeypatch.setattr(survival.ray, "get", lambda answer, timeout: answer)
    monkeypatch.setattr(survival.ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(survival.faulthandler, "dump_traceback_later", lambda seconds, **_: None)
    return context


TABLE = pa.table({"key": ["a", "b", "c", "d"]})


def fail(table: pa.Table, error: WorkerDied) -> pa.Table:
    return table.append_column("failed", pa.array([error.message] * table.num_rows))


def attempt(guard: survival.Guard, *deadly: str) -> list[pa.Table]:
    def work(table: pa.Table) -> Iterator[pa.Table]:
        if set(deadly) & set(table["key"].to_pylist()):
            raise SystemExit  # stands for the end of the process: nothing after it runs
        yield table

    return list(guard(TABLE, TABLE["key"].to_pylist(), work))


def test_what_was_begun_and_not_ended_is_done_row_by_row(here: Here) -> None:
    guard = survival.Guard(Direct({"a"}), "restore", 60, fail)
    deadly = ("b", "d")
    for _ in range(1 + survival.ALONE * len(deadly)):
        with pytest.raises(SystemExit):
            attempt(guard, *deadly)
    tables = attempt(guard, *deadly)
    assert [part["key"].to_pylist() for part in tables] == [["a"], ["b"], ["c"], ["d"]]
    assert [part.num_columns for part in tables] == [1, 2, 1, 2]
    for row in (1, 3):
        assert f"each of the {survival.ALONE} times" in tables[row]["failed"][0].as_py()
    assert len(attempt(guard)) == 1, "that attempt has ended: what is repeated later goes together again"


def test_machines_that_were_lost_do_not_count_against_a_row(here: Here) -> None:
    alive = {"a"}
    guard = survival.Guard(Direct(alive), "restore", 60, fail)
    with pytest.raises(SystemExit):
        attempt(guard, "b")
    for lost in ("a", "b", "c", "d"):
        here.machine = lost
        alive.clear()
        alive.add(lost)
        with pytest.raises(SystemExit):
            attempt(guard, "b")
    alive.clear()
    alive.add("e")
    assert sum(part.num_rows for part in attempt(guard)) == 4
    assert "failed" not in attempt(guard)[0].column_names


def test_a_book_that_does_not_answer_stops_nothing(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(answer: object, timeout: float) -> object:
        raise survival.ray.exceptions.RayActorError

    monkeypatch.setattr(survival.ray, "get", gone)
    assert len(attempt(survival.Guard(Direct(set()), "restore", 60, fail))) == 1


def test_only_the_time_that_the_work_takes_counts(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []
    monkeypatch.setattr(survival.faulthandler, "dump_traceback_later", lambda seconds, **_: given.append(seconds))
    clock = iter(range(0, 1000, 5))
    monkeypatch.setattr(survival.time, "monotonic", lambda: float(next(clock)))
    guard = survival.Guard(Direct(set()), "decode", 100, fail)
    tables = guard(TABLE, ["a", "b", "c", "d"], lambda rows: iter([rows, rows]))
    for _ in tables:
        next(clock)  # the reader takes its time
    assert given == [130, 125, 120]

    def eager(rows: pa.Table) -> Iterator[pa.Table]:
        assert len(given) == 4, "work is watched from its beginning"
        return iter([rows])

    assert len(list(guard(TABLE, ["a", "b", "c", "d"], eager))) == 1


def test_a_table_without_rows_is_no_work_to_watch(here: Here) -> None:
    assert (
        len(list(survival.Guard(Direct(set()), "decode", 1, fail)(TABLE.slice(0, 0), [], lambda rows: iter([rows]))))
        == 1
    )
