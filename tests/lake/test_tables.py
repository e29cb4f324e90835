from __future__ import annotations

import datetime
import functools
import gzip
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import polars as pl
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.table import Table as PyIcebergTable

from pipeline.errors import OutputError
from pipeline.lake.delta import DeltaLakeTable
from pipeline.lake.iceberg import IcebergTable
from pipeline.lake.manifest import ManifestTable
from pipeline.lake.snapshots import newest_metadata
from pipeline.lake.table import Commit, DataFile, Removal, Table, fitted, storable

STORE = fsspec.filesystem("file")
Open = Callable[[Path], Table]
KINDS: dict[str, Open] = {
    "parquet": lambda root: ManifestTable(STORE, str(root)),
    "iceberg": lambda root: IcebergTable(STORE, str(root), "archive.restored"),
    "delta": lambda root: DeltaLakeTable(STORE, str(root)),
}


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def write(root: Path, name: str, ids: list[str], **more: pa.Array) -> tuple[DataFile, pa.Schema]:
    table = pa.table({"id": pa.array(ids), "image": pa.array([b"x"] * len(ids), pa.large_binary()), **more})
    root.mkdir(exist_ok=True)
    pq.write_table(table, root / f"{name}.parquet")
    return DataFile(f"{name}.parquet", (root / f"{name}.parquet").stat().st_size, len(ids)), table.schema


def scan(kind: str, root: Path) -> pl.LazyFrame:
    """As a stranger's engine reads the table."""
    if kind == "delta":
        return pl.scan_delta(str(root))
    if kind == "iceberg":
        hint = (root / "metadata/version-hint.text").read_text()
        return pl.scan_iceberg(str(root / f"metadata/{hint}.metadata.json"))
    files = (root / "_symlink_format_manifest/manifest").read_text().split()
    return pl.scan_parquet(files, extra_columns="ignore", missing_columns="insert")


def ids(kind: str, root: Path) -> list[str]:
    found: list[str] = scan(kind, root).select("id").collect()["id"].to_list()
    return sorted(found)


def test_commits_are_counted_and_seen_by_strangers(kind: str, tmp_path: Path) -> None:
    root = tmp_path / "data"
    table = KINDS[kind](root)
    assert table.last_commit() == 0 and table.files() == []
    for number in (1, 2, 3):
        file, schema = write(root, f"run_{number}", [f"{number}a", f"{number}b"])
        table.commit([file], schema, Commit(number, "run", "digest"))
    again = KINDS[kind](root)  # another process
    assert again.last_commit() == 3
    assert sorted(again.files()) == ["run_1.parquet", "run_2.parquet", "run_3.parquet"]
    assert ids(kind, root) == ["1a", "1b", "2a", "2b", "3a", "3b"]


def test_commits_may_come_from_other_threads(kind: str, tmp_path: Path) -> None:
    """As those at intervals do."""
    root = tmp_path / "data"
    table = KINDS[kind](root)
    file, schema = write(root, "run_1", ["a"])
    table.commit([file], schema, Commit(1, "run", "digest"))
    file, schema = write(root, "run_2", ["b"])
    with ThreadPoolExecutor(1) as beside:
        beside.submit(table.commit, [file], schema, Commit(2, "run", "digest")).result()
        assert beside.submit(table.last_commit).result() == 2
    assert table.last_commit() == 2 and ids(kind, root) == ["a", "b"]


def test_a_replacement_takes_the_place_of_everything(kind: str, tmp_path: Path) -> None:
    root = tmp_path / "data"
    for number, replace in ((1, False), (2, False), (3, True), (4, False)):
        file, schema = write(root, f"run_{number}", [f"{number}"])
        KINDS[kind](root).commit([file], schema, Commit(number, "run", "digest"), replace)
    assert KINDS[kind](root).last_commit() == 4
    assert ids(kind, root) == ["3", "4"]


def test_rows_go_in_the_same_step_as_others_take_their_place(kind: str, tmp_path: Path) -> None:
    root = tmp_path / "data"
    first, second = "a" * 16, "b" * 16

    def rows(name: str, keys: list[str]) -> tuple[DataFile, pa.Schema]:
        return write(root, name, [f"{name}:{key[0]}{key[-1]}" for key in keys], source_row=pa.array(keys))

    for number, keys in ((1, [f"{first}-0", f"{first}-1", f"{second}-0"]), (2, [f"{second}-1"]), (3, [f"{first}-2"])):
        file, schema = rows(f"run_{number}", keys)
        KINDS[kind](root).commit([file], schema, Commit(number, "run", "digest"))
    file, schema = rows("run_4", [f"{second}-1", "c" * 16 + "-0"])
    removal = Removal("source_row", rows=(f"{second}-1",), files=(first,))
    KINDS[kind](root).commit([file], schema, Commit(4, "run", "digest"), removal=removal)
    assert KINDS[kind](root).last_commit() == 4
    assert ids(kind, root) == ["run_1:b0", "run_4:b1", "run_4:c0"]
    KINDS[kind](root).commit([], schema, Commit(5, "run", "digest"), removal=Removal("source_row", files=(second,)))
    assert ids(kind, root) == ["run_4:c0"]
    KINDS[kind](root).commit([], schema, Commit(6, "run", "digest"), removal=Removal("source_row", files=("c" * 16,)))
    assert ids(kind, root) == []


