"""Tables of others as sources, written by their own libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from pyiceberg.catalog import load_catalog
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
from pyiceberg.typedef import Record

from pipeline.errors import SourceError
from pipeline.lake.exchanges import find_exchanges
from pipeline.lake.keys import read_keys
from pipeline.lake.reader import plan_parts
from pipeline.lake.source import Source, open_source
from pipeline.recipe import Columns
from pipeline.recipe import Source as Settings

STORE = fsspec.filesystem("file")


def table(*ids: str, **more: Any) -> pa.Table:
    return pa.table({"id": list(ids), "image": [name.encode() for name in ids], "year": [1911] * len(ids)} | more)


def read(source: Source, image: str = "image") -> list[dict[str, Any]]:
    keys = read_keys(source.store, source.files, "id")
    wanted = {key: found.wanted for key, found in keys.items() if found.wanted is not None}
    columns = ["id", image, *source.passed.names]
    parts = plan_parts(source.files, wanted, {})
    rows = [row for part in parts for batch in part.read(source.store, columns) for row in batch.to_pylist()]
    return sorted(rows, key=lambda row: str(row["id"]))


def ids(source: Source) -> list[str]:
    return [row["id"] for row in read(source)]


def test_a_delta_table_is_read_at_a_version(tmp_path: Path) -> None:
    root = str(tmp_path / "table")
    write_deltalake(root, table("a", "b"), partition_by=["year"])
    write_deltalake(root, table("c"), mode="append")
    DeltaTable(root).delete("id = 'a'")
    source = open_source([root], Columns())
    assert ids(source) == ["b", "c"] and read(source)[0]["year"] == 1911
    assert source.passed.field("year").type == pa.int64()
    assert ids(open_source([root], Columns(), settings=Settings(version=1))) == ["a", "b", "c"]
    for version in (9, "old"):
        with pytest.raises(SourceError, match=str(version)):
            open_source([root], Columns(), settings=Settings(version=version))


def test_rows_that_a_deletion_vector_takes_out_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = str(tmp_path / "table")
    write_deltalake(root, table("a", "b", "c"))
    before = open_source([root], Columns())

    def vectors(self: DeltaTable) -> pa.RecordBatchReader:  # the library reads them and does not write them yet
        batch = pa.record_batch({"filepath": self.file_uris(), "selection_vector": [[True, False, True]]})
        return pa.RecordBatchReader.from_batches(batch.schema, [batch])

    monkeypatch.setattr(DeltaTable, "deletion_vectors", vectors)
    after = open_source([root], Columns(), frozenset(file.input for file in before.files))
    assert ids(after) == ["a", "c"]
    (exchange,) = find_exchanges(after, {file.input for file in before.files})
    assert exchange.old == {file.input for file in before.files}


@pytest.fixture
def iceberg(tmp_path: Path) -> Any:
    catalog = load_catalog("test", type="sql", uri=f"sqlite:///{tmp_path}/catalog.db", warehouse=f"file://{tmp_path}")
    catalog.create_namespace("archive")
    return catalog.create_table("archive.scans", schema=table("a").schema, location=f"file://{tmp_path}/scans")


def test_an_iceberg_table_is_read_at_a_snapshot(iceberg: Any, tmp_path: Path) -> None:
    assert open_source([str(tmp_path / "scans")], Columns()).files == ()
    iceberg.append(table("a", "b"))
    first = iceberg.current_snapshot().snapshot_id
    iceberg.append(table("c"))
    iceberg.delete("id = 'a'")
    assert ids(open_source([str(tmp_path / "scans")], Columns())) == ["b", "c"]
    assert ids(open_source([str(tmp_path / "scans")], Columns(), settings=Settings(version=first))) == ["a", "b"]
    iceberg.manage_snapshots().create_tag(first, "autumn").commit()
    tagged = Settings(version="autumn")
    assert ids(open_source([str(tmp_path / "scans")], Columns(), settings=tagged)) == ["a", "b"]
    by_name = Settings(catalog={"type": "sql", "uri": f"sqlite:///{tmp_path}/catalog.db", "name": "test"})
    assert ids(open_source(["archive.scans"], Columns(), settings=by_name)) == ["b", "c"]
    with pytest.raises(SourceError, match=r"no snapshot 17.*autumn"):
        open_source([str(tmp_path / "scans")], Columns(), settings=Settings(version=17))
    with pytest.raises(SourceError, match=r"no table 'archive\.maps'"):
        open_source(["archive.maps"], Columns(), settings=by_name)


def test_a_column_that_was_renamed_has_its_new_name_in_old_files_too(iceberg: Any, tmp_path: Path) -> None:
    iceberg.append(table("a"))
    with iceberg.update_schema() as update:
        update.rename_column("year", "taken")
    with iceberg.update_schema() as update:
        update.add_column("year", update._schema.find_type("id"))  # another one of the old name
    iceberg.append(pa.table({"id": ["b"], "image": [b"b"], "taken": [1912], "year": ["no number"]}))
    rows = read(open_source([str(tmp_path / "scans")], Columns()))
    assert [(row["id"], row["taken"], row.get("year")) for row in rows] == [("a", 1911, None), ("b", 1912, "no number")]


def test_files_that_were_there_before_the_table_have_its_columns(tmp_path: Path, iceberg: Any) -> None:
    """As a Hive table becomes an Iceberg one: no field ids, and partitions that stand in no file."""
    folder = tmp_path / "hive/year=1912"
    folder.mkdir(parents=True)
    pq.write_table(table("a").drop_columns(["year"]), folder / "a.parquet")
    with iceberg.update_spec() as spec:
        spec.add_identity("year")
    path = folder / "a.parquet"
    iceberg.transaction().set_properties(
        {"schema.name-mapping.default": iceberg.schema().name_mapping.model_dump_json()}
    ).commit_transaction()
    file = DataFile.from_args(
        content=DataFileContent.DATA,
        file_path=f"file://{path}",
        file_format=FileFormat.PARQUET,
        partition=Record(1912),
        record_count=1,
        file_size_in_bytes=path.stat().st_size,
    )
    file.spec_id = iceberg.spec().spec_id
    with iceberg.transaction() as transaction, transaction.update_snapshot().fast_append() as append:
        append.append_data_file(file)
    with iceberg.update_schema() as update:
        update.rename_column("image", "scan")
    source = open_source([str(tmp_path / "scans")], Columns(image="scan"))
    assert [(row["id"], row["scan"], row["year"]) for row in read(source, "scan")] == [("a", b"a", 1912)]


def test_files_of_a_table_may_lie_outside_its_folder(tmp_path: Path, iceberg: Any) -> None:
    iceberg.transaction().set_properties({"write.data.path": f"file://{tmp_path}/elsewhere"}).commit_transaction()
    iceberg.append(table("a", "b"))
    first = open_source([str(tmp_path / "scans")], Columns())
    assert all("/elsewhere/" in file.path for file in first.files)
    finished = frozenset(file.input for file in first.files)
    iceberg.overwrite(table("a", "b", "c"))
    source = open_source([str(tmp_path / "scans")], Columns(), finished)
    (exchange,) = find_exchanges(source, finished)
    assert exchange.old == finished and ids(source) == ["a", "b", "c"]


def test_files_that_a_table_has_lost_go_as_the_new_ones_come(tmp_path: Path) -> None:
    root = str(tmp_path / "table")
    for name in ("a", "b", "c"):
        write_deltalake(root, table(name), mode="append")
    first = open_source([root], Columns())
    finished = frozenset(file.input for file in first.files)
    assert find_exchanges(first, frozenset()) == ()
    write_deltalake(root, table("d"), mode="append")
    assert find_exchanges(open_source([root], Columns(), finished), finished) == ()
    DeltaTable(root).optimize.compact()
    source = open_source([root], Columns(), finished)
    (exchange,) = find_exchanges(source, finished)
    assert exchange.old == finished and len(exchange.new) == 1 and ids(source) == ["a", "b", "c", "d"]


def test_a_version_of_what_has_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(SourceError, match=r"source\.version is 3"):
        open_source([str(tmp_path)], Columns(), settings=Settings(version=3))
