from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ConservatorError, ForbiddenURI, OutputError, SourceError, StoreUnavailable, UnreadableImage
from pipeline.imaging.cells import redacted, uri_of
from pipeline.lake import fetch
from pipeline.lake.fetch import UriReader
from pipeline.lake.manifest import ManifestTable
from pipeline.lake.output import Output, Turn, open_output
from pipeline.lake.reader import plan_parts
from pipeline.lake.source import open_source
from pipeline.recipe import Columns
from pipeline.recipe import Output as Settings
from pipeline.stages.table import as_type

Write = Callable[..., Path]
STORE = fsspec.filesystem("file")
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


def test_files_of_other_types_are_read_together(write_table: Write, tmp_path: Path) -> None:
    write_table(ROWS, "source/a.parquet")
    write_table([{"id": "c", "image": 3, "shelf": 1}], "source/b.parquet")
    source = open_source([str(tmp_path / "source")], Columns())
    assert source.passed == pa.schema([("id", pa.string()), ("shelf", pa.int64())])


def test_partitions_are_columns_and_must_not_stand_in_the_file_too(write_table: Write, tmp_path: Path) -> None:
    write_table(ROWS, "source/year=1911/a.parquet")
    write_table(ROWS, "source/b.parquet")
    source = open_source([str(tmp_path / "source")], Columns())
    assert source.passed.names == ["id", "year"]
    parts = plan_parts(source.files, {}, {})
    rows = [row for part in parts for table in part.read(STORE, ["id", "image"]) for row in table.to_pylist()]
    assert [row.get("year") for row in rows] == [None, None, "1911", "1911"]
    write_table(ROWS, "twice/id=7/a.parquet")
    with pytest.raises(SourceError, match="folder name"):
        open_source([str(tmp_path / "twice")], Columns())


def test_an_id_that_is_the_images_uri_is_kept(write_table: Write) -> None:
    path = write_table([{"uri": "a.jpg"}])
    assert open_source([str(path)], Columns(id="uri", image="uri")).passed.names == ["uri"]


def test_names_with_marks_of_globs_are_found(write_table: Write, tmp_path: Path) -> None:
    write_table(ROWS, "scans [1910] a+b/part 1.parquet")
    assert open_source([str(tmp_path / "scans [1910] a+b")], Columns()).rows == 2


def test_a_file_may_have_any_ending_and_a_folder_only_those_of_parquet(write_table: Write, tmp_path: Path) -> None:
    for name in ("a.PARQUET", "b.parq", "c.pq", "d.table", "_e.parquet"):
        write_table(ROWS, f"source/{name}")
    write_table(ROWS, "source/bare")
    places = [("source", 6), ("source/*", 6), ("source/d.table", 2), ("source/_e.parquet", 2), ("source/bare", 2)]
    for place, rows in places:
        assert open_source([str(tmp_path / place)], Columns()).rows == rows


def test_a_file_that_is_named_in_several_ways_is_read_once(write_table: Write, tmp_path: Path) -> None:
    write_table(ROWS, "source/a.parquet")
    (tmp_path / "link").symlink_to("source")
    ways = ["source", "source/", "source//a.parquet", "source/../source/a.parquet", "link", "link/*.parquet"]
    assert open_source([f"{tmp_path}/{way}" for way in ways], Columns()).rows == 2
    with pytest.raises(SourceError, match="empty"):
        open_source([""], Columns())


def test_file_uris_may_be_percent_encoded(write_table: Write, tmp_path: Path) -> None:
    path = write_table(ROWS, "my scans/a b.parquet")
    assert open_source([path.as_uri()], Columns()).rows == open_source([f"file://{path}"], Columns()).rows == 2
    (tmp_path / "my scans/é.jpg").write_bytes(b"here")
    assert reader(tmp_path / "my scans")((tmp_path / "my scans/é.jpg").as_uri()) == b"here"


