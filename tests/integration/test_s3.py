"""The job on a real S3 server."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs

from tests.conftest import ROOT, encoded, noise

KEYS = {"AWS_ACCESS_KEY_ID": "archivist", "AWS_SECRET_ACCESS_KEY": "a-secret-of-the-tests"}


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A SeaweedFS with one bucket; yields the environment with which to reach it."""
    folder = tmp_path_factory.mktemp("seaweed")
    weed = Path(sys.executable).parent / "weed"
    command = [weed, "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-bucket=archive"]
    command += ["-admin.ui=false", "-webdav=false"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, env=os.environ | KEYS, stdout=log, stderr=log)
        try:
            _wait_for(8333)
            yield KEYS | {"AWS_ENDPOINT_URL": "http://127.0.0.1:8333", "AWS_DEFAULT_REGION": "us-east-1"}
        finally:
            server.terminate()
            server.wait(20)


def _wait_for(port: int) -> None:
    for _ in range(120):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                time.sleep(3)  # the bucket is made just after the port opens
                return
        time.sleep(0.5)
    raise RuntimeError("the S3 server did not start")


def job(environment: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jobs.restore", *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | environment)


def test_an_archive_on_s3_is_restored_to_s3(s3: dict[str, str]) -> None:
    store = s3fs.S3FileSystem(
        key=s3["AWS_ACCESS_KEY_ID"], secret=s3["AWS_SECRET_ACCESS_KEY"], endpoint_url=s3["AWS_ENDPOINT_URL"]
    )
    rows = [{"id": f"{n}", "image": encoded(noise(50, 60, n)), "shelf": n} for n in range(6)] + [
        {"id": "broken", "image": b"broken", "shelf": 9}
    ]
    with store.open("archive/source/a.parquet", "wb") as file:
        pq.write_table(pa.Table.from_pylist(rows), file)
    done = job(s3, "--source", "s3://archive/source", "--output", "s3://archive/out")
    assert done.returncode == 3, done.stderr
    store.invalidate_cache()
    table = pq.read_table("archive/out/data", filesystem=store).to_pylist()
    assert sorted((row["id"], row["shelf"]) for row in table) == sorted((row["id"], row["shelf"]) for row in rows)
    assert {"report.html", "summary.json", "data", "state"} <= {Path(path).name for path in store.ls("archive/out")}
    assert s3["AWS_SECRET_ACCESS_KEY"] not in done.stderr + done.stdout


def test_wrong_keys_are_refused_with_exit_code_two_and_not_shown(s3: dict[str, str]) -> None:
    wrong = s3 | {"AWS_SECRET_ACCESS_KEY": "wrong-secret"}
    done = job(wrong, "--source", "s3://archive/source", "--output", "s3://archive/out2")
    assert done.returncode == 2, done.stderr
    assert "s3://archive/source" in done.stderr
    assert "wrong-secret" not in done.stderr + done.stdout
