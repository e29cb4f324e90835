from __future__ import annotations

import json
import multiprocessing
import os
import time
from pathlib import Path

import fsspec
import pytest

from pipeline.errors import TRY_LATER, OutputError, RunError
from pipeline.lake.lease import Lease

STORE = fsspec.filesystem("file")


def lease(folder: Path, run_id: str = "first", seconds: float = 60) -> Lease:
    return Lease(STORE, str(folder / "lease"), run_id, seconds)


def held_by_another_machine(folder: Path, age: float, **changes: object) -> Path:
    """A lease of a run elsewhere, renewed so many seconds ago."""
    with lease(folder):
        pass
    path = folder / "lease/00000001.json"
    content = json.loads(path.read_text()) | {"host": "elsewhere", "run_id": "other", "released": False} | changes
    path.write_text(json.dumps(content))
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def test_the_second_run_is_told_who_holds_the_output(tmp_path: Path) -> None:
    with (
        lease(tmp_path),
        pytest.raises(OutputError, match=rf"run first \(process {os.getpid()} on .* expires in \d+ s") as told,
    ):
        lease(tmp_path, "second").__enter__()
    assert told.value.exit_code == TRY_LATER


def test_a_lease_that_was_given_back_is_free(tmp_path: Path) -> None:
    for run in ("first", "second", "third", "fourth", "fifth"):
        with lease(tmp_path, run) as held:
            held.check()
    assert len(list((tmp_path / "lease").iterdir())) <= 3


def test_a_lease_of_another_machine_is_taken_over_when_it_expired_and_not_before(tmp_path: Path) -> None:
    path = held_by_another_machine(tmp_path, age=50)
    with pytest.raises(OutputError, match=r"run other .* on elsewhere"):
        lease(tmp_path).__enter__()
    os.utime(path, (time.time() - 61, time.time() - 61))
    with lease(tmp_path) as held:
        held.check()


def test_a_lease_whose_process_has_died_on_this_machine_is_free_at_once(tmp_path: Path) -> None:
    def take_and_die() -> None:
        lease(tmp_path, "dead").__enter__()
        os._exit(9)

    process = multiprocessing.get_context("fork").Process(target=take_and_die)
    process.start()
    process.join()
    assert json.loads((tmp_path / "lease/00000001.json").read_text())["run_id"] == "dead"
    with lease(tmp_path) as held:
        held.check()


def test_who_was_followed_finds_out(tmp_path: Path) -> None:
    first = lease(tmp_path, "first", seconds=0.6).__enter__()
    (tmp_path / "lease/00000002.json").write_text("{}")  # somebody followed, since we seemed dead
    time.sleep(0.5)
    with pytest.raises(RunError, match="lost"):
        first.check()
    first.__exit__()
    assert not json.loads((tmp_path / "lease/00000001.json").read_text())["released"]


def test_a_lease_is_renewed_while_it_is_held(tmp_path: Path) -> None:
    with lease(tmp_path, seconds=0.6) as held:
        before = (tmp_path / "lease/00000001.json").stat().st_mtime_ns
        time.sleep(1.0)
        held.check()
        assert (tmp_path / "lease/00000001.json").stat().st_mtime_ns > before


def test_a_lease_tells_how_much_of_its_time_is_left(tmp_path: Path) -> None:
    with lease(tmp_path, seconds=600) as held:
        assert 0.9 < held.left() <= 1
        held._renewed -= 300
        assert 0.4 < held.left() <= 0.5
        held._renewed -= 900
        assert held.left() == 0


def test_of_many_that_start_together_one_works(tmp_path: Path) -> None:
    def compete(results: multiprocessing.Queue, start: multiprocessing.Barrier) -> None:  # type: ignore[type-arg]
        start.wait()
        try:
            with lease(tmp_path, str(os.getpid())):
                results.put("works")
                done.wait()
        except OutputError:
            results.put("leaves")

    context = multiprocessing.get_context("fork")
    results, start, done = context.Queue(), context.Barrier(5), context.Event()
    processes = [context.Process(target=compete, args=(results, start)) for _ in range(5)]
    for process in processes:
        process.start()
    said = [results.get(timeout=20) for _ in processes]
    done.set()
    for process in processes:
        process.join()
    assert sorted(said) == ["leaves"] * 4 + ["works"]