def test_only_what_the_source_would_list_is_inside_it(write_table: Write, tmp_path: Path) -> None:
    path = write_table(ROWS, "scans/a.parquet")
    inside = str(tmp_path.resolve() / "scans/out/data/part.parquet")
    for place, would in [
        (path, False),
        (path.parent / "*.parquet", False),
        (path.parent, True),
        (tmp_path / "**/*", True),
    ]:
        assert open_source([str(place)], Columns()).would_read(inside) is would


@pytest.mark.parametrize(
    ("name", "column", "passed"),
    [
        ("mask", pa.array([True, False]), True),
        ("truth", pa.array([1, 0]), True),
        ("references", pa.array([[1], [2]]), True),
        ("references", pa.array([["a.jpg"], None]), True),
        ("mask", pa.array([b"x", None]), False),
        ("references", pa.array([[b"x"], None]), False),
    ],
)
def test_columns_that_are_not_ours_pass_through(tmp_path: Path, name: str, column: pa.Array, passed: bool) -> None:
    pq.write_table(pa.table({"id": ["a", "b"], "image": [b"x", b"y"], name: column}), tmp_path / "a.parquet")
    source = open_source([str(tmp_path / "a.parquet")], Columns())
    assert (name in source.passed.names) is passed


def test_a_named_column_without_images_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a"], "image": [b"x"], "flag": [True]}), tmp_path / "a.parquet")
    with pytest.raises(SourceError, match="'flag' has the type bool"):
        open_source([str(tmp_path / "a.parquet")], Columns(mask="flag"))


@pytest.mark.parametrize(
    ("first", "second", "common"),
    [
        (pa.array([2**60]), pa.array([0.5]), pa.string()),
        (pa.array([1], pa.int8()), pa.array([2**60]), pa.int64()),
        (pa.array([-(10**16)], pa.timestamp("us")), pa.array([0], pa.timestamp("ns")), pa.string()),
        (pa.array(["text"]), pa.array([["a", "b"]]), pa.list_(pa.string())),
        (pa.array(["text"]), pa.array([None], pa.null()), pa.string()),
    ],
)
def test_a_type_is_found_that_holds_every_value(
    tmp_path: Path, first: pa.Array, second: pa.Array, common: pa.DataType
) -> None:
    for name, values in (("a", first), ("b", second)):
        pq.write_table(pa.table({"id": ["a"], "image": [b"x"], "taken": values}), tmp_path / f"{name}.parquet")
    kind = open_source([str(tmp_path)], Columns()).passed.field("taken").type
    assert kind == common
    for values in (first, second):
        assert as_type(pa.chunked_array([values]), kind).null_count == values.null_count


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


@pytest.mark.parametrize("text", ["x" * 300, "data:image/png;base64,AAAA", "A" * 100_000, "a\0b"])
def test_text_that_is_no_uri_fails_at_once_and_is_not_repeated_whole(tmp_path: Path, text: str) -> None:
    with pytest.raises(UnreadableImage) as caught:
        reader(tmp_path)(text)
    assert caught.value.attempts == 1 and len(caught.value.message) < 3000
    assert len(uri_of(text) or "") <= 3000


def test_passing_errors_are_tried_again_within_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def flaky(uri: str, storage: Any) -> Any:
        calls.append(uri)
        if len(calls) < 3:
            raise TimeoutError("slow")
        return real(uri, storage)

    real = fetch.open_store
    (tmp_path / "a.jpg").write_bytes(b"here")
    monkeypatch.setattr(fetch, "open_store", flaky)
    monkeypatch.setattr("pipeline.lake.attempts.FIRST_WAIT", 0.001)
    assert reader(tmp_path)("a.jpg") == b"here"
    calls.clear()
    with pytest.raises(StoreUnavailable, match="2 attempts") as caught:
        reader(tmp_path, attempts=2)("a.jpg")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.attempts, again.transient, again.message) == (2, True, caught.value.message)


