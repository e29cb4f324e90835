"""Runs that follow each other on one output, on a real Ray."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from pyiceberg.table import StaticTable

from jobs.cli import main
from pipeline import flow
from pipeline.drain import Drain
from pipeline.errors import Interrupted, OutputError, RecipeError, SourceError
from pipeline.lake import search
from pipeline.plan import prepare
from pipeline.recipe import Recipe, load_recipe
from tests.conftest import ONE_ACTOR, ROOT, encoded, noise

Write = Callable[..., Path]

pytestmark = pytest.mark.usefixtures("ray_session")


def kinds(fast: str) -> list[Any]:
    """The kinds of table; but for one they are left to the slow tests."""
    others = (kind for kind in ("parquet", "iceberg", "delta") if kind != fast)
    return [fast, *(pytest.param(kind, marks=pytest.mark.slow) for kind in others)]


def picture(seed: int, side: int = 24) -> bytes:
    return encoded(noise(side, side, seed))


def rows(*ids: str, seed: int = 0) -> list[dict[str, Any]]:
    return [{"id": name, "image": picture(seed + number), "year": 1911} for number, name in enumerate(ids)]


def recipe_of(tmp_path: Path, *overrides: str, source: str = "source") -> Recipe:
    places = {"source__uri": [str(tmp_path / source)], "output__uri": str(tmp_path / "out")}
    return load_recipe(overrides=[ONE_ACTOR, *overrides], **places)


def table_of(tmp_path: Path, kind: str = "parquet") -> pl.DataFrame:
    """As a stranger's engine reads it."""
    root = tmp_path / "out/data"
    if kind == "delta":
        return pl.scan_delta(str(root)).collect()
    if kind == "iceberg":
        return pl.scan_iceberg(str(metadata(root))).collect()
    files = (root / "_symlink_format_manifest/manifest").read_text().split()
    return pl.from_arrow(duckdb.read_parquet(files, union_by_name=True).to_arrow_table())


def metadata(root: Path) -> Path:
    return root / f"metadata/{(root / 'metadata/version-hint.text').read_text()}.metadata.json"


def ids(tmp_path: Path, kind: str = "parquet") -> list[str]:
    return sorted(table_of(tmp_path, kind)["id"].to_list())


def ruin(path: Path) -> None:
    """Spoil what is in a file, which still looks the same from outside."""
    facts = path.stat()
    path.write_bytes(bytes(facts.st_size))
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


@pytest.mark.parametrize("kind", kinds("iceberg"))
def test_a_schedule_reads_only_what_is_new(write_table: Write, tmp_path: Path, kind: str) -> None:
    recipe = recipe_of(tmp_path, f"output.table={kind}")
    expected, read = [], []
    for number in range(3):
        path = write_table(rows(f"{number}a", f"{number}b", seed=number), f"source/{number}.parquet")
        size = path.stat().st_size
        summary = flow.restore(prepare(recipe))
        expected += [f"{number}a", f"{number}b"]
        assert ids(tmp_path, kind) == expected and (summary.rows, summary.files_read) == (2, 1)
        assert 0 < summary.bytes_read < size
        read.append(summary.run_id)
        ruin(path)  # it must not be looked into again
    assert not prepare(recipe).is_needed
    assert len(set(read)) == 3
    if kind == "delta":
        table = DeltaTable(str(tmp_path / "out/data"))
        assert [entry["conservator.run-id"] for entry in reversed(table.history())] == read
        assert DeltaTable(table.table_uri, version=1).to_pyarrow_table(columns=["id"]).num_rows == 4
    if kind == "iceberg":
        table = StaticTable.from_metadata(str(metadata(tmp_path / "out/data")))
        snapshots = table.snapshots()
        assert [snapshot.summary["conservator.run-id"] for snapshot in snapshots if snapshot.summary] == read
        assert table.scan(snapshot_id=snapshots[1].snapshot_id).to_arrow().num_rows == 4