def test_a_table_without_rows_has_columns_until_rows_come(kind: str, tmp_path: Path) -> None:
    root = tmp_path / "data"
    file, schema = write(root, "run_2", ["1"])
    KINDS[kind](root).commit([], schema, Commit(1, "run", "digest"))
    assert scan(kind, root).collect_schema().names() == ["id", "image"] and ids(kind, root) == []
    KINDS[kind](root).commit([file], schema, Commit(2, "run", "digest"))
    assert ids(kind, root) == ["1"] and KINDS[kind](root).files() == ["run_2.parquet"]


@pytest.mark.parametrize("kind", ["iceberg", "delta"])
def test_a_table_is_divided_by_values_however_they_are_written(kind: str, tmp_path: Path) -> None:
    shelves = ["A B", "C/D=é%20", None, "A B"]
    table = pa.table({"source_row": [f"{n:016d}-0" for n in range(4)], "shelf": shelves})
    folder = "shelf" if kind == "delta" else "partition_shelf"
    content = table if kind == "delta" else table.append_column(folder, table["shelf"])
    root = tmp_path / "data"
    pads.write_dataset(
        *(content, root), format="parquet", partitioning=[folder], partitioning_flavor="hive", basename_template="x-{i}"
    )
    files = [
        DataFile(str(path.relative_to(root)), path.stat().st_size, pq.read_metadata(path).num_rows)
        for path in sorted(root.rglob("x-*"))
    ]

    def opened() -> Table:
        if kind == "delta":
            return DeltaLakeTable(STORE, str(root), {}, ["shelf"])
        return IcebergTable(STORE, str(root), "archive.restored", {}, {}, ["shelf"])

    opened().commit(files, table.schema, Commit(1, "run", "digest"))
    removal = Removal("source_row", rows=(f"{0:016d}-0",))
    opened().commit([], table.schema, Commit(2, "run", "digest"), removal=removal)
    frame = scan(kind, root)
    assert sorted(map(str, frame.collect()["shelf"].to_list())) == ["A B", "C/D=é%20", "None"]
    assert frame.filter(pl.col("shelf") == "A B").collect()["source_row"].to_list() == [f"{3:016d}-0"]


def test_a_file_that_is_not_committed_is_not_seen(kind: str, tmp_path: Path) -> None:
    root = tmp_path / "data"
    file, schema = write(root, "run_1", ["1"])
    KINDS[kind](root).commit([file], schema, Commit(1, "run", "digest"))
    write(root, "run_2", ["2"])
    assert ids(kind, root) == ["1"]


def test_new_columns_join_the_table(kind: str, tmp_path: Path) -> None:
    root = tmp_path / "data"
    file, schema = write(root, "run_1", ["1"])
    KINDS[kind](root).commit([file], schema, Commit(1, "run", "digest"))
    file, schema = write(root, "run_2", ["2"], shelf=pa.array([7], pa.int64()))
    KINDS[kind](root).commit([file], schema, Commit(2, "run", "digest"))
    file, schema = write(root, "run_3", ["3"])
    KINDS[kind](root).commit([file], schema, Commit(3, "run", "digest"))
    assert ids(kind, root) == ["1", "2", "3"]


def test_a_column_of_another_type_is_refused_and_a_replacement_may_have_it(kind: str, tmp_path: Path) -> None:
    root = tmp_path / kind
    file, schema = write(root, "run_1", ["1"], shelf=pa.array([7], pa.int64()), room=pa.array(["a"]))
    KINDS[kind](root).commit([file], schema, Commit(1, "run", "digest"))
    file, schema = write(root, "run_2", ["2"], shelf=pa.array(["seven"]))
    table = KINDS[kind](root)
    for refused in (table.check, lambda columns: table.commit([file], columns, Commit(2, "run", "digest"))):
        with pytest.raises(OutputError, match="shelf"):
            refused(schema)
    assert ids(kind, root) == ["1"]
    table.check(schema, replace=True)
    table.commit([file], schema, Commit(2, "run", "digest"), replace=True)
    again = KINDS[kind](root).schema()
    assert again is not None and sorted(again.names) == ["id", "image", "shelf"]
    assert scan(kind, root).select("shelf").collect()["shelf"].to_list() == ["seven"]