def test_no_secret_is_shown() -> None:
    assert redacted("s3://key:secret@bucket/path?token=abc") == "s3://bucket/path"
    assert redacted("/local/path") == "/local/path"


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return open_output(str(tmp_path / "out"))


def began(output: Output, turn: Turn, state: str = "running", digest: str = "digest") -> None:
    run = {"run_id": turn.run_id, "recipe_digest": digest, "generation": turn.generation, "replaces": turn.replaces}
    run |= {"retries": turn.retries}
    output.begin(run, "")
    if state == "finished":
        output.finish(run)


def test_a_run_after_a_finished_one_adds_to_its_table(output: Output) -> None:
    first = output.turn("one", "digest", fresh=False)
    assert first == Turn("one", 1, replaces=False, resumed=False)
    began(output, first, "finished")
    assert output.turn("two", "digest", fresh=False) == Turn("two", 1, replaces=False, resumed=False)


def test_a_run_after_a_killed_one_goes_on_under_its_name(output: Output) -> None:
    began(output, output.turn("one", "digest", fresh=False))
    assert output.turn("two", "digest", fresh=False) == Turn("one", 1, replaces=False, resumed=True)
    began(output, output.turn("two", "digest", fresh=True))
    assert output.turn("three", "digest", fresh=False) == Turn("two", 2, replaces=True, resumed=True)


def test_another_recipe_does_not_mix_unasked(output: Output) -> None:
    began(output, output.turn("one", "digest", fresh=False), "finished")
    with pytest.raises(OutputError, match=r"another recipe .*--fresh"):
        output.turn("two", "other", fresh=False)
    assert output.turn("two", "other", fresh=True) == Turn("two", 2, replaces=True, resumed=False)
    mixed = open_output(output.uri, Settings(mixed=True))
    assert mixed.turn("two", "other", fresh=False) == Turn("two", 1, replaces=False, resumed=False)


def test_rows_are_only_tried_again_where_a_run_is_finished(output: Output) -> None:
    with pytest.raises(OutputError, match="no run"):
        output.turn("one", "digest", fresh=False, retries=True)
    began(output, output.turn("one", "digest", fresh=False))
    with pytest.raises(OutputError, match="not finished"):
        output.turn("two", "digest", fresh=False, retries=True)
    began(output, output.turn("one", "digest", fresh=False), "finished")
    again = output.turn("two", "digest", fresh=False, retries=True)
    assert again == Turn("two", 1, replaces=False, resumed=False, retries=True)
    began(output, again)  # killed: it may be asked for again, and a plain run goes on with what it left
    assert output.turn("three", "digest", False, retries=True) == Turn("two", 1, False, resumed=True, retries=True)
    assert output.turn("three", "digest", fresh=False) == Turn("two", 1, False, resumed=True)


def test_foreign_data_is_not_touched(output: Output, tmp_path: Path) -> None:
    (tmp_path / "out/data").mkdir(parents=True)
    (tmp_path / "out/data/theirs.parquet").touch()
    for fresh in (False, True):
        with pytest.raises(OutputError, match="something else"):
            output.turn("one", "digest", fresh)
    output.tidy(ManifestTable(STORE, output.data), 1)
    assert (tmp_path / "out/data/theirs.parquet").exists()


def test_an_output_of_an_older_version_is_not_gone_on_with(output: Output) -> None:
    output.write("state/run.json", '{"run_id": "one", "state": "finished"}')
    with pytest.raises(OutputError, match="older version"):
        output.turn("two", "digest", fresh=False)


def test_every_error_keeps_its_message_between_workers() -> None:
    def below(kind: type[ConservatorError]) -> list[type[ConservatorError]]:
        return [kind, *(deeper for child in kind.__subclasses__() for deeper in below(child))]

    for kind in below(ConservatorError):
        again = pickle.loads(pickle.dumps(kind("what and why")))
        assert type(again) is kind and again.message == "what and why"
