"""Rows on which workers die fail alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
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
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.poisoned", *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
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
    lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    assert any(line["logger"] == "pipeline.cluster" or "rows of" in line["message"] for line in lines)
    told = [line for line in done.stderr.splitlines() if "row failed: " in line]
    facts = [json.loads(line[line.index("{") : line.rindex("}") + 1]) for line in told]
    assert {line["stage"] for line in facts} == {"decode", "restore", "encode"}
    assert all(line["run_id"] == table[0]["run_id"] and line["row_id"] for line in facts)


class Direct:
    """A book in this process, called as an actor is."""

    def __init__(self) -> None:
        self._book = survival.Book()

    def __getattr__(self, name: str) -> object:
        method = getattr(self._book, name)

        class Call:
            remote = staticmethod(method)

        return Call


@pytest.fixture
def guard(monkeypatch: pytest.MonkeyPatch) -> survival.Guard:
    monkeypatch.setattr(survival.ray, "get", lambda answer: answer)

    def fail(table: pa.Table, error: WorkerDied) -> pa.Table:
        return table.append_column("failed", pa.array([error.attempts] * table.num_rows))

    return survival.Guard(Direct(), "restore", 60, fail)


def work(table: pa.Table, deadly: str | None) -> list[pa.Table]:
    if deadly in table["key"].to_pylist():
        raise SystemExit  # stands for the end of the process: nothing after it runs
    return [table]


def test_what_was_begun_and_not_ended_is_done_row_by_row(guard: survival.Guard) -> None:
    table = pa.table({"key": ["a", "b", "c"]})

    def attempt(deadly: str | None = "b") -> list[pa.Table]:
        tables: list[pa.Table] = []
        tables.extend(guard(table, table["key"].to_pylist(), lambda rows: iter(work(rows, deadly))))
        return tables

    for _ in range(1 + survival.ALONE):
        with pytest.raises(SystemExit):
            attempt()
    tables = attempt()
    assert [part["key"].to_pylist() for part in tables] == [["a"], ["b"], ["c"]]
    assert [part.num_columns for part in tables] == [1, 2, 1] and tables[1]["failed"].to_pylist() == [survival.ALONE]
    assert len(attempt(deadly=None)) == 1, "that attempt has ended: what is repeated later goes together again"


def test_only_the_time_that_the_work_takes_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survival.ray, "get", lambda answer: answer)
    ended: list[object] = []
    monkeypatch.setattr(survival, "_die", lambda stage, rows: ended.append((stage, rows)))
    guard = survival.Guard(Direct(), "decode", 0.2, lambda table, error: table)
    table = pa.table({"key": ["a"]})
    slow_reader = guard(table, ["a"], lambda rows: iter([rows, rows, rows]))
    for _ in slow_reader:
        time.sleep(0.15)
    assert not ended

    def slow(rows: pa.Table) -> Iterator[pa.Table]:
        for _ in range(3):
            time.sleep(0.15)
            yield rows

    assert len(list(guard(table, ["a"], slow))) == 3
    assert ended, "the second table came after the time was over"
