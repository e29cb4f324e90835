"""What persons decide about rows, and what the next runs make of it, on a real Ray."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.cli import main
from pipeline import flow
from pipeline.errors import OutputError
from pipeline.lake.decisions import Decisions, Reviewed
from pipeline.lake.output import open_output
from pipeline.plan import prepare
from pipeline.recipe import Recipe
from tests.integration.test_runs import kinds, recipe_of, rows, table_of

Write = Callable[..., Path]

pytestmark = pytest.mark.usefixtures("ray_session")


def doubtful(tmp_path: Path, *overrides: str) -> Recipe:
    """A recipe that marks every row `review`."""
    doubts = [f"gate.{name}" for name in ("worse_above=1", "least_change=100", "least_gain=0", "review_below=99")]
    return recipe_of(tmp_path, *doubts, *overrides)


def words_of(recipe: Recipe, tmp_path: Path) -> list[str]:
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    return ["restore", "--recipe", str(tmp_path / "recipe.yaml")]


def decide(recipe: Recipe, row: dict[str, Any], decision: str) -> None:
    now = dt.datetime.now(dt.UTC)
    said = Reviewed(row["result_id"], row["id"], row["source_row"], row["run_id"], decision, "Ada", "", now)
    open_output(recipe.output.uri, recipe.output).decisions().add(said)


def by_id(tmp_path: Path, kind: str = "parquet") -> dict[str, dict[str, Any]]:
    found = {row["id"]: row for row in table_of(tmp_path, kind).to_dicts()}
    assert len(found) == len(table_of(tmp_path, kind))
    return found


@pytest.mark.parametrize("kind", kinds("delta"))
def test_decisions_change_their_rows_and_no_others(write_table: Write, tmp_path: Path, kind: str) -> None:
    source = rows("a", "b", "c", "d")
    write_table(source[:2]), write_table(source[2:], "source/part-1.parquet")
    recipe = doubtful(tmp_path, f"output.table={kind}", "output.partition_by=[year]")
    words = words_of(recipe, tmp_path)
    assert main(words) == 0
    before = by_id(tmp_path, kind)
    assert {row["status"] for row in before.values()} == {"review"}
    decide(recipe, before["a"], "accepted")
    decide(recipe, before["c"], "rejected")
    assert main(words) == 0
    after = by_id(tmp_path, kind)
    assert {name: row["status"] for name, row in after.items()} == {
        "a": "restored",
        "b": "review",
        "c": "kept",
        "d": "review",
    }
    assert after["a"]["image"] == before["a"]["image"] and after["c"]["image"] == source[2]["image"]
    assert {name: after[name] for name in "bd"} == {name: before[name] for name in "bd"}
    last = open_output(recipe.output.uri, recipe.output).table().last_commit()
    assert main(words) == 0
    assert open_output(recipe.output.uri, recipe.output).table().last_commit() == last


@pytest.mark.slow
def test_images_that_are_files_are_put_back_as_files(write_table: Write, tmp_path: Path) -> None:
    source = rows("a", "b")
    write_table(source)
    recipe = doubtful(tmp_path, "output.images=files")
    words = words_of(recipe, tmp_path)
    assert main(words) == 0
    before = by_id(tmp_path)
    decide(recipe, before["a"], "rejected")
    decide(recipe, before["b"], "accepted")
    assert main(words) == 0
    after = by_id(tmp_path)
    assert Path(after["a"]["image_uri"]).read_bytes() == source[0]["image"] and after["a"]["image"] is None
    assert after["b"]["image_uri"] == before["b"]["image_uri"]


@pytest.mark.slow
def test_who_has_accepted_may_still_reject(write_table: Write, tmp_path: Path) -> None:
    source = rows("a", "b")
    write_table(source)
    recipe = doubtful(tmp_path)
    words = words_of(recipe, tmp_path)
    assert main(words) == 0
    seen = by_id(tmp_path)["a"]
    decide(recipe, seen, "accepted")
    assert main(words) == 0
    assert by_id(tmp_path)["a"]["status"] == "restored"
    decide(recipe, seen, "rejected")
    assert main(words) == 0
    row = by_id(tmp_path)["a"]
    assert row["status"] == "kept" and row["image"] == source[0]["image"]


@pytest.mark.slow
def test_a_decision_about_a_row_whose_file_is_gone_waits_and_says_so(
    write_table: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, _ = write_table(rows("a")), write_table(rows("b", seed=9), "source/part-1.parquet")
    recipe = doubtful(tmp_path)
    words = words_of(recipe, tmp_path)
    assert main(words) == 0
    before = by_id(tmp_path)
    decide(recipe, before["a"], "accepted")
    aside = first.rename(tmp_path / "aside.parquet")
    assert main(words) == 0
    assert by_id(tmp_path) == before
    assert "1 rows are decided, but their input files are gone or not finished" in caplog.text
    aside.rename(first)
    assert main(words) == 0
    assert by_id(tmp_path)["a"]["status"] == "restored"


@pytest.mark.slow
def test_the_same_result_made_anew_is_what_was_decided(write_table: Write, tmp_path: Path) -> None:
    write_table(rows("a", "b"))
    recipe = doubtful(tmp_path)
    words = words_of(recipe, tmp_path)
    assert main(words) == 0
    before = by_id(tmp_path)
    decide(recipe, before["a"], "rejected")
    assert main([*words, "--fresh"]) == 0
    after = by_id(tmp_path)
    assert after["a"]["status"] == "kept" and after["a"]["result_id"] == before["a"]["result_id"]
    assert after["b"]["status"] == "review"
    (tmp_path / "other").mkdir()
    changed = doubtful(tmp_path, "restoration.margin=16")
    assert main([*words_of(changed, tmp_path), "--fresh"]) == 0
    assert by_id(tmp_path)["a"]["status"] == "review"  # another result, which nobody has seen


@pytest.mark.slow
def test_the_report_beside_the_table_stays_that_of_the_last_whole_run(write_table: Write, tmp_path: Path) -> None:
    write_table(rows("a", "b", "c"))
    recipe = doubtful(tmp_path)
    words = words_of(recipe, tmp_path)
    assert main(words) == 0
    report = (tmp_path / "out/report.html").read_text()
    decide(recipe, by_id(tmp_path)["a"], "accepted")
    assert main(words) == 0
    assert (tmp_path / "out/report.html").read_text() == report
    assert len(list((tmp_path / "out/reports").iterdir())) == 2
    assert main(["report", str(tmp_path / "out")]) == 0
    assert "2</strong> rows" in (tmp_path / "out/report.html").read_text()  # as the table has them now


@pytest.mark.slow
def test_a_caption_that_is_no_text_does_not_keep_a_run_from_its_end(tmp_path: Path) -> None:
    table = pa.table(
        {
            "id": pa.array(["a", "b"]),
            "image": pa.array([row["image"] for row in rows("a", "b")]),
            "caption": pa.Array.from_buffers(
                pa.string(), 2, pa.array([b"a \xff bear", b"fine"], pa.binary()).buffers()
            ),
        }
    )
    (tmp_path / "source").mkdir()
    pq.write_table(table, tmp_path / "source/part-0.parquet")
    words = words_of(recipe_of(tmp_path), tmp_path)
    assert main(words) == 3
    assert "decode: PermanentRowError: 1 rows" in (tmp_path / "out/report.html").read_text()
    assert main(["report", str(tmp_path / "out")]) == 0


def test_decisions_written_by_two_at_once_are_all_there(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    store = open_output(recipe.output.uri, recipe.output).store
    one, other = (Decisions(store, str(tmp_path / "reviews")) for _ in range(2))
    moment = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)

    def said(result: str, decision: str, minutes: int) -> Reviewed:
        when = moment + dt.timedelta(minutes=minutes)
        return Reviewed(result, result, f"{result}-0", "run", decision, "Ada", "", when)

    for number in range(5):
        one.add(said(f"one {number}", "accepted", number))
        other.add(said(f"other {number}", "rejected", number))
    one.add(said("other 0", "accepted", 60))
    assert len(other.latest()) == 10
    one.compact()
    other.add(said("late", "accepted", 90))
    other.compact(), one.compact()
    for decisions in (one, other, Decisions(store, str(tmp_path / "reviews"))):
        latest = decisions.latest()
        assert len(latest) == 11 and latest["other 0"].decision == "accepted"
    assert len(list((tmp_path / "reviews").glob("*.parquet"))) == 1


def test_a_broken_file_of_decisions_is_named(write_table: Write, tmp_path: Path) -> None:
    write_table(rows("a"))
    recipe = recipe_of(tmp_path)
    flow.restore(prepare(recipe))
    (tmp_path / "out/reviews").mkdir()
    (tmp_path / "out/reviews/x.parquet").write_bytes(b"no Parquet")
    with pytest.raises(OutputError, match=r"reviews/x\.parquet holds no decisions"):
        prepare(recipe)