@pytest.mark.parametrize("kind", kinds("delta"))
def test_a_file_that_was_written_anew_replaces_its_rows(write_table: Write, tmp_path: Path, kind: str) -> None:
    recipe = recipe_of(tmp_path, f"output.table={kind}")
    write_table(rows("a", "b"), "source/one.parquet")
    write_table(rows("c"), "source/two.parquet")
    flow.restore(prepare(recipe))
    before = {row["id"]: row["image_sha256"] for row in table_of(tmp_path, kind).to_dicts()}
    write_table(rows("b", "d", seed=7), "source/one.parquet")
    run = prepare(recipe)
    assert run.duplicates is None and run.rows == 2
    flow.restore(run)
    after = {row["id"]: row["image_sha256"] for row in table_of(tmp_path, kind).to_dicts()}
    assert ids(tmp_path, kind) == ["b", "c", "d"] and after["c"] == before["c"] and after["b"] != before["b"]
    if kind == "parquet":
        assert len(list((tmp_path / "out/data").glob("*.parquet"))) == len(
            (tmp_path / "out/data/_symlink_format_manifest/manifest").read_text().split()
        )


@pytest.mark.slow
def test_all_rows_are_done_anew_into_a_table_that_is_exchanged_at_once(write_table: Write, tmp_path: Path) -> None:
    write_table(rows("a", "b"), "source/one.parquet")
    flow.restore(prepare(recipe_of(tmp_path, "output.images=files")))
    old = set((tmp_path / "out/images/0001").rglob("*.png"))
    other = recipe_of(tmp_path, "output.images=files", "output.format=webp", "gate.clean_above=1")
    with pytest.raises(OutputError, match="another recipe"):
        prepare(other)
    summary = flow.restore(prepare(other, fresh=True))
    table = table_of(tmp_path)
    assert set(table["run_id"]) == {summary.run_id} and sorted(table["id"]) == ["a", "b"]
    assert len(old) == 2 and not (tmp_path / "out/images/0001").exists()


