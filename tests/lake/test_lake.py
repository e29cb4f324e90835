from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest

from pipeline.errors import ConservatorError, ForbiddenURI, OutputError, SourceError, StoreUnavailable, UnreadableImage
from pipeline.imaging.cells import redacted
from pipeline.lake import fetch
from pipeline.lake.fetch import UriReader
from pipeline.lake.output import open_output
from pipeline.lake.source import open_source
from pipeline.recipe import Columns

Write = Callable[..., Path]
ROWS = [{"id": "a", "image": b"x"}, {"id": "b", "image": b"y"}]


def test_files_are_found_by_path_folder_and_glob(write_table: Write, tmp_path: Path) -> None:
    write_table(ROWS, "source/year=2020/a.parquet")
    write_table(ROWS, "source/year=2021/b.parquet")
    write_table(ROWS, "source/_staging/c.parquet")
    (tmp_path / "source/readme.txt").write_text("not a table")
    for place, rows in [("source", 4), ("source/*/a.parquet", 2), ("source/year=2021/b.parquet", 2)]:
        assert open_source([str(tmp_path / place)], Columns()).rows == rows
    both = [str(tmp_path / "source/year=2020"), str(tmp_path / "source")]
    assert open_source(both, Columns()).rows == 4


def test_a_missing_column_is_named_with_the_nearest_one(write_table: Write) -> None:
    path = write_table([{"id": "a", "imag": b"x"}])
    with pytest.raises(SourceError, match=r"columns\.image=imag"):
        open_source([str(path)], Columns())


def test_an_optional_column_that_the_recipe_names_must_exist(write_table: Write) -> None:
    path = write_table([{"id": "a", "image": b"x", "text": "t"}])
    open_source([str(path)], Columns())
    with pytest.raises(SourceError, match="txt"):
        open_source([str(path)], Columns(caption="txt"))


def test_a_column_without_images_in_any_file_is_refused(write_table: Write) -> None:
    path = write_table([{"id": "a", "image": 3}])
    with pytest.raises(SourceError, match="int64"):
        open_source([str(path)], Columns())


@pytest.mark.parametrize("place", ["nothing", "empty", "text.parquet", "*.parquet/none"])
def test_a_place_without_a_table_is_refused_by_name(tmp_path: Path, place: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.parquet").write_text("this is not Parquet")
    with pytest.raises(SourceError, match=place.split("/")[0].replace("*", r"\*")):
        open_source([str(tmp_path / place)], Columns())


def test_files_of_other_types_make_groups_of_their_own(write_table: Write, tmp_path: Path) -> None:
    write_table(ROWS, "source/a.parquet")
    write_table([{"id": "c", "image": 3, "shelf": 1}], "source/b.parquet")
    source = open_source([str(tmp_path / "source")], Columns())
    assert [len(group) for group in source.groups()] == [1, 1]
    assert source.passed == pa.schema([("id", pa.string()), ("shelf", pa.int64())])


def test_a_limit_takes_the_files_that_hold_the_first_rows(write_table: Write, tmp_path: Path) -> None:
    for name in "abc":
        write_table(ROWS, f"source/{name}.parquet")
    groups = open_source([str(tmp_path / "source")], Columns()).groups(limit=3)
    assert [Path(file.path).name for group in groups for file in group] == ["a.parquet", "b.parquet"]


def test_partitions_are_columns_and_must_not_stand_in_the_file_too(write_table: Write, tmp_path: Path) -> None:
    write_table(ROWS, "source/year=1911/a.parquet")
    write_table(ROWS, "source/b.parquet")
    source = open_source([str(tmp_path / "source")], Columns())
    assert source.passed.names == ["id", "year"] and len(source.groups()) == 2
    write_table(ROWS, "twice/id=7/a.parquet")
    with pytest.raises(SourceError, match="folder name"):
        open_source([str(tmp_path / "twice")], Columns())


def test_an_id_that_is_the_images_uri_is_kept(write_table: Write) -> None:
    path = write_table([{"uri": "a.jpg"}])
    assert open_source([str(path)], Columns(id="uri", image="uri")).passed.names == ["uri"]


def test_names_with_marks_of_globs_are_found(write_table: Write, tmp_path: Path) -> None:
    write_table(ROWS, "scans [1910] a+b/part 1.parquet")
    assert open_source([str(tmp_path / "scans [1910] a+b")], Columns()).rows == 2


def reader(base: Path, **changes: Any) -> UriReader:
    return UriReader(**({"base": str(base), "allowed": (), "max_bytes": 1000, "attempts": 3} | changes))


def test_uris_are_read_beside_the_table_and_under_allowed_places(tmp_path: Path) -> None:
    (tmp_path / "table").mkdir()
    (tmp_path / "table/a.jpg").write_bytes(b"inside")
    (tmp_path / "b.jpg").write_bytes(b"outside")
    read = reader(tmp_path / "table")
    assert read("a.jpg") == read(str(tmp_path / "table/a.jpg")) == read(f"file://{tmp_path}/table/a.jpg") == b"inside"
    for uri in ("../b.jpg", str(tmp_path / "b.jpg"), "x/../../b.jpg", "http://example.com/a.jpg", "/etc/passwd"):
        with pytest.raises(ForbiddenURI, match="allowed_uris"):
            read(uri)
    assert reader(tmp_path / "table", allowed=(str(tmp_path),))("../b.jpg") == b"outside"


def test_a_query_belongs_to_the_uri() -> None:
    with fsspec.open("memory://scans/a.jpg#5?id=2", "wb") as file:
        file.write(b"the fifth")
    assert UriReader("memory://scans", (), 100, 1)("a.jpg#5?id=2") == b"the fifth"


def test_a_file_that_is_not_there_fails_at_once(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match=r"gone\.jpg") as caught:
        reader(tmp_path)("gone.jpg")
    assert caught.value.attempts == 1


def test_passing_errors_are_tried_again_within_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def flaky(uri: str) -> Any:
        calls.append(uri)
        if len(calls) < 3:
            raise TimeoutError("slow")
        return real(uri)

    real = fetch.open_store
    (tmp_path / "a.jpg").write_bytes(b"here")
    monkeypatch.setattr(fetch, "open_store", flaky)
    monkeypatch.setattr(fetch, "FIRST_WAIT", 0.001)
    assert reader(tmp_path)("a.jpg") == b"here"
    calls.clear()
    with pytest.raises(StoreUnavailable, match="2 attempts") as caught:
        reader(tmp_path, attempts=2)("a.jpg")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.attempts, again.transient, again.message) == (2, True, caught.value.message)


