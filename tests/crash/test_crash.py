"""The driver is killed, the store goes away, a machine is lost: after a rerun the table is right.

Real Ray, a real S3 server, SIGKILL. The results are read as a stranger's engine would: by Polars, DuckDB, pyiceberg.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import itertools
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray._private.node import Node
from ray.cluster_utils import Cluster

from pipeline.errors import TRY_LATER
from pipeline.lake.decisions import Decisions, Reviewed
from tests.conftest import ROOT, encoded, noise
from tests.crash.killer import POINTS
from tests.seaweed import KEYS, PORT, Seaweed

pytestmark = pytest.mark.slow

KINDS = ("parquet", "iceberg", "delta")
FILES, ROWS = 3, 8
RANDOM = 10
"""Kills at random moments, for every kind of table."""
BROKEN = "f1-3"
STORAGE = {
    "aws_access_key_id": KEYS["AWS_ACCESS_KEY_ID"],
    "aws_secret_access_key": KEYS["AWS_SECRET_ACCESS_KEY"],
    "aws_endpoint_url": f"http://127.0.0.1:{PORT}",
    "aws_region": "us-east-1",
    "aws_allow_http": "true",
}


def rows_of(file: int) -> list[dict[str, Any]]:
    names = [f"f{file}-{row}" for row in range(ROWS)]
    images = [encoded(noise(280, 300, 100 * file + row)) for row in range(ROWS)]
    return [
        {"id": name, "image": b"broken" if name == BROKEN else image} for name, image in zip(names, images, strict=True)
    ]


class Archive:
    """A source on S3, and outputs beside it."""

    def __init__(self, server: Seaweed) -> None:
        self.server = server
        self.store = server.store()
        for file in range(FILES):
            with self.store.open(f"archive/crash/source/{file}.parquet", "wb") as opened:
                pq.write_table(pa.Table.from_pylist(rows_of(file)), opened, row_group_size=3)
        self.expected: dict[str, str] = {}
        self.seconds = 0.0

    def options(self, kind: str, name: str, **more: object) -> list[str]:
        options = ["--source", "s3://archive/crash/source", "--output", f"s3://archive/crash/{name}"]
        settings = {"table": kind, "file_mb": 1, "commit_minutes": 0.04, **more}
        return [*options, *(f"--set=output.{key}={value}" for key, value in settings.items())]

    def start(self, *command: str, **more: str) -> subprocess.Popen[str]:
        environment = os.environ | self.server.environment | more
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT, env=environment, **pipes)

    def run(self, *command: str, codes: tuple[int, ...] = (3,)) -> str:
        process = self.start(*command)
        out, err = process.communicate(timeout=300)
        assert process.returncode in codes, out + err
        return out + err

    def kill_and_run_again(self, point: str, kind: str, name: str) -> None:
        killed = self.start("tests.crash.killer", point, *self.options(kind, name))
        _, log = killed.communicate(timeout=300)
        assert killed.returncode in (-9, 3), log  # at a random moment it may be over
        self.check(kind, name, whole=False)
        codes = (3,) if point in POINTS else (0, 3)  # or all but over
        self.run("jobs.restore", *self.options(kind, name), codes=codes)
        self.check(kind, name)

    def table(self, kind: str, name: str) -> pl.DataFrame | None:
        """As Polars reads it; None if there is none yet."""
        root = f"archive/crash/{name}/data"
        if kind == "delta":
            if not self.store.exists(f"{root}/_delta_log/00000000000000000000.json"):
                return None
            frame = pl.scan_delta(f"s3://{root}", storage_options=STORAGE)
        elif kind == "iceberg":
            if not self.store.exists(f"{root}/metadata/version-hint.text"):
                return None
            version = self.store.cat_file(f"{root}/metadata/version-hint.text").decode()
            iceberg = {"s3.endpoint": STORAGE["aws_endpoint_url"], "s3.region": "us-east-1"}
            iceberg |= {"s3.access-key-id": STORAGE["aws_access_key_id"]}
            iceberg |= {"s3.secret-access-key": STORAGE["aws_secret_access_key"]}
            frame = pl.scan_iceberg(f"s3://{root}/metadata/{version}.metadata.json", storage_options=iceberg)
        else:
            if not self.store.exists(f"{root}/_symlink_format_manifest/manifest"):
                return None
            files = self.store.cat_file(f"{root}/_symlink_format_manifest/manifest").decode().split()
            frame = pl.scan_parquet(files, storage_options=STORAGE)
        return frame.select("id", "image", "status", "source_row", "result_id").collect()

    def statuses(self, kind: str, name: str) -> dict[str, tuple[str, str, str, str]]:
        """By id: status, digest of the image, result and key."""
        table = self.table(kind, name)
        assert table is not None
        rows = table.to_dicts()
        assert max(Counter(row["id"] for row in rows).values()) == 1
        return {r["id"]: (r["status"], _digest(r["image"]), r["result_id"], r["source_row"]) for r in rows}

    def check(self, kind: str, name: str, whole: bool = True, over: bool = True, history: bool = False) -> None:
        """Every id at most once, and exactly once in the end, with the bytes of an undisturbed run.

        `over`: nothing of a run is left but its rows; `history`: and the files of former versions.
        """
        table = self.table(kind, name)
        rows = [] if table is None else table.to_dicts()
        found = {row["id"]: _digest(row["image"]) for row in rows}
        assert max(Counter(row["id"] for row in rows).values(), default=1) == 1
        assert found.items() <= self.expected.items()
        if whole:
            assert found == self.expected
        if whole and over:
            data = [path for path in self.store.find(f"archive/crash/{name}/data") if path.endswith(".parquet")]
            if not history:
                assert sum(pq.read_metadata(path, filesystem=self.store).num_rows for path in data) == len(found)
            left = self.store.find(f"archive/crash/{name}/state/checkpoint")
            assert [path for path in left if path.endswith(".parquet")] == []


def _digest(image: bytes | None) -> str:
    return "" if image is None else hashlib.sha256(image).hexdigest()


@pytest.fixture(scope="module")
def archive(s3: Seaweed) -> Iterator[Archive]:
    """The archive, restored without any disturbance once for every kind of table."""
    archive = Archive(s3)
    for kind in KINDS:
        started = time.monotonic()
        archive.run("jobs.restore", *archive.options(kind, f"{kind}-undisturbed"))
        archive.seconds = time.monotonic() - started
        table = archive.table(kind, f"{kind}-undisturbed")
        assert table is not None
        found = {row["id"]: _digest(row["image"]) for row in table.to_dicts()}
        assert len(found) == FILES * ROWS and found[BROKEN] == ""
        archive.expected = archive.expected or found
        archive.check(kind, f"{kind}-undisturbed")
    yield archive


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("point", POINTS)
def test_killed_at_a_crash_point(archive: Archive, kind: str, point: str) -> None:
    archive.kill_and_run_again(point, kind, f"{kind}-{list(POINTS).index(point)}")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("point", list(POINTS)[4:])
def test_a_replacement_that_is_killed(archive: Archive, kind: str, point: str) -> None:
    name = f"{kind}-fresh-{list(POINTS).index(point)}"
    options = archive.options(kind, name)
    archive.run("jobs.restore", *options)
    killed = archive.start("tests.crash.killer", point, *options, "--fresh")
    _, log = killed.communicate(timeout=300)
    assert killed.returncode == -9, log
    archive.check(kind, name, over=False)  # before or after, never in between
    again = ["--fresh"] if list(POINTS).index(point) % 2 else []  # asked for again, or gone on with by itself
    archive.run("jobs.restore", *options, *again)
    archive.check(kind, name, history=kind != "parquet")


@pytest.mark.parametrize(("point", "kind"), zip(list(POINTS)[1:], itertools.cycle(KINDS)))
def test_decisions_that_are_being_carried_out(archive: Archive, kind: str, point: str) -> None:
    name = f"{kind}-decided-{list(POINTS).index(point)}"
    doubts = {"worse_above": 1, "least_change": 100, "least_gain": 0, "review_below": 99}
    options = [*archive.options(kind, name), *(f"--set=gate.{key}={value}" for key, value in doubts.items())]
    archive.run("jobs.restore", *options)
    before = archive.statuses(kind, name)
    store, root = archive.store, f"archive/crash/{name}"
    reviews = Decisions(store, f"{root}/reviews")
    originals = {row["id"]: row["image"] for file in range(FILES) for row in rows_of(file)}
    wanted = dict.fromkeys(["f0-1", "f0-2", "f2-5"], "accepted") | dict.fromkeys(["f0-3", "f1-1", "f2-6"], "rejected")
    for number, (row, decision) in enumerate(wanted.items()):
        status, _, result, key = before[row]
        assert status == "review"
        when = dt.datetime(2026, 1, 1, 0, number, tzinfo=dt.UTC)
        reviews.add(Reviewed(result, row, key, "", decision, "Ada", "", when))
    after = {row: (status, image) for row, (status, image, *_) in before.items()}
    after |= {row: ("restored", before[row][1]) for row in wanted if wanted[row] == "accepted"}
    after |= {row: ("kept", _digest(originals[row])) for row in wanted if wanted[row] == "rejected"}
    killed = archive.start("tests.crash.killer", point, *options)
    _, log = killed.communicate(timeout=300)
    assert killed.returncode == -9, log
    found = archive.statuses(kind, name)
    for row, (status, image, *_) in found.items():
        assert (status, image) in (before[row][:2], after[row])
    assert len(found) == FILES * ROWS
    archive.run("jobs.restore", *options, codes=(0, 3))
    assert {row: seen[:2] for row, seen in archive.statuses(kind, name).items()} == after
    last = archive.statuses(kind, name)
    archive.run("jobs.restore", *options, codes=(0,))
    assert archive.statuses(kind, name) == last


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", range(RANDOM))
def test_killed_at_a_random_moment(archive: Archive, kind: str, number: int) -> None:
    moment = random.Random(f"{kind} {number}").uniform(0.2, 1.0) * archive.seconds
    archive.kill_and_run_again(f"{moment:.2f}", kind, f"{kind}-random-{number}")


@pytest.mark.parametrize("kind", KINDS)
def test_a_rerun_after_success_changes_nothing(archive: Archive, kind: str) -> None:
    name = f"{kind}-undisturbed"
    before = sorted(archive.store.find(f"archive/crash/{name}"))
    started = time.monotonic()
    assert "nothing new" in archive.run("jobs.restore", *archive.options(kind, name), codes=(0,))
    assert time.monotonic() - started < 15
    assert sorted(archive.store.find(f"archive/crash/{name}")) == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_that_is_away_for_twenty_seconds_is_waited_for(archive: Archive, kind: str) -> None:
    name = f"{kind}-away"
    process = archive.start("jobs.restore", *archive.options(kind, name))
    threading.Timer(archive.seconds / 2, archive.server.stop).start()
    time.sleep(archive.seconds / 2 + 20)
    archive.server.start()
    out, err = process.communicate(timeout=300)
    assert process.returncode == 3, out + err
    archive.check(kind, name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_machine_of_the_cluster_that_is_lost(archive: Archive, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in (archive.server.environment | {"RAY_AUTH_MODE": "disabled"}).items():
        monkeypatch.setenv(variable, value)  # for the machines of the cluster too
    name = f"{kind}-machine"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "include_dashboard": False})
    try:
        machine = cluster.add_node(num_cpus=4)
        process = archive.start("jobs.restore", *archive.options(kind, name), RAY_ADDRESS=cluster.address)
        data = f"archive/crash/{name}/data"
        _wait_until(lambda: any(path.endswith(".parquet") for path in archive.store.find(data)))
        _wait_until(lambda: any("MapWorker" in worker for worker in _workers(machine)))
        cluster.remove_node(machine, allow_graceful=False)
        out, err = process.communicate(timeout=300)
    finally:
        cluster.shutdown()
    assert process.returncode == 3, out + err
    archive.check(kind, name)


def _workers(machine: Node) -> list[str]:
    """What the processes of Ray's workers there are called."""
    daemon = machine.all_processes["raylet"][0].process.pid
    children = Path(f"/proc/{daemon}/task/{daemon}/children").read_text().split()
    return [Path(f"/proc/{child}/cmdline").read_text() for child in children]


