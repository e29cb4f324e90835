"""Commands sent to a cluster through its job API."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from ray.cluster_utils import Cluster

from jobs.cli import main
from tests.conftest import ROOT, encoded, noise

Write = Callable[..., Path]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A cluster of one node, with its dashboard."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 3, "include_dashboard": True, "object_store_memory": 300_000_000},
        )
        try:
            yield f"http://{cluster.webui_url}"
        finally:
            cluster.shutdown()


def submit(address: str, *words: str) -> int:
    path = f"PATH={Path(sys.executable).parent}:{os.environ['PATH']}"
    return main(["submit", "--address", address, "--env", f"PYTHONPATH={ROOT}", "--env", path, "--", *words])


def test_a_job_ends_with_the_exit_code_of_its_command(
    address: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert submit(address, "models", "show", "compact") == 0
    assert "# compact" in capfd.readouterr().out
    assert submit(address, "runs", str(tmp_path / "no where; echo here")) == 2
    assert "holds no finished run" in capfd.readouterr().out


@pytest.mark.slow
def test_an_archive_is_restored_by_a_job(address: str, write_table: Write, tmp_path: Path) -> None:
    write_table([{"id": f"{n}", "image": encoded(noise(60, 80, n))} for n in range(5)])
    words = ["restore", "--source", str(tmp_path / "source"), "--output", str(tmp_path / "out")]
    assert submit(address, *words) == 0
    assert sorted(pq.read_table(tmp_path / "out/data")["id"].to_pylist()) == list("01234")


def test_what_is_wrong_is_told_before_anything_is_sent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        (["--address", "http://127.0.0.1:1", "--", "models"], "127.0.0.1:1"),
        (["--address", "http://127.0.0.1:1"], "which command"),
        (["--env", "A", "--", "models"], "NAME=VALUE"),
        (["--working-dir", str(tmp_path / "nowhere"), "--", "models"], "no folder"),
    ):
        assert main(["submit", *words]) == 2
        assert said in capsys.readouterr().err