def test_rows_are_fitted_to_the_types_of_their_table() -> None:
    table = pa.schema([("year", pa.string()), ("place", pa.float64()), ("size", pa.int64())])
    new = pa.schema([("year", pa.int64()), ("place", pa.int32()), ("size", pa.null()), ("more", pa.bool_())])
    assert fitted(new, table) == pa.schema([*table, ("more", pa.bool_())])
    assert fitted(pa.schema([("none", pa.string())]), pa.schema([("none", pa.null())])).types == [pa.string()]
    lists = pa.schema([("tags", pa.list_(pa.string())), ("at", pa.timestamp("us"))])
    assert fitted(pa.schema([("tags", pa.list_(pa.null())), ("at", pa.timestamp("ms"))]), lists) == lists
    fine = pa.schema([("at", pa.timestamp("ns"))])
    with pytest.raises(OutputError, match="'at'"):  # nanoseconds begin in 1677
        fitted(pa.schema([("at", pa.timestamp("us"))]), fine)
    for wrong, message in (
        (pa.schema([("size", pa.float64())]), "'size' is double in the source and int64 in the table.*--fresh"),
        (pa.schema([("place", pa.string())]), "'place' is string"),
        (pa.schema([("Year", pa.string())]), "'Year' and the table's 'year' differ in their case"),
    ):
        with pytest.raises(OutputError, match=message):
            fitted(wrong, table)


def test_a_replacement_may_bring_times_without_a_zone(kind: str, tmp_path: Path) -> None:
    root = tmp_path / "data"
    file, schema = write(root, "run_1", ["1"])
    KINDS[kind](root).commit([file], schema, Commit(1, "run", "digest"))
    file, schema = write(root, "run_2", ["2"], at=pa.array([0], pa.timestamp("us")))
    KINDS[kind](root).commit([file], schema, Commit(2, "run", "digest"), replace=True)
    assert KINDS[kind](root).last_commit() == 2
    assert scan(kind, root).select("at").collect()["at"].to_list() == [datetime.datetime(1970, 1, 1)]


def test_a_divided_table_takes_commits_that_only_take_out(tmp_path: Path) -> None:
    root = tmp_path / "data"
    (root / "partition_shelf=A").mkdir(parents=True)
    table = pa.table({"id": ["1", "2"], "source_row": ["a" * 16 + "-0", "b" * 16 + "-0"], "shelf": ["A", "A"]})
    pq.write_table(table, root / "partition_shelf=A/x.parquet")
    file = DataFile("partition_shelf=A/x.parquet", 1, 2)
    iceberg = IcebergTable(STORE, str(root), "archive.restored", partition_by=["shelf"])
    iceberg.commit([file], table.schema, Commit(1, "run", "digest"))
    without = table.schema.remove(table.schema.get_field_index("shelf"))
    iceberg.check(without)
    iceberg.commit([], without, Commit(2, "run", "digest"), removal=Removal("source_row", files=("a" * 16,)))
    assert ids("iceberg", root) == ["2"]


def test_what_a_table_knows_of_its_columns_does_not_get_into_files(kind: str, tmp_path: Path) -> None:
    """Of Iceberg's field ids in a file, readers want all or none."""
    root = tmp_path / "data"
    file, schema = write(root, "run_1", ["1"], tags=pa.array([["a"]]), place=pa.array([{"x": 1}]))
    KINDS[kind](root).commit([file], schema, Commit(1, "run", "digest"))
    known = KINDS[kind](root).schema()
    assert known is not None
    second = storable(fitted(schema, known))
    assert second.field("tags").type.value_field.metadata is second.field("place").type.field("x").metadata is None
    KINDS[kind](root).check(second)


def test_two_outputs_do_not_share_a_table_of_a_catalog(tmp_path: Path) -> None:
    catalog = {"type": "sql", "uri": f"sqlite:///{tmp_path}/catalog.db", "name": "museum"}
    for name in ("first", "second"):
        file, schema = write(tmp_path / name, "run_1", ["1"])
        table = IcebergTable(STORE, str(tmp_path / name), "archive.restored", catalog)
        if name == "first":
            table.commit([file], schema, Commit(1, "run", "digest"))
            continue
        with pytest.raises(OutputError, match=r"lies at .*/first, not at .*/second; .*output.table_name"):
            table.commit([file], schema, Commit(1, "run", "digest"))