def test_images_lie_beside_the_table_with_their_checksums(write_table: Write, tmp_path: Path) -> None:
    write_table([*rows("a", "b"), {"id": "bad", "image": b"broken"}])
    flow.restore(prepare(recipe_of(tmp_path, "output.images=files")))
    for row in table_of(tmp_path).to_dicts():
        assert row["image"] is None
        if row["id"] == "bad":
            assert row["image_uri"] is None and row["status"] == "failed"
            continue
        data = Path(row["image_uri"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (row["image_bytes"], row["image_sha256"])


class Flaky(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, or says that it is overloaded."""

    is_up = False

    def do_GET(self) -> None:
        if self.is_up:
            super().do_GET()
        else:
            self.send_error(503)

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "web").mkdir()
    serve = lambda *arguments: Flaky(*arguments, directory=str(tmp_path / "web"))  # noqa: E731
    monkeypatch.setattr(Flaky, "is_up", False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


@pytest.mark.parametrize("kind", kinds("parquet"))
def test_rows_that_failed_in_passing_are_tried_again(
    write_table: Write, tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    (tmp_path / "web/scan.png").write_bytes(picture(1))
    (tmp_path / "source").mkdir()
    (tmp_path / "source/here.png").write_bytes(picture(2))
    images = {"far": f"{server}/scan.png", "here": "here.png", "gone": "gone.png"}
    write_table([{"id": name, "image": image} for name, image in images.items()])
    recipe = recipe_of(tmp_path, f"output.table={kind}", f"source.allowed_uris={server}", "limits.attempts=1")
    flow.restore(prepare(recipe))
    assert {row["id"]: row["error_type"] for row in table_of(tmp_path, kind).to_dicts()} == {
        "far": "StoreUnavailable",
        "here": None,
        "gone": "UnreadableImage",
    }
    monkeypatch.setattr(Flaky, "is_up", True)
    assert not prepare(recipe).is_needed  # the file is finished
    run = prepare(recipe, retry="transient")
    assert run.rows == 1
    assert flow.restore(run, retry="transient").by_status.get("failed") is None
    found = {row["id"]: row["error_type"] for row in table_of(tmp_path, kind).to_dicts()}
    assert found == {"far": None, "here": None, "gone": "UnreadableImage"} and len(ids(tmp_path, kind)) == 3
    assert not prepare(recipe, retry="transient").is_needed
    assert prepare(recipe, retry="all").rows == 1


@pytest.mark.slow
def test_ids_that_come_twice_are_reported_and_kept(
    write_table: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    write_table(rows("a", "b"), "source/one.parquet")
    arguments = ["restore", "--source", str(tmp_path / "source"), "--output", str(tmp_path / "out")]
    assert main(arguments) == 0
    write_table(rows("b", "c"), "source/two.parquet")
    assert main(arguments) == 0
    assert "'b'" in caplog.text and re.search("ids that come more than once +1\n", capsys.readouterr().out)
    assert ids(tmp_path) == ["a", "b", "b", "c"]


def test_filters_and_projections_reach_the_files(write_table: Write, tmp_path: Path) -> None:
    for year in (1911, 1912):
        write_table(
            [{"id": f"{year}-{n}", "image": picture(n), "n": n, "secret": "x"} for n in range(4)],
            f"source/year={year}/a.parquet",
        )
    chosen = ['source.filters=[[year, "=", "1912"], [n, in, [1, 3]]]', "columns.keep=[n]"]
    summary = flow.restore(prepare(recipe_of(tmp_path, *chosen)))
    table = table_of(tmp_path)
    assert sorted(table["id"]) == ["1912-1", "1912-3"] and summary.rows == 2
    assert "n" in table.columns and "secret" not in table.columns and "year" not in table.columns
    assert not prepare(recipe_of(tmp_path, *chosen)).is_needed
    with pytest.raises(OutputError, match="another recipe"):
        prepare(recipe_of(tmp_path, chosen[1]))


@pytest.mark.slow
def test_a_limit_leaves_the_rest_for_the_next_run(write_table: Write, tmp_path: Path) -> None:
    write_table(rows("a", "b", "c"), "source/one.parquet")
    write_table(rows("d"), "source/two.parquet")
    assert flow.restore(prepare(recipe_of(tmp_path, "limits.rows=2"))).rows == 2
    assert ids(tmp_path) == ["a", "b"]
    assert flow.restore(prepare(recipe_of(tmp_path))).rows == 2
    assert ids(tmp_path) == ["a", "b", "c", "d"]


def test_a_folder_of_images_is_restored(tmp_path: Path) -> None:
    (tmp_path / "source/deep").mkdir(parents=True)
    for number, name in enumerate(("a.png", "deep/b.png")):
        (tmp_path / "source" / name).write_bytes(picture(number))
    (tmp_path / "source/broken.jpg").write_bytes(b"no image")
    (tmp_path / "source/captions.csv").write_text("file_name,caption,shelf\na.png,a ship,007\n")
    flow.restore(prepare(recipe_of(tmp_path)))
    found = {row["id"]: row for row in table_of(tmp_path).to_dicts()}
    assert set(found) == {"a.png", "deep/b.png", "broken.jpg"} and found["broken.jpg"]["status"] == "failed"
    assert found["a.png"]["caption"] == "a ship" and found["a.png"]["shelf"] == "007"
    assert found["deep/b.png"]["source_uri"] == "deep/b.png"
    (tmp_path / "source/c.png").write_bytes(picture(5))
    assert flow.restore(prepare(recipe_of(tmp_path))).rows == 1


@pytest.mark.slow
def test_the_rows_of_a_table_follow_it_from_version_to_version(tmp_path: Path) -> None:
    import pyarrow as pa
    from deltalake import write_deltalake

    root = str(tmp_path / "source")
    for name in ("a", "b"):
        write_deltalake(root, pa.Table.from_pylist(rows(name)), mode="append")
    flow.restore(prepare(recipe_of(tmp_path, "output.table=delta")))
    DeltaTable(root).optimize.compact()
    DeltaTable(root).delete("id = 'a'")
    write_deltalake(root, pa.Table.from_pylist(rows("c")), mode="append")
    flow.restore(prepare(recipe_of(tmp_path, "output.table=delta")))
    assert ids(tmp_path, "delta") == ["b", "c"]
    DeltaTable(root).optimize.compact()
    write_deltalake(root, pa.Table.from_pylist(rows("d")), mode="append")
    with pytest.raises(SourceError, match="no --limit"):
        prepare(recipe_of(tmp_path, "output.table=delta", "limits.rows=1"))


@pytest.mark.parametrize("kind", kinds("iceberg"))
def test_a_table_is_divided_by_a_column(write_table: Write, tmp_path: Path, kind: str) -> None:
    write_table([{"id": f"{n}", "image": picture(n), "shelf": f"A/{n % 2}"} for n in range(4)])
    flow.restore(prepare(recipe_of(tmp_path, f"output.table={kind}", "output.partition_by=[shelf]")))
    assert len(list((tmp_path / "out/data").rglob("*.parquet"))) == 2
    if kind != "parquet":
        assert {row["id"]: row["shelf"] for row in table_of(tmp_path, kind).to_dicts()}["3"] == "A/1"
    else:
        query = f"select id, shelf from read_parquet('{tmp_path}/out/data/*/*.parquet', hive_partitioning=true)"
        assert dict(duckdb.sql(query).fetchall())["3"] == "A/1"
    with pytest.raises(OutputError, match=r"divided by shelf, not by year"):
        prepare(recipe_of(tmp_path, f"output.table={kind}", "output.partition_by=[year]"))


@pytest.mark.parametrize(
    ("column", "message"), [("shelves", "which does not pass through"), ("id", "make no partitions")]
)
def test_a_column_that_divides_no_table_is_refused(
    write_table: Write, tmp_path: Path, column: str, message: str
) -> None:
    write_table(rows("a"))
    with pytest.raises(RecipeError, match=message):
        prepare(recipe_of(tmp_path, f"output.partition_by=[{column}]"))


def test_a_table_does_not_change_its_kind(write_table: Write, tmp_path: Path) -> None:
    write_table(rows("a"))
    flow.restore(prepare(recipe_of(tmp_path)))
    for fresh in (False, True):
        with pytest.raises(OutputError, match="holds a parquet table, not a delta one; give another --output"):
            prepare(recipe_of(tmp_path, "output.table=delta"), fresh=fresh)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_run_that_is_told_to_end_finishes_what_it_has_and_the_next_goes_on(
    write_table: Write, tmp_path: Path, number: signal.Signals
) -> None:
    for part in range(12):
        write_table(
            rows(f"{part}", seed=part) if part else [{"id": "0", "image": picture(0, 400)}], f"source/{part}.parquet"
        )
    command = [sys.executable, "-m", "jobs.restore", "--source", str(tmp_path / "source")]
    command += ["--output", str(tmp_path / "out"), "--set", "output.file_mb=1", "--set", ONE_ACTOR]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "out/state/run.json").exists():
        assert process.poll() is None
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(number)
    _, log = process.communicate(timeout=120)
    assert process.returncode == 130, log
    assert "run again to go on" in log
    assert "Traceback" not in log
    summary = flow.restore(prepare(recipe_of(tmp_path, "output.file_mb=1")))
    assert ids(tmp_path) == sorted(str(part) for part in range(12)) and summary.rows == 12


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--deadline", "1s", "stopped at its deadline"),
        ("--max-megapixels", "0.5", "megapixels, of which it was to do 0.5"),
    ],
)
def test_a_run_ends_at_its_deadline_or_budget_and_the_next_goes_on(
    write_table: Write, tmp_path: Path, option: str, value: str, said: str
) -> None:
    for part in range(16):
        write_table([{"id": f"{part:02d}", "image": picture(part, 640)}], f"source/{part:02d}.parquet")
    command = [sys.executable, "-m", "jobs.restore", "--source", str(tmp_path / "source")]
    command += ["--output", str(tmp_path / "out"), "--set", "output.file_mb=1", option, value]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180)
    assert done.returncode == 4, done.stderr
    assert said in done.stderr and "Traceback" not in done.stderr
    summary = flow.restore(prepare(recipe_of(tmp_path, "output.file_mb=1")))
    assert ids(tmp_path) == [f"{part:02d}" for part in range(16)] and summary.rows == 16
    attempts = [json.loads(path.read_text()) for path in (tmp_path / "out/state/attempts").iterdir()]
    assert len(attempts) == 2 and summary.actor_hours == pytest.approx(sum(one["actor_hours"] for one in attempts))


@pytest.mark.parametrize("words", [["--deadline", "soon"], ["--deadline", "0h"], ["--max-megapixels", "0"]])
def test_a_time_or_budget_that_is_none_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["restore", "--source", "a", "--output", "b", *words])
    assert exit.value.code == 2
    assert words[1] in capsys.readouterr().err


def test_work_begins_before_the_source_is_listed(
    write_table: Write, tmp_path: Path, listed: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "PATIENCE", 0.2)
    monkeypatch.setitem(search.FIRST, "parquet", 2)
    for number, names in enumerate(("ab", "cd", "ef")):
        write_table(rows(*names, seed=10 * number), f"source/{number}.parquet")
    run = prepare(recipe_of(tmp_path), early=True)
    assert run.search is not None and run.rows == 4
    begun = sorted(name for file in run.source.files for name in pq.read_table(file.path)["id"].to_pylist())
    manifest = tmp_path / "out/data/_symlink_format_manifest/manifest"
    seen: list[list[str]] = []

    def list_it() -> None:
        while not manifest.exists():
            time.sleep(0.1)
        seen.append(ids(tmp_path))
        write_table(rows(begun[0], "g", seed=77), run.source.files[0].path)  # what was done has changed since
        listed.set()

    threading.Thread(target=list_it, daemon=True).start()
    summary = flow.restore(run)
    assert seen == [begun]
    assert set(table_of(tmp_path)["run_id"]) == {summary.run_id}
    assert (summary.rows, summary.files_read) == (6, 3) and "g" in ids(tmp_path) and len(ids(tmp_path)) == 6
    assert json.loads((tmp_path / "out/summary.json").read_text())["rows"] == 6
    assert not prepare(recipe_of(tmp_path), early=True).is_needed


@pytest.mark.slow
def test_a_run_that_waits_for_the_rest_of_its_source_can_be_stopped(
    tmp_path: Path, listed: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "PATIENCE", 0.2)
    monkeypatch.setitem(search.FIRST, "images", 1)
    for name in ("one/a.png", "two/b.png"):
        (tmp_path / "source" / name).parent.mkdir(parents=True)
        (tmp_path / "source" / name).write_bytes(picture(len(name)))
    run, drain = prepare(recipe_of(tmp_path), early=True), Drain(5)
    assert run.rows == 1

    def stop_it() -> None:
        while not (tmp_path / "out/data/_symlink_format_manifest/manifest").exists():
            time.sleep(0.1)
        drain.request()

    threading.Thread(target=stop_it, daemon=True).start()
    with pytest.raises(Interrupted, match="1 of 1 rows are done; run again"):
        flow.restore(run, drain)
    listed.set()
    again = prepare(recipe_of(tmp_path), early=True)
    assert again.search is None and again.run_id == run.run_id and again.rows == 1
    assert flow.restore(again).rows == 2 and len(ids(tmp_path)) == 2
