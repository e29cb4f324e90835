"""What one task reads, and hands on together."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.lake import reader
from pipeline.lake.reader import Rows, plan_parts
from pipeline.lake.source import open_source
from pipeline.recipe import Columns
from pipeline.schema import ROW_KEY
from tests.conftest import noise

Write = Callable[..., Path]
STORE = fsspec.filesystem("file")


@pytest.fixture(autouse=True)
def from_the_beginning_as_later(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "beginning" not in request.node.name:
        monkeypatch.setattr(reader, "BEGIN", ())


def tasks(folder: Path, stopped: Callable[[], bool] = bool) -> list[list[pa.Table]]:
    """What each task hands on."""

    def then(table: pa.Table, root: str) -> Iterator[pa.Table]:
        yield table

    source = open_source([str(folder)], Columns())
    rows = Rows(STORE, plan_parts(source.files, {}, {}), ["id", "image"], then, stopped)
    found = rows.get_read_tasks(1)
    assert len(found) == rows.tasks
    return [list(task()) for task in found]


def row(number: int, size: int = 1000) -> dict[str, Any]:
    return {"id": f"row-{number}", "image": random.Random(number).randbytes(size)}


def ids(done: list[list[pa.Table]]) -> list[str]:
    return sorted(name for task in done for table in task for name in table["id"].to_pylist())


def test_small_files_are_read_by_few_tasks_and_handed_on_together(write_table: Write, tmp_path: Path) -> None:
    for number in range(30):
        write_table([row(number)], f"source/{number:02d}.parquet")
    done = tasks(tmp_path / "source")
    assert [[table.num_rows for table in task] for task in done] == [[30]]
    assert ids(done) == sorted(f"row-{number}" for number in range(30))


def test_large_files_have_a_task_each(write_table: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "SMALL", 10_000)
    for number in range(8):
        write_table([row(number, 50_000 if number % 2 else 400)], f"source/{number:02d}.parquet")
    assert len(tasks(tmp_path / "source")) == 8  # a small one between two large ones
    monkeypatch.setattr(reader, "AT_ONCE", 2)
    assert len(tasks(tmp_path / "source")) < 8  # nobody could run more at a time


def test_what_is_handed_on_is_bounded(write_table: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "BATCH", 5_000)
    for number in range(20):
        write_table([row(number)], f"source/{number:02d}.parquet")
    (task,) = tasks(tmp_path / "source")
    assert max(table.num_rows for table in task) <= 6 and len(task) > 3
    assert len(ids([task])) == 20


def test_what_many_files_hold_is_handed_on_in_one_piece(write_table: Write, tmp_path: Path) -> None:
    for number in range(20):
        write_table([row(number)], f"source/{number:02d}.parquet")
    *_, last = (table for task in tasks(tmp_path / "source") for table in task)
    assert last.num_rows > 1 and all(column.num_chunks == 1 for column in last.columns)


def test_files_with_other_columns_are_not_put_together(write_table: Write, tmp_path: Path) -> None:
    write_table([row(0)], "source/0.parquet")
    write_table([{"id": 1, "image": b"1"}], "source/1.parquet")
    write_table([{"image": b"2"}], "source/2.parquet")
    (task,) = tasks(tmp_path / "source")
    assert [table.num_rows for table in task] == [1, 1, 1]


def test_what_was_read_before_the_end_was_called_is_handed_on(write_table: Write, tmp_path: Path) -> None:
    for number in range(4):
        write_table([row(number)], f"source/{number}.parquet")
    asked = iter([False, False, True])
    (task,) = tasks(tmp_path / "source", lambda: next(asked))
    assert ids([task]) == ["row-0", "row-1"]


def test_the_beginning_is_made_of_little_tasks(write_table: Write, tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    table = pa.Table.from_pylist([row(number) for number in range(60)])
    pq.write_table(table, tmp_path / "large/0.parquet", row_group_size=10)
    for number in range(10):
        write_table([row(number)], f"small/{number}.parquet")
    found = tasks(tmp_path / "large")
    assert [sum(table.num_rows for table in task) for task in found] == [1, 1, 2, 4, 8, 16, 28]
    assert ids(found) == sorted(f"row-{number}" for number in range(60))
    keys = [key for task in found for table in task for key in table[ROW_KEY].to_pylist()]
    assert [int(key.rpartition("-")[2]) for key in keys] == list(range(60))
    found = tasks(tmp_path / "small")
    assert [sum(table.num_rows for table in task) for task in found] == [1, 1, 2, 4, 2]


def test_a_giant_goes_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(reader, "PIECE", 50_000)
    for number, size in enumerate((10, 10, 200, 10)):
        Image.fromarray(noise(size, size)).save(tmp_path / f"{number}.png")
    source = open_source([str(tmp_path)], Columns())
    parts = plan_parts(source.files, {}, {})
    assert [part.rows for part in parts] == [2, 1, 1]
    rows = Rows(STORE, parts, ["id", "image"], lambda table, root: iter([table]))
    assert rows.tasks == 3
