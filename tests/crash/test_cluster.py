"""Jobs sent to a cluster over HTTP, whose machines are lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray._private.node import Node
from ray.cluster_utils import Cluster

from tests.conftest import ROOT, encoded, free_port, noise
from tests.crash.test_crash import Archive, _wait_until, _workers
from tests.seaweed import Seaweed

pytestmark = pytest.mark.slow

FILES, ROWS = 12, 10
IDS = {f"f{file}-{row}" for file in range(FILES) for row in range(ROWS)}


class Large(Archive):
    """More rows, so that machines can be lost on the way."""

    def __init__(self, server: Seaweed) -> None:
        self.server, self.store = server, server.store()
        for file in range(FILES):
            rows = [{"id": f"f{file}-{row}", "image": encoded(noise(420, 440, 50 * file + row))} for row in range(ROWS)]
            with self.store.open(f"archive/large/source/{file}.parquet", "wb") as opened:
                pq.write_table(pa.Table.from_pylist(rows), opened, row_group_size=2)

    def options(self, kind: str, name: str, **more: object) -> list[str]:
        options = super().options(kind, name, **more)
        options[1] = "s3://archive/large/source"
        return options

    def files(self, name: str) -> set[str]:
        """With rows, committed or not."""
        return {path for path in self.store.find(f"archive/crash/{name}/data") if path.endswith(".parquet")}

    def ids(self, kind: str, name: str) -> Counter[str]:
        table = self.table(kind, name)
        return Counter() if table is None else Counter(table["id"].to_list())


@pytest.fixture(scope="module")
def archive(s3: Seaweed) -> Large:
    return Large(s3)


@pytest.fixture
def start_cluster(archive: Large, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Cluster]]:
    for variable, value in (archive.server.environment | {"RAY_AUTH_MODE": "disabled"}).items():
        monkeypatch.setenv(variable, value)  # for the machines of the cluster too
    started: list[Cluster] = []

    def start() -> Cluster:
        options = {"num_cpus": 1, "include_dashboard": True, "dashboard_agent_listen_port": free_port()}
        started.append(Cluster(initialize_head=True, head_node_args=options))
        return started[-1]

    yield start
    for cluster in started:
        cluster.shutdown()


def submit(archive: Large, cluster: Cluster, *words: str) -> subprocess.Popen[str]:
    variables = {"PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    options = [f"--env={name}={value}" for name, value in variables.items()]
    return archive.start("jobs.submit", f"--address=http://{cluster.webui_url}", *options, "--", "restore", *words)


def lose_at_work(cluster: Cluster, machine: Node) -> None:
    """SIGKILL to its raylet, as it restores or decodes."""
    _wait_until(lambda: any("ray::" in worker and "IDLE" not in worker for worker in _workers(machine)))
    cluster.remove_node(machine, allow_graceful=False)


def test_a_submitted_job_outlives_the_loss_of_two_machines(
    archive: Large, start_cluster: Callable[[], Cluster]
) -> None:
    cluster = start_cluster()
    machines = [cluster.add_node(num_cpus=3) for _ in range(2)]
    process = submit(archive, cluster, *archive.options("iceberg", "two-lost"))
    _wait_until(lambda: len(archive.files("two-lost")) >= 2)
    lose_at_work(cluster, machines[0])
    cluster.add_node(num_cpus=3)
    time.sleep(3)
    lose_at_work(cluster, machines[1])
    assert sum(archive.ids("iceberg", "two-lost").values()) < len(IDS), "it was over before the machines were lost"
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, out[-3000:] + err[-3000:]
    assert archive.ids("iceberg", "two-lost") == Counter(IDS)
    assert "nothing new" in archive.run("jobs.restore", *archive.options("iceberg", "two-lost"), codes=(0,))


def test_a_job_whose_head_is_lost_goes_on_when_it_is_submitted_again(
    archive: Large, start_cluster: Callable[[], Cluster]
) -> None:
    cluster = start_cluster()
    cluster.add_node(num_cpus=4)
    process = submit(archive, cluster, *archive.options("iceberg", "head-lost"))
    _wait_until(lambda: len(archive.files("head-lost")) >= 4)
    drivers = [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if b"jobs.cli\0restore" in path.read_bytes() and b"head-lost" in path.read_bytes()
    ]
    assert drivers
    for driver in drivers:  # it is on the head's machine
        os.kill(driver, signal.SIGKILL)
    cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False)
    process.communicate(timeout=300)
    assert process.returncode not in (0, 3)
    done, written = archive.ids("iceberg", "head-lost"), archive.files("head-lost")
    assert sum(done.values()) < len(IDS) and max(done.values(), default=1) == 1
    cluster.shutdown()
    again = start_cluster()
    again.add_node(num_cpus=4)
    process = submit(archive, again, *archive.options("iceberg", "head-lost"))
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, out[-3000:] + err[-3000:]
    assert archive.ids("iceberg", "head-lost") == Counter(IDS)
    kept = written & archive.files("head-lost")
    assert kept, "what was done is not done again"
