from __future__ import annotations

from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from pipeline.lake import scan
from pipeline.lake.scan import Scan

STORE = fsspec.filesystem("file")
SCHEMA = pa.schema([("id", pa.int64()), ("later", pa.string()), ("place", pa.string())])
NUMBERS = {"number": pads.field("id")}


@pytest.fixture
def table(tmp_path: Path) -> Scan:
    """Thirty files of ten rows each, in row groups of four; what is in a folder belongs to a partition."""
    paths = []
    for file in range(30):
        path = tmp_path / f"place={'here' if file % 2 else 'there'}/{file:02d}.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"id": range(10 * file, 10 * file + 10)}), path, row_group_size=4)
        paths.append(str(path))
    return Scan(STORE, str(tmp_path), tuple(paths), SCHEMA)


def numbers(found: list[tuple[str, pa.RecordBatch]]) -> list[int]:
    return [number for _, batch in found for number in batch["number"].to_pylist()]


def test_rows_come_in_the_order_of_the_table_with_the_paths_of_their_files(table: Scan) -> None:
    found = list(table.batches(NUMBERS))
    assert numbers(found) == list(range(300))
    assert all(table.paths[batch["number"][0].as_py() // 10] == path for path, batch in found)
    assert table.table(NUMBERS)["number"].to_pylist() == list(range(300))


def test_conditions_and_files_narrow_what_is_read(table: Scan) -> None:
    here = Scan(table.store, table.root, table.paths, table.schema, pads.field("place") == "here")
    assert numbers(list(here.batches(NUMBERS, pads.field("id") < 35))) == [*range(10, 20), *range(30, 35)]
    Path(table.paths[7]).write_bytes(b"broken")
    assert numbers(list(table.batches(NUMBERS, paths=table.paths[3:5]))) == list(range(30, 50))
    with pytest.raises(pa.ArrowInvalid):
        list(table.batches(NUMBERS))


def test_columns_that_a_file_lacks_are_null_and_a_table_of_no_files_is_empty(table: Scan) -> None:
    columns = {"text": pads.field("later"), "place": pads.field("place")}
    found = table.table(columns)
    assert found["text"].null_count == 300 and found["place"].to_pylist()[9:11] == ["there", "here"]
    nothing = Scan(table.store, table.root, (), table.schema)
    assert nothing.table(columns).num_rows == 0 and nothing.table(columns).column_names == ["text", "place"]


def test_no_more_files_are_open_than_are_read_ahead(table: Scan, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    dataset = pads.dataset

    def counted(paths: list[str], **options: object) -> pads.Dataset:
        opened.extend(paths)
        return dataset(paths, **options)

    monkeypatch.setattr(scan.pads, "dataset", counted)
    rows = table.batches(NUMBERS)
    for seen in range(25):
        next(rows)  # three row groups a file
        assert len(opened) <= seen // 3 + 1 + scan.AHEAD
    rows.close()
    assert len(opened) <= 9 + scan.AHEAD
