from __future__ import annotations

import time
from pathlib import Path

import fsspec
import numpy as np
from pipeline.lake.keys import find_duplicates, hashed

from pipeline.lake.ledger import SEGMENTS, Entry, InputFile, Ledger

STORE = fsspec.filesystem("file")


def entry(number: int, ids: tuple[str, ...] = ()) -> Entry:
    return Entry(InputFile(f"in/{number}.parquet", number, "v1"), 3, "run", 1, "digest", hashed(ids).tobytes())


def test_what_was_written_down_is_finished(tmp_path: Path) -> None:
    ledger = Ledger(STORE, str(tmp_path / "ledger"))
    assert ledger.finished() == set() and list(ledger.ids()) == []
    ledger.add([entry(1), entry(2)])
    ledger.add([entry(2), entry(3)])  # a crash may bring an entry twice
    assert ledger.finished() == {entry(n).file for n in (1, 2, 3)}
    assert InputFile("in/1.parquet", 1, "v2") not in ledger.finished()  # written anew: another file


def test_many_segments_become_one_and_nothing_is_lost(tmp_path: Path) -> None:
    ledger = Ledger(STORE, str(tmp_path / "ledger"))
    for number in range(3 * SEGMENTS):
        ledger.add([entry(number, (f"id{number}",))])
    assert len(list((tmp_path / "ledger").iterdir())) <= SEGMENTS + 1
    assert len(ledger.finished()) == 3 * SEGMENTS
    assert len(np.concatenate(list(ledger.ids()))) == 3 * SEGMENTS


def test_two_hundred_thousand_files_are_known_in_seconds(tmp_path: Path) -> None:
    ledger = Ledger(STORE, str(tmp_path / "ledger"))
    ledger.add(entry(number) for number in range(200_000))
    started = time.monotonic()
    assert len(ledger.finished()) == 200_000
    assert time.monotonic() - started < 20


def test_ids_that_come_twice_are_found_here_and_in_what_was_read_before() -> None:
    ids = {"one": ["a", "b", "c"], "two": ["d", "b"]}
    found = find_duplicates(ids, [])
    assert found is not None and found.count == 1 and found.examples == ("b",)
    found = find_duplicates(ids, [hashed(["x", "d"]), hashed([]), hashed(["a"])])
    assert found is not None and found.count == 3 and set(found.examples) == {"a", "b", "d"}
    assert find_duplicates({"one": ["a", "b"], "two": []}, [hashed(["c"])]) is None
    assert find_duplicates({}, [hashed(["c"])]) is None
