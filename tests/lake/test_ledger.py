from __future__ import annotations

from pathlib import Path

import fsspec
import numpy as np

from pipeline.lake.keys import hashed
from pipeline.lake.ledger import SEGMENTS, Entry, InputFile, Ledger, State

STORE = fsspec.filesystem("file")


def entry(number: int, ids: tuple[str, ...] = (), commit: int = 1, gone: bool = False) -> Entry:
    file = InputFile(f"in/{number}.parquet", number, "v1")
    return Entry(file, 3, "run", commit, "digest", hashed(ids).tobytes(), gone)


def test_what_was_written_down_is_known(tmp_path: Path) -> None:
    ledger = Ledger(STORE, str(tmp_path / "ledger"))
    assert ledger.states() == {} and list(ledger.ids(set())) == []
    ledger.add([entry(1), entry(2)])
    ledger.add([entry(2), entry(3)])  # a crash may bring an entry twice
    assert set(ledger.states()) == {entry(n).file for n in (1, 2, 3)}
    assert InputFile("in/1.parquet", 1, "v2") not in ledger.states()  # written anew: another file


def test_the_later_commit_says_whether_a_files_rows_are_there(tmp_path: Path) -> None:
    ledger = Ledger(STORE, str(tmp_path / "ledger"))
    ledger.add([entry(1, commit=9)])
    ledger.add([entry(1, commit=5, gone=True), entry(2, commit=5)])
    ledger.add([entry(2, commit=6, gone=True)])
    assert ledger.states() == {entry(1).file: State(9, False), entry(2).file: State(6, True)}


def test_ids_are_those_of_the_files_that_are_asked_for(tmp_path: Path) -> None:
    ledger = Ledger(STORE, str(tmp_path / "ledger"))
    ledger.add([entry(1, ("a", "b")), entry(2, ("c",)), entry(3)])
    assert np.concatenate(list(ledger.ids({entry(1).file, entry(3).file}))).tolist() == hashed(["a", "b"]).tolist()


def test_many_segments_become_one_and_nothing_is_lost(tmp_path: Path) -> None:
    ledger = Ledger(STORE, str(tmp_path / "ledger"))
    for number in range(3 * SEGMENTS):
        ledger.add([entry(number, (f"id{number}",))])
    assert len(list((tmp_path / "ledger").iterdir())) <= SEGMENTS + 1
    assert len(ledger.states()) == 3 * SEGMENTS
    assert len(np.concatenate(list(ledger.ids(ledger.states().keys())))) == 3 * SEGMENTS


def test_files_that_a_run_has_begun_with_are_known_until_all_are_over(tmp_path: Path) -> None:
    ledger = Ledger(STORE, str(tmp_path / "ledger"))
    ledger.begin([entry(1).file, entry(2).file], 1)
    ledger.begin([entry(3).file], 2)
    states = {entry(1).file: State(3, False), entry(3).file: State(3, True)}
    assert ledger.begun({}) == {entry(number).file for number in (1, 2, 3)}
    assert ledger.begun(states) == {entry(2).file}
    ledger.forget_begun(states)
    assert ledger.begun({}) == {entry(1).file, entry(2).file}
    states |= {entry(2).file: State(1, True)}  # it had left the table when it was begun with
    assert ledger.begun(states) == {entry(2).file}
    ledger.forget_begun(states)
    ledger.forget_begun(states | {entry(2).file: State(4, True)})
    assert ledger.begun({}) == set()
