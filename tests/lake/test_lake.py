from __future__ import annotations

import io
import os
import pickle
import uuid
from collections.abc import Callable
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import ConservatorError, ForbiddenURI, SourceError
from pipeline.lake.fetch import UriReader
from pipeline.lake.inputs import readable
from pipeline.lake.keys import read_keys
from pipeline.lake.reader import plan_parts
from pipeline.lake.source import open_source
from pipeline.recipe import Columns
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


def test_partitions_are_columns_if_they_are_not_in_the_file_too(write_table: Write, tmp_path: Path) -> None:
    write_table(ROWS, "source/year=1911/a.parquet")
    write_table(ROWS, "source/b.parquet")
    source = open_source([str(tmp_path / "source")], Columns())
    assert source.passed.names == ["id", "year"]
    parts = plan_parts(source.files, {}, {})
    rows = [row for part in parts for table in part.read(STORE, ["id", "image"]) for row in table.to_pylist()]
    assert [row.get("year") for row in rows] == [None, None, "1911", "1911"]
    write_table([row | {"year": 1912} for row in ROWS], "twice/year=1912/a.parquet")  # as Polars writes them
    source = open_source([str(tmp_path / "twice")], Columns())
    assert source.passed.field("year").type == pa.int64() and source.files[0].constants == {}


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
    assert UriReader(str(tmp_path / "my scans"), (), 9, 1)((tmp_path / "my scans/é.jpg").as_uri()) == b"here"


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
        (pa.array([["a"]], pa.list_(pa.string_view())), pa.array([["a", "b"]]), pa.list_(pa.string())),
        (pa.array([7]), pa.array(["0007"]), pa.string()),
        (pa.array([True]), pa.array([7.5]), pa.string()),
        (pa.array([7], pa.date32()), pa.array(["1911"]), pa.string()),
        (pa.array([7], pa.timestamp("us", "UTC")), pa.array([7], pa.timestamp("us")), pa.string()),
        (pa.array([-1]), pa.array([2**64 - 1], pa.uint64()), pa.decimal128(20, 0)),
        (pa.array(["a"]).dictionary_encode(), pa.array(["b"]), pa.string()),
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
        read = readable(pa.table({"taken": values}))["taken"]
        assert as_type(read, kind).null_count == values.null_count


def test_types_of_databases_become_plain_ones(tmp_path: Path) -> None:
    """As DuckDB writes them."""
    key = uuid.UUID("c0ffee00-0000-4000-8000-000000000001")
    table = {
        "id": pa.ExtensionArray.from_storage(pa.uuid(), pa.array([key.bytes], pa.binary(16))),
        "more": pa.ExtensionArray.from_storage(pa.json_(), pa.array(['{"a": 1}'])),
        "image": pa.array([b"x"], pa.binary_view()),
    }
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    source = open_source([str(tmp_path / "a.parquet")], Columns())
    assert source.passed == pa.schema([("id", pa.string()), ("more", pa.string())])
    (part,) = plan_parts(source.files, {}, {})
    (row,) = (row for table in part.read(STORE, ["id", "image", "more"]) for row in table.to_pylist())
    assert (row["id"], row["image"], row["more"]) == (str(key), b"x", '{"a": 1}')
    keys = read_keys(STORE, source.files, "id", [("id", "=", str(key))])
    assert [known.rows for known in keys.values()] == [1]


def test_categories_become_what_they_stand_for(tmp_path: Path) -> None:
    shelves = pa.array(["A", "B"]).dictionary_encode()
    pq.write_table(pa.table({"id": ["a", "b"], "image": [b"x"] * 2, "shelf": shelves}), tmp_path / "a.parquet")
    source = open_source([str(tmp_path / "a.parquet")], Columns())
    assert source.passed.field("shelf").type == pa.string()
    assert as_type(pa.chunked_array([shelves]), pa.string()).to_pylist() == ["A", "B"]


def test_times_are_cut_off_where_the_table_knows_no_finer_ones() -> None:
    fine = pa.chunked_array([pa.array([1_700_000_000_123_456_789], pa.timestamp("ns"))])
    assert as_type(fine, pa.timestamp("us"))[0].value == 1_700_000_000_123_456
    with pytest.raises(pa.ArrowInvalid, match="out of bounds"):  # and do not wrap around
        as_type(pa.chunked_array([pa.array([-(10**15)], pa.timestamp("ms"))]), pa.timestamp("ns"))


def test_a_row_group_larger_than_memory_is_read_bit_by_bit(tmp_path: Path) -> None:
    images = [os.urandom(1_000_000) for _ in range(40)]
    table = pa.table({"id": [str(n) for n in range(40)], "image": images})
    pq.write_table(table, tmp_path / "a.parquet", write_batch_size=4)  # 4 rows a page
    source = open_source([str(tmp_path / "a.parquet")], Columns())
    (part,) = plan_parts(source.files, {}, {})
    read: list[int] = []

    class Counted(io.FileIO):
        def read(self, size: int | None = -1) -> bytes:
            data = super().read(size) or b""
            read.append(len(data))
            return data

    class Store(LocalFileSystem):  # type: ignore[misc]
        def open(self, path: str, mode: str = "rb", **_: object) -> Counted:
            return Counted(path, mode)

    assert sum(table.num_rows for table in part.read(Store(), ["id", "image"])) == 40
    assert 40_000_000 < sum(read) < 43_000_000 and max(read) < 6_000_000


def test_a_file_that_is_broken_inside_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": ["a"] * 99, "image": [os.urandom(99) for _ in range(99)]}), path)
    content = bytearray(path.read_bytes())
    content[500:5000] = bytes(4500)
    path.write_bytes(content)
    source = open_source([str(path)], Columns())
    (part,) = plan_parts(source.files, {}, {})
    with pytest.raises(SourceError, match=r"a\.parquet is broken"):
        list(part.read(STORE, ["id", "image"]))


def test_links_are_files_and_names_of_images_may_begin_as_cameras_begin_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "scans"
    for name in ("a.jpg", "_MG_0001.JPG", ".b.jpg", "_made/c.jpg", "d.heic", "e.heic"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    (tmp_path / "elsewhere.jpg").write_bytes(b"elsewhere")
    (folder / "link.jpg").symlink_to(tmp_path / "elsewhere.jpg")
    (folder / "broken.jpg").symlink_to(tmp_path / "nowhere.jpg")
    with caplog.at_level("INFO"):
        source = open_source([str(folder)], Columns())
    assert [file.row["id"] for file in source.files] == ["_MG_0001.JPG", "a.jpg", "link.jpg"]
    assert "2 files" in caplog.text and "2 .heic" in caplog.text
    assert UriReader(str(folder), (), 99, 1, links=True)("link.jpg") == b"elsewhere"
    with pytest.raises(ForbiddenURI, match=f"leads to {tmp_path}/elsewhere.jpg, which lies outside"):
        UriReader(str(folder), (), 99, 1)("link.jpg")
    finished = frozenset(file.input for file in source.files)
    (tmp_path / "elsewhere.jpg").write_bytes(b"written anew")
    os.utime(tmp_path / "elsewhere.jpg", (1, 1))
    assert [file.row["id"] for file in open_source([str(folder)], Columns(), finished).files] == ["link.jpg"]


def test_every_error_keeps_its_message_between_workers() -> None:
    def below(kind: type[ConservatorError]) -> list[type[ConservatorError]]:
        return [kind, *(deeper for child in kind.__subclasses__() for deeper in below(child))]

    for kind in below(ConservatorError):
        again = pickle.loads(pickle.dumps(kind("what and why")))
        assert type(again) is kind and again.message == "what and why"