def test_another_writer_who_is_faster_is_not_overrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that carry out the same commit, as after a lost lease: it is made once."""
    catalog = {"type": "sql", "uri": f"sqlite:///{tmp_path}/catalog.db", "name": "museum"}
    root = tmp_path / "data"
    file, schema = write(root, "run_1", ["1"])
    open_table = functools.partial(IcebergTable, STORE, str(root), "archive.restored", catalog)
    open_table().commit([file], schema, Commit(1, "run", "digest"))
    file, schema = write(root, "run_2", ["2"])
    slow = open_table()
    original = PyIcebergTable._do_commit

    def overtaken(*arguments: object, **more: object) -> None:
        monkeypatch.setattr(PyIcebergTable, "_do_commit", original)
        open_table().commit([file], schema, Commit(2, "run", "digest"))
        original(*arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(PyIcebergTable, "_do_commit", overtaken)
    with pytest.raises(CommitFailedException):
        slow.commit([file], schema, Commit(2, "run", "digest"))
    assert sorted(open_table().files()) == ["run_1.parquet", "run_2.parquet"]


def test_metadata_that_was_written_by_half_is_passed_over(tmp_path: Path) -> None:
    root = tmp_path / "data"
    file, schema = write(root, "run_1", ["1"])
    KINDS["iceberg"](root).commit([file], schema, Commit(1, "run", "digest"))
    (root / "metadata/00009-half.metadata.json").write_text('{"last-updated-ms": 17')
    (root / "metadata/00008-empty.metadata.json").write_text("")
    assert KINDS["iceberg"](root).last_commit() == 1
    newest = max((root / "metadata").glob("0000[1-3]-*.json"))
    newest.with_name("00007-packed.gz.metadata.json").write_bytes(gzip.compress(newest.read_bytes()))
    assert newest_metadata(STORE, str(root)) == str(root / "metadata/00007-packed.gz.metadata.json")


def test_the_last_change_does_not_lie_in_the_future(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "data"
    file, schema = write(root, "run_1", ["1"])
    KINDS["iceberg"](root).commit([file], schema, Commit(1, "run", "digest"))
    real = time.time
    monkeypatch.setattr("pipeline.lake.iceberg.time.time", lambda: real() - 3600)
    with pytest.raises(OutputError, match="in the future by this machine's clock"):
        KINDS["iceberg"](root).commit([file], schema, Commit(2, "run", "digest"))


def test_the_history_tells_run_and_recipe(tmp_path: Path) -> None:
    from deltalake import DeltaTable
    from pyiceberg.table import StaticTable

    for kind in KINDS:
        root = tmp_path / kind
        for number in (1, 2):
            file, schema = write(root, f"run_{number}", [f"{number}"])
            KINDS[kind](root).commit([file], schema, Commit(number, f"run{number}", "digest"))
    entry = DeltaTable(str(tmp_path / "delta")).history(1)[0]
    assert entry["conservator.run-id"] == "run2" and entry["conservator.recipe-digest"] == "digest"
    hint = (tmp_path / "iceberg/metadata/version-hint.text").read_text()
    snapshots = StaticTable.from_metadata(str(tmp_path / f"iceberg/metadata/{hint}.metadata.json")).snapshots()
    assert [snapshot.summary["conservator.run-id"] for snapshot in snapshots if snapshot.summary] == ["run1", "run2"]
    manifest = (tmp_path / "parquet/_manifest/00000002.json").read_text()
    assert '"conservator.run-id": "run2"' in manifest


def test_the_whole_list_survives_many_commits(tmp_path: Path) -> None:
    for number in range(1, 46):
        table = ManifestTable(STORE, str(tmp_path))
        table.commit([DataFile(f"{number}.parquet", 1, 1)], pa.schema([]), Commit(number, "run", "digest"))
    assert ManifestTable(STORE, str(tmp_path)).files() == [f"{number}.parquet" for number in range(1, 46)]


def test_every_type_finds_one_that_all_tables_know(tmp_path: Path) -> None:
    odd = pa.table(
        {
            "u8": pa.array([255], pa.uint8()),
            "u64": pa.array([2**64 - 1], pa.uint64()),
            "half": pa.array([0.5], pa.float16()),
            "word": pa.array(["a"]).dictionary_encode(),
            "none": pa.nulls(1),
            "when": pa.array([10**15], pa.timestamp("ns", "Europe/Berlin")),
            "day": pa.array([86_400_000], pa.date64()),
            "at": pa.array([1], pa.time64("ns")),
            "key": pa.array([b"abcd"], pa.binary(4)),
            "deep": pa.array([[{"n": 3}]], pa.list_(pa.struct([("n", pa.uint16())]))),
        }
    )
    plain = odd.cast(storable(odd.schema))
    assert plain["u8"].to_pylist() == [255] and int(plain["u64"][0].as_py()) == 2**64 - 1
    for kind in KINDS:
        root = tmp_path / kind
        root.mkdir()
        pq.write_table(plain, root / "a.parquet")
        KINDS[kind](root).commit([DataFile("a.parquet", 1, 1)], plain.schema, Commit(1, "run", "digest"))
        assert KINDS[kind](root).files() == ["a.parquet"]
