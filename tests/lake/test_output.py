from __future__ import annotations

from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import OutputError
from pipeline.lake.intents import Intent
from pipeline.lake.manifest import ManifestTable
from pipeline.lake.output import Output, Turn, open_output
from pipeline.recipe import Output as Settings

STORE = fsspec.filesystem("file")


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return open_output(str(tmp_path / "out"))


def made(output: Output, generation: int = 1) -> None:
    """A commit."""
    output.intents().add(Intent(1, generation, 0, "one", "digest", "", False, (), ()))


def began(output: Output, turn: Turn, state: str = "running", digest: str = "digest", **more: object) -> None:
    run = {"run_id": turn.run_id, "recipe_digest": digest, "generation": turn.generation, "replaces": turn.replaces}
    run |= {"retries": turn.retries, **more}
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
    made(output)
    with pytest.raises(OutputError, match=r"another recipe .*--fresh"):
        output.turn("two", "other", fresh=False)
    assert output.turn("two", "other", fresh=True) == Turn("two", 2, replaces=True, resumed=False)
    mixed = open_output(output.uri, Settings(mixed=True))
    assert mixed.turn("two", "other", fresh=False) == Turn("two", 1, replaces=False, resumed=False)


def test_another_recipe_does_not_go_on_with_a_killed_run(output: Output) -> None:
    began(output, output.turn("one", "digest", fresh=False))
    assert output.turn("two", "other", fresh=False) == Turn("two", 1, replaces=False, resumed=False)  # it did nothing
    checkpoint = Path(output.staging(1).folder)
    checkpoint.mkdir(parents=True)
    (checkpoint / "one_000000.parquet").touch()
    mixed = open_output(output.uri, Settings(mixed=True))
    with pytest.raises(OutputError, match=r"half done by run one .* another recipe"):
        mixed.turn("two", "other", fresh=False)


def test_making_all_anew_goes_on_where_it_was_killed(output: Output) -> None:
    began(output, output.turn("one", "digest", fresh=False), "finished")
    began(output, output.turn("two", "digest", fresh=True))
    assert output.turn("three", "digest", fresh=True) == Turn("two", 2, replaces=True, resumed=True)
    assert output.turn("three", "other", fresh=True) == Turn("three", 3, replaces=True, resumed=False)
    began(output, Turn("two", 2, True, True), "finished")
    assert output.turn("four", "digest", fresh=True) == Turn("four", 3, replaces=True, resumed=False)


def test_from_making_all_anew_there_is_a_way_back(output: Output) -> None:
    first = output.turn("one", "digest", fresh=False)
    began(output, first, "finished")
    made(output)
    former = {"run_id": "one", "recipe_digest": "digest", "generation": 1, "replaces": False, "retries": False}
    fresh = output.turn("two", "other", fresh=True)
    began(output, fresh, digest="other", former=former)
    assert output.turn("three", "digest", fresh=False) == Turn("three", 1, replaces=False, resumed=False)
    assert output.turn("three", "other", fresh=False) == Turn("two", 2, replaces=True, resumed=True)
    with pytest.raises(OutputError, match="rows of another recipe"):  # and no third one replaces it unasked
        output.turn("three", "third", fresh=False)
    output.intents().add(Intent(2, 2, 1, "two", "other", "", True, (), ()))  # it is replaced now
    with pytest.raises(OutputError, match="rows of another recipe"):
        output.turn("three", "digest", fresh=False)


def staged(output: Output, generation: int, *names: str) -> None:
    """Whole writes of one row each."""
    checkpoint, data = Path(output.staging(generation).folder), Path(output.data)
    for folder in (checkpoint, data):
        folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        pq.write_table(pa.table({"source_row": ["a" * 16 + "-0"]}), checkpoint / f"{name}.parquet")
        (data / f"{name}-0.parquet").touch()


def test_of_other_generations_goes_what_no_commit_names(output: Output) -> None:
    staged(output, 1, "named", "loose")
    output.intents().add(Intent(1, 1, 0, "one", "digest", "", False, ("named",), ()))  # perhaps not carried out yet
    table = ManifestTable(STORE, output.data)
    output.abandon_others(2, table)
    assert [path.name for path in Path(output.data).glob("*.parquet")] == ["named-0.parquet"]
    output.intents().add(Intent(2, 2, 1, "two", "digest", "", True, (), ()))  # replaced: what it was is history
    output.abandon_others(2, table)
    assert [path.name for path in Path(output.data).glob("*.parquet")] == ["named-0.parquet"]
    assert output.staging(1).is_empty


def test_a_table_keeps_its_name(tmp_path: Path) -> None:
    first = open_output(str(tmp_path), Settings(table="iceberg", table_name="museum.scans"))
    began(first, first.turn("one", "digest", fresh=False), "finished")
    second = open_output(str(tmp_path), Settings(table="iceberg"))
    with pytest.raises(OutputError, match=r"called museum\.scans, not conservator\.restored"):
        second.turn("two", "digest", fresh=False)


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