def test_no_secret_is_shown() -> None:
    assert redacted("s3://key:secret@bucket/path?token=abc") == "s3://bucket/path"
    assert redacted("/local/path") == "/local/path"


def test_an_output_with_a_finished_run_is_not_overwritten_unasked(tmp_path: Path) -> None:
    output = open_output(str(tmp_path / "out"))
    output.begin({"run_id": "one"}, "", fresh=False)
    (tmp_path / "out/data/one_0.parquet").touch()
    output.finish({"run_id": "one"})
    with pytest.raises(OutputError, match="--fresh"):
        output.begin({"run_id": "two"}, "", fresh=False)
    output.begin({"run_id": "two"}, "", fresh=True)
    assert (tmp_path / "out/data/one_0.parquet").exists()  # until the new run is whole
    (tmp_path / "out/data/two_0.parquet").touch()
    output.finish({"run_id": "two"})
    assert [path.name for path in (tmp_path / "out/data").iterdir()] == ["two_0.parquet"]


def test_what_an_unfinished_run_left_is_replaced(tmp_path: Path) -> None:
    output = open_output(str(tmp_path / "out"))
    output.begin({"run_id": "one"}, "", fresh=False)
    (tmp_path / "out/data/one_0.parquet").touch()
    output.begin({"run_id": "two"}, "", fresh=False)
    assert list((tmp_path / "out/data").iterdir()) == []


def test_a_crash_while_replacing_keeps_the_finished_run(tmp_path: Path) -> None:
    output = open_output(str(tmp_path / "out"))
    output.begin({"run_id": "one"}, "", fresh=False)
    (tmp_path / "out/data/one_0.parquet").touch()
    output.finish({"run_id": "one"})
    output.begin({"run_id": "two"}, "", fresh=True)
    (tmp_path / "out/data/two_0.parquet").touch()
    output.begin({"run_id": "three"}, "", fresh=False)
    assert [path.name for path in (tmp_path / "out/data").iterdir()] == ["one_0.parquet"]


def test_a_crash_before_the_old_files_are_gone_keeps_the_new_run(tmp_path: Path) -> None:
    output = open_output(str(tmp_path / "out"))
    output.begin({"run_id": "one"}, "", fresh=False)
    (tmp_path / "out/data/one_0.parquet").touch()
    output.finish({"run_id": "one"})
    output.begin({"run_id": "two"}, "", fresh=True)
    (tmp_path / "out/data/two_0.parquet").touch()
    output.write("state/run.json", '{"run_id": "two", "state": "whole"}')
    with pytest.raises(OutputError, match="two"):
        output.begin({"run_id": "three"}, "", fresh=False)
    assert [path.name for path in (tmp_path / "out/data").iterdir()] == ["two_0.parquet"]


def test_foreign_data_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "out/data").mkdir(parents=True)
    (tmp_path / "out/data/theirs.parquet").touch()
    with pytest.raises(OutputError, match="something else"):
        open_output(str(tmp_path / "out")).begin({"run_id": "one"}, "", fresh=True)


def test_every_error_keeps_its_message_between_workers() -> None:
    def below(kind: type[ConservatorError]) -> list[type[ConservatorError]]:
        return [kind, *(deeper for child in kind.__subclasses__() for deeper in below(child))]

    for kind in below(ConservatorError):
        again = pickle.loads(pickle.dumps(kind("what and why")))
        assert type(again) is kind and again.message == "what and why"
