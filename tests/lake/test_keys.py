from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import RecipeError
from pipeline.lake.keys import Keys, find_duplicates, hashed, name_duplicates, read_keys
from pipeline.lake.source import Source, open_source
from pipeline.recipe import Columns, load_recipe

Write = Callable[..., Path]
STORE = fsspec.filesystem("file")


def keys_of(*ids: str) -> Keys:
    return Keys(hashed(ids), None, len(ids))


def test_ids_that_come_twice_are_found_here_and_in_what_was_read_before() -> None:
    keys = {"one": keys_of("a", "b", "c"), "two": keys_of("d", "b")}
    assert {key: len(ids) for key, ids in find_duplicates(keys, []).items()} == {"two": 1}  # the later one
    found = find_duplicates(keys, [hashed(["x", "d"]), hashed([]), hashed(["a"])])
    assert found["one"].tolist() == hashed(["a"]).tolist() and found["two"].tolist() == hashed(["d", "b"]).tolist()
    assert find_duplicates({"one": keys_of("a", "b"), "two": keys_of()}, [hashed(["c"])]) == {}
    assert find_duplicates({}, [hashed(["c"])]) == {}


def source_of(write_table: Write, tmp_path: Path) -> Source:
    """Two files of 1911 and 1912, of 30 rows in row groups of 10."""
    for year in (1911, 1912):
        folder = tmp_path / f"source/year={year}"
        folder.mkdir(parents=True)
        table = pa.table({"id": [f"{year}-{n}" for n in range(30)], "n": range(30), "image": [b"x"] * 30})
        table = table.append_column("shelf", pa.array(["A", "B", None] * 10))
        table = table.append_column("at", pa.array(range(30), pa.date32()))
        table = table.append_column("price", pa.array(range(30), pa.decimal128(9, 2)))
        table = table.append_column("share", pa.array([n / 10 for n in range(30)], pa.float32()))
        table = table.append_column("late", pa.array(range(30)) if year == 1912 else pa.nulls(30))
        pq.write_table(table, folder / "a.parquet", 10)
    return open_source([str(tmp_path / "source")], Columns())


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ([("n", ">=", 25)], {1911: [25, 26, 27, 28, 29], 1912: [25, 26, 27, 28, 29]}),
        ([("year", "=", "1912"), ("n", "<", 2)], {1911: [], 1912: [0, 1]}),
        ([("n", "in", [3, 16, 17]), ("shelf", "!=", "A")], {1911: [16], 1912: [16]}),
        ([("shelf", "in", ("B",)), ("n", "<", 5)], {1911: [1, 4], 1912: [1, 4]}),
        ([("at", "<", "1970-01-03")], {1911: [0, 1], 1912: [0, 1]}),
        ([("price", "<=", 1)], {1911: [0, 1], 1912: [0, 1]}),
        ([("share", "=", 0.3)], {1911: [3], 1912: [3]}),
        ([("late", "in", [4, 5])], {1911: [], 1912: [4, 5]}),
        ([("late", ">", 27)], {1911: [], 1912: [28, 29]}),
        ([("year", ">=", 1912), ("n", "<", 2)], {1911: [], 1912: [0, 1]}),
        ([("year", "in", [1911]), ("n", "not in", list(range(28)))], {1911: [28, 29], 1912: []}),
        ([("shelf", "in", ["A", 12]), ("n", "<", 4.5)], {1911: [0, 3], 1912: [0, 3]}),
    ],
)
def test_filters_choose_rows(
    write_table: Write, tmp_path: Path, filters: list[Any], expected: dict[int, list[int]]
) -> None:
    source = source_of(write_table, tmp_path)
    keys = read_keys(STORE, source.files, "id", filters)
    for file, (year, rows) in zip(source.files, expected.items(), strict=True):
        found = keys[file.key]
        assert found.wanted is not None and np.flatnonzero(found.wanted).tolist() == rows and found.rows == len(rows)
        assert found.ids.tolist() == hashed([f"{year}-{row}" for row in rows]).tolist()


def test_row_groups_that_hold_nothing_wanted_are_not_read(write_table: Write, tmp_path: Path) -> None:
    source = source_of(write_table, tmp_path)
    for file in source.files:  # all of the first row group's pages are ruined
        content = bytearray(Path(file.path).read_bytes())
        end = pq.read_metadata(file.path).row_group(1).column(0).dictionary_page_offset
        content[4:end] = bytes(end - 4)
        Path(file.path).write_bytes(content)
    keys = read_keys(STORE, source.files, "id", [("n", ">", 12)])
    assert [key.rows for key in keys.values()] == [17, 17]


def test_a_filter_that_fits_no_column_is_named(write_table: Write, tmp_path: Path) -> None:
    source = source_of(write_table, tmp_path)
    with pytest.raises(RecipeError, match="no column 'yaer'"):
        read_keys(STORE, source.files, "id", [("yaer", "=", 1911)])
    for condition in (("at", ">=", 1900), ("n", "=", "many"), ("shelf", ">", 3), ("n", "in", ["a"])):
        with pytest.raises(RecipeError, match=f"does not fit the column '{condition[0]}'"):
            read_keys(STORE, source.files, "id", [condition])
    for value, message in (
        ("[[shelf, in, AB]]", "wants a list"),
        ("[[n, '=', null]]", "null"),
        ("[[n, '<', [1]]]", "one"),
    ):
        with pytest.raises(RecipeError, match=message):
            load_recipe(overrides=[f"source.filters={value}"])
    recipe = load_recipe(overrides=['source.filters=[[n, ">=", 3], [shelf, in, [A, B]]]'])
    assert recipe.source.filters == (("n", ">=", 3), ("shelf", "in", ["A", "B"]))
    assert recipe.digest() != load_recipe().digest()
    with pytest.raises(RecipeError, match=r"source\.filters"):
        load_recipe(overrides=["source.filters=[[n, about, 3]]"])


def test_duplicates_are_named(write_table: Write, tmp_path: Path) -> None:
    write_table([{"id": name, "image": b"x"} for name in ("a", "b")], "source/a.parquet")
    write_table([{"id": name, "image": b"x"} for name in ("b", "c", None)], "source/b.parquet")
    source = open_source([str(tmp_path / "source")], Columns())
    found = find_duplicates(read_keys(STORE, source.files, "id"), [hashed(["c"])])
    named = name_duplicates(STORE, source.files, "id", found)
    assert named is not None and named.count == 2 and named.examples == ("b", "c")
    assert name_duplicates(STORE, source.files, "id", {}) is None
