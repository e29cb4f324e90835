from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import SourceError
from pipeline.lake import search as module
from pipeline.lake.find import find_files
from pipeline.lake.inputs import ParquetFile
from pipeline.lake.keys import read_keys
from pipeline.lake.search import Search
from pipeline.lake.source import open_source
from pipeline.plan import plan, prepare
from pipeline.recipe import Columns, load_recipe
from pipeline.recipe import Source as Settings
from tests.seaweed import Seaweed

Write = Callable[..., Path]


def search(folder: Path, settings: Settings | None = None, finished: Any = ()) -> Search:
    return Search("auto", [str(folder)], Columns(), settings or Settings(), finished)


def test_the_first_images_are_known_before_all_are_listed(
    tmp_path: Path, listed: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST", {"images": 3, "parquet": 1})
    for name in ("a.jpg", "one/b.jpg", "one/c.jpg", "one/two/d.jpg", "one/two/e.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "metadata.csv").write_text("file_name,year\na.jpg,1911\none/two/e.jpg,about 1912\n")
    (tmp_path / "one/captions.jsonl").write_text('{"file_name": "c.jpg", "caption": "a ship"}\n')
    looking = search(tmp_path)
    assert not looking.wait(0.1)
    first = looking.first(frozenset())
    assert [file.path.removeprefix(f"{tmp_path}/") for file in first.files] == ["a.jpg", "one/b.jpg", "one/c.jpg"]
    listed.set()
    whole = looking.whole(frozenset())
    assert dataclasses.replace(whole, store=first.store) == open_source([str(tmp_path)], Columns())
    assert {file.key for file in first.files} < {file.key for file in whole.files}  # what is said of them, too
    rest = looking.whole(frozenset(file.input for file in first.files))
    assert len(rest.files) == 2 and len(rest.finished) == 3


def test_files_that_are_looked_into_are_known_before_the_others(
    write_table: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abcd":
        write_table([{"id": f"{name}{row}", "image": b"x", "n": row} for row in range(3)], f"source/{name}.parquet")
    go_on, asked, real = threading.Event(), [], module.read_footer

    def slow(store: Any, path: str, found: Any) -> ParquetFile:
        asked.append(Path(path).stem)
        if "c.parquet" in path:
            go_on.wait(60)
        return real(store, path, found)

    monkeypatch.setattr(module, "read_footer", slow)
    settings = Settings(filters=(("n", ">", 0),))
    done = {file.input for file in open_source([str(tmp_path / "source")], Columns()).files if "b.par" in file.path}
    looking = search(tmp_path / "source", settings, done)
    assert not looking.wait(0.5)
    while not (first := looking.first(done)).files:
        assert not looking.wait(0.05)
    assert [Path(file.path).stem for file in first.files] == ["a"]
    (tmp_path / "source/a.parquet").unlink()  # nothing is read twice
    assert read_keys(first.store, first.files, "id", settings.filters, first.keys)[first.files[0].key].rows == 2
    go_on.set()
    whole = looking.whole(done)
    assert [Path(file.path).stem for file in whole.files] == ["a", "c", "d"] and sorted(asked) == ["a", "c", "d"]
    assert {file.key for file in whole.files} == whole.keys.keys()
    assert {key.rows for key in whole.keys.values()} == {2}


def test_keys_that_need_other_files_are_read_when_all_are_known(write_table: Write, tmp_path: Path) -> None:
    write_table([{"id": "a", "image": b"x", "year": None}], "source/a.parquet")
    write_table([{"id": "b", "image": b"x", "year": 1911}], "source/b.parquet")
    settings = Settings(filters=(("year", "=", 1911),))
    whole = search(tmp_path / "source", settings).whole(frozenset())
    assert len(whole.keys) == 1
    keys = read_keys(whole.store, whole.files, "id", settings.filters, whole.keys)
    assert [keys[file.key].rows for file in whole.files] == [0, 1]


def test_a_run_that_began_with_images_does_not_go_on_with_tables(
    write_table: Write, tmp_path: Path, listed: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.1)
    (tmp_path / "source").mkdir()
    (tmp_path / "source/a.jpg").write_bytes(b"x")
    places = {"source__uri": [str(tmp_path / "source")], "output__uri": str(tmp_path / "out")}
    run = prepare(load_recipe(**places), early=True)
    record = {"run_id": run.run_id, "recipe_digest": run.recipe.digest(), "generation": 1}
    run.output.begin(record | {"replaces": False, "retries": False, "images": True}, run.recipe.to_yaml())
    write_table([{"id": "b", "image": b"x"}], "source/z.parquet")
    listed.set()
    asked = r"z\.parquet: say which .*source\.format=images"
    with pytest.raises(SourceError, match=asked):
        plan(run.recipe, run.output, run.turn, search=run.search)
    with pytest.raises(SourceError, match=asked):  # the next run goes on
        prepare(run.recipe)
    assert prepare(load_recipe(overrides=["source.format=parquet"], **places)).rows == 1


def test_who_wants_all_files_planned_before_waits(
    write_table: Write, tmp_path: Path, listed: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.1)
    source = write_table([{"id": "b", "image": b"x"}]).parent
    places = {"source__uri": [str(source)], "output__uri": str(tmp_path / "out")}
    assert prepare(load_recipe(**places), early=True).search is not None
    for option in ("source.early=false", "limits.rows=5"):
        assert prepare(load_recipe(overrides=[option], **places), early=True).search is None


def test_a_search_that_is_closed_looks_no_further(
    write_table: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in range(40):
        write_table([{"id": f"{name}", "image": b"x"}], f"source/{name}.parquet")
    go_on, asked, real = threading.Event(), [], module.read_footer

    def slow(store: Any, path: str, found: Any) -> ParquetFile:
        asked.append(path)
        go_on.wait(60)
        return real(store, path, found)

    monkeypatch.setattr(module, "read_footer", slow)
    looking = search(tmp_path / "source")
    while len(asked) < 16:
        assert not looking.wait(0.05)
    looking.close()
    go_on.set()
    assert looking.wait(30) and len(asked) == 16


def test_what_is_wrong_with_a_source_is_said_when_it_is_looked_through(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"no table")
    with pytest.raises(SourceError, match="not a Parquet file"):
        search(tmp_path).whole(frozenset())
    with pytest.raises(SourceError, match="does not exist"):
        search(tmp_path / "nowhere").whole(frozenset())


def test_of_s3_pages_are_read_as_they_come(s3: Seaweed) -> None:
    store = s3.store()
    store.pipe({f"archive/pages/{number:05d}.jpg": b"x" * (number % 7 + 1) for number in range(1_100)})
    storage = {"endpoint_url": s3.environment["AWS_ENDPOINT_URL"], "key": store.key, "secret": store.secret}
    every, first = (find_files(["s3://archive/pages"], (".jpg",), storage, most=most) for most in (None, 1))
    assert len(every.found) == 1_100 and len(first.found) == 1_000
    assert first.found == {path: every.found[path] for path in sorted(every.found)[:1_000]}
    beyond = find_files(["s3://archive/pages"], (".jpg",), storage, most=5_000)
    assert beyond.found == every.found and beyond.patterns == every.patterns
