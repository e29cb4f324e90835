"""Runs `conservator restore` and kills it (SIGKILL) at a chosen point: `python -m tests.crash.killer POINT OPTION…`.

Some points lie in Ray's workers; what kills there travels to them and knows the number of the driver's process.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from jobs.cli import main
from pipeline import flow
from pipeline.lake.commits import Committer
from pipeline.lake.delta import DeltaLakeTable
from pipeline.lake.iceberg import IcebergTable
from pipeline.lake.ledger import Ledger
from pipeline.lake.manifest import ManifestTable
from pipeline.lake.output import Output
from pipeline.stages.encode import EncodeStage

DRIVER = "CONSERVATOR_TEST_DRIVER"
POINT = "CONSERVATOR_TEST_POINT"
HALF = 1000
"""Bytes of a data file that is written by half."""


def kill() -> None:
    """The driver dies; who kills it does not go on."""
    os.kill(int(os.environ[DRIVER]), signal.SIGKILL)
    time.sleep(60)


class KillingEncode(EncodeStage):
    """Kills the driver when the first rows are encoded."""

    def __call__(self, table: pa.Table) -> pa.Table:
        kill()
        return super().__call__(table)


class KillingHandler(pafs.FSSpecHandler):
    """Kills the driver as a worker writes a data file, or finishes its checkpoint."""

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        if os.environ[POINT] == "data file by half" and "/data/" in path:
            self.fs.pipe_file(path, b"PAR1" + bytes(HALF))
            kill()
        return super().open_output_stream(path, metadata)

    def move(self, src: str, dest: str) -> None:
        if os.environ[POINT] == "data file without its checkpoint" and ".pending" in src:
            kill()
        super().move(src, dest)
        if os.environ[POINT] == "first data file with its checkpoint" and ".pending" in src:
            kill()


def before(owner: type, name: str) -> None:
    """The driver dies before a method does its work."""
    setattr(owner, name, lambda *_, **__: kill())


def after(owner: type, name: str) -> None:
    """The driver dies after a method has done its work."""
    method = getattr(owner, name)

    @functools.wraps(method)
    def dying(*arguments: Any, **more: Any) -> None:
        method(*arguments, **more)
        kill()

    setattr(owner, name, dying)


def later(seconds: float) -> None:
    """The driver dies after some time."""
    threading.Timer(seconds, kill).start()


def _tables(when: Callable[[type, str], None]) -> None:
    for table in (ManifestTable, IcebergTable, DeltaLakeTable):
        when(table, "commit")


def _before_the_commit() -> None:
    before(Committer, "commit")
    before(Committer, "replace")


POINTS: dict[str, Callable[[], None]] = {
    "inside a stage": lambda: setattr(flow, "EncodeStage", KillingEncode),
    "data file by half": lambda: None,
    "data file without its checkpoint": lambda: None,
    "first data file with its checkpoint": lambda: None,
    "all written, before the commit": _before_the_commit,
    "commit written down, not made": lambda: _tables(before),
    "commit made, not in the ledger": lambda: _tables(after),
    "in the ledger, before the run's end": lambda: after(Ledger, "add"),
    "before the run is marked finished": lambda: before(Output, "finish"),
}

if __name__ == "__main__":
    point, *options = sys.argv[1:]
    os.environ |= {DRIVER: str(os.getpid()), POINT: point}
    pafs.FSSpecHandler = KillingHandler
    if point in POINTS:
        POINTS[point]()
    else:
        later(float(point))
    sys.exit(main(["restore", *options]))
