"""Commands sent to a cluster through its job API."""

from __future__ import annotations

import http.server
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from ray.cluster_utils import Cluster
from ray.job_submission import JobSubmissionClient

import jobs.submit
from jobs.cli import main
from pipeline.errors import TRY_LATER
from tests.conftest import ROOT, encoded, free_port, noise

Write = Callable[..., Path]

TOKEN = "0123456789abcdef" * 4


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A cluster of one node, with its dashboard."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 3,
                "include_dashboard": True,
                "object_store_memory": 300_000_000,
                "dashboard_agent_listen_port": free_port(),  # another Ray of this machine may have the usual one
            },
        )
        try:
            yield f"http://{cluster.webui_url}"
        finally:
            cluster.shutdown()


def submit(address: str, *words: str, options: Sequence[str] = ()) -> int:
    path = f"PATH={Path(sys.executable).parent}:{os.environ['PATH']}"
    return main(["submit", "--address", address, "--env", f"PYTHONPATH={ROOT}", "--env", path, *options, "--", *words])


def test_a_job_ends_with_the_exit_code_of_its_command(
    address: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert submit(address, "models", "show", "compact") == 0
    assert "# compact" in capfd.readouterr().out
    assert submit(address, "runs", str(tmp_path / "no where; echo here")) == 2
    assert capfd.readouterr().out.count("holds no finished run") == 1
    assert submit(address, "runs", str(tmp_path), options=["--ok", "2", "--log-format", "json"]) == 0


@pytest.mark.slow
def test_a_job_that_runs_already_is_followed_and_one_that_has_ended_gets_a_number(address: str) -> None:
    client = JobSubmissionClient(address)
    client.submit_job(entrypoint="sleep 600", submission_id="nightly")
    try:
        assert submit(address, "models", options=["--name", "nightly", "--no-wait"]) == 0
        assert [job.submission_id for job in client.list_jobs()].count("nightly-2") == 0
    finally:
        client.stop_job("nightly")
    while not client.get_job_status("nightly").is_terminal():
        time.sleep(0.2)
    assert submit(address, "models", "show", "compact", options=["--name", "nightly"]) == 0
    assert client.get_job_status("nightly-2") == "SUCCEEDED"


@pytest.mark.slow
def test_a_signal_is_passed_on(address: str, tmp_path: Path) -> None:
    words = ["--address", address, "--env", f"PATH={tmp_path}:{os.environ['PATH']}", "--", "models"]
    python = tmp_path / "python"  # stands for a run: it ends as one does that is told to
    python.write_text("#!/bin/sh\ntrap 'echo told; exit 130' TERM\necho at work\nwhile :; do sleep 0.1; done\n")
    python.chmod(0o755)
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.submit", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    said = ""
    while "at work" not in said and process.poll() is None:
        said += process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "stopping the job" in rest


@pytest.mark.slow
def test_an_archive_is_restored_by_a_job(address: str, write_table: Write, tmp_path: Path) -> None:
    write_table([{"id": f"{n}", "image": encoded(noise(60, 80, n))} for n in range(5)])
    words = ["restore", "--source", str(tmp_path / "source"), "--output", str(tmp_path / "out")]
    assert submit(address, *words) == 0
    assert sorted(pq.read_table(tmp_path / "out/data")["id"].to_pylist()) == list("01234")


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """A cluster that wants a token, and an environment without one."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "token"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    ports = {name: free_port() for name in ("port", "dashboard-port", "dashboard-agent-listen-port")}
    options = ["--include-dashboard=true", "--num-cpus=3", "--object-store-memory=300000000", "--block"]
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # sockets' names must be short
        start = ["ray", "start", "--head", f"--temp-dir={folder}", *options]
        start += [f"--{name}={port}" for name, port in ports.items()]
        with (tmp_path / "ray.log").open("w") as log:
            ray = subprocess.Popen(start, env=environment | {"RAY_AUTH_TOKEN": TOKEN}, stdout=log, stderr=log)
        try:
            while "Ray runtime started" not in (said := (tmp_path / "ray.log").read_text()):
                assert ray.poll() is None, said
                time.sleep(0.2)
            yield f"http://127.0.0.1:{ports['dashboard-port']}", environment
        finally:
            ray.terminate()  # and its processes with it
            ray.wait(60)


@pytest.mark.slow
def test_a_cluster_with_a_token_lets_in_who_has_it(guarded: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    address, environment = guarded
    (tmp_path / "right").write_text(TOKEN)

    def sent(**given: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "jobs.cli", "submit", "--address", address, "--env", f"PYTHONPATH={ROOT}"]
        command += ["--env", f"PATH={environment['PATH']}", "--", "models", "show", "compact"]
        done = subprocess.run(
            command, env=environment | given, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout + done.stderr

    for given in ({"RAY_AUTH_TOKEN": TOKEN}, {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "right")}):
        code, said = sent(**given)
        assert code == 0 and "# compact" in said, said
        assert TOKEN not in said
    for given in ({}, {"RAY_AUTH_TOKEN": TOKEN[::-1]}, {"RAY_AUTH_MODE": "disabled"}):
        code, said = sent(**given)
        assert code == 2 and "wants a token" in said and "RAY_AUTH_TOKEN_PATH" in said, said
        assert "Traceback" not in said and TOKEN[::-1] not in said


def test_what_is_wrong_is_told_before_anything_is_sent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, said, code in (
        (["--address", "http://127.0.0.1:1", "--", "models"], "127.0.0.1:1", TRY_LATER),
        (["--address", "127.0.0.1:1", "--", "models"], "http://HEAD:8265", 2),
        (["--address", "http://127.0.0.1:1", "--name", "a/b", "--", "models"], "--name a/b", 2),
        (["--address", "http://127.0.0.1:1", "--", "restor"], "no such command", 2),
        (["--address", "http://127.0.0.1:1"], "which command", 2),
        (["--env", "A", "--", "models"], "NAME=VALUE", 2),
        (["--working-dir", str(tmp_path / "nowhere"), "--", "models"], "no folder", 2),
    ):
        assert main(["submit", *words]) == code
        assert said in capsys.readouterr().err


def test_what_answers_and_is_no_cluster_or_says_nothing_is_not_waited_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs.submit, "ANSWER", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert main(["submit", "--address", address, "--", "models"]) == TRY_LATER
        assert address in capsys.readouterr().err

    class Odd(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(b'{"ray_version": "2.60.0", "version": "4", "odd": 1}')

        def log_message(self, format: str, *values: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Odd)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        assert main(["submit", "--address", f"http://127.0.0.1:{server.server_port}", "--", "models"]) in (2, TRY_LATER)
        assert "should not have happened" not in capsys.readouterr().err
    finally:
        server.shutdown()