def _wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.1)
    raise TimeoutError("the run did not get there")


def test_two_runs_at_once_one_works_and_the_other_names_it(archive: Archive) -> None:
    options = archive.options("delta", "two")
    first, second = archive.start("jobs.restore", *options), archive.start("jobs.restore", *options)
    logs = ["".join(process.communicate(timeout=300)) for process in (first, second)]
    assert sorted((first.returncode, second.returncode)) == [3, TRY_LATER], logs
    loser = logs[0] if first.returncode == TRY_LATER else logs[1]
    winner = first if second.returncode == TRY_LATER else second
    assert "is writing to this output" in loser and f"process {winner.pid}" in loser
    archive.check("delta", "two")


def test_a_run_that_loses_its_lease_ends(archive: Archive) -> None:
    options = archive.options("delta", "lost-lease", lease_seconds=6)
    process = archive.start("jobs.restore", *options)
    folder = "archive/crash/lost-lease/state/lease"
    _wait_until(lambda: archive.store.exists(f"{folder}/00000001.json"))
    taken = archive.store.cat_file(f"{folder}/00000001.json").decode().replace('"host": "', '"host": "another-')
    archive.store.pipe_file(f"{folder}/00000002.json", taken.encode())
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1 and "lease" in err, out + err
    assert archive.table("delta", "lost-lease") is None
    time.sleep(7)
    archive.run("jobs.restore", *options)
    archive.check("delta", "lost-lease")


def test_a_killed_run_on_another_machine_holds_its_lease_until_that_expires(archive: Archive) -> None:
    options = archive.options("parquet", "elsewhere", lease_seconds=20)
    killed = archive.start("tests.crash.killer", "inside a stage", *options)
    killed.communicate(timeout=300)
    lease = "archive/crash/elsewhere/state/lease/00000001.json"
    content = archive.store.cat_file(lease).decode()
    archive.store.pipe_file(lease, content.replace('"process": "', '"process": "another-boot').encode())
    assert "its lease expires in" in archive.run("jobs.restore", *options, codes=(2,))
    time.sleep(20)
    archive.run("jobs.restore", *options)
    archive.check("parquet", "elsewhere")
