"""Runs `conservator …` with workers that die of rows: `python -m tests.integration.poisoned OPTION…`.

A row's caption says in which stage its worker dies, and how.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa

from jobs.cli import main
from pipeline import actors, flow, workers
from pipeline.schema import INTERNAL
from pipeline.stages.decode import DecodeStage
from pipeline.stages.encode import EncodeStage

WAYS: dict[str, Callable[[], object]] = {
    "crashes": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "is killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "hangs": lambda: time.sleep(1000),
}


def die_of(table: pa.Table, stage: str, column: str = "caption") -> None:
    for caption in table[column].to_pylist():
        if caption.startswith(stage + " "):
            WAYS[caption.removeprefix(stage + " ")]()


class Decode(workers.Decode):
    @staticmethod
    def _decoded(stage: DecodeStage, table: pa.Table) -> Iterator[pa.Table]:
        die_of(table, "decode")
        yield from workers.Decode._decoded(stage, table)


class Restore(actors.Restore):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        stage = self._stage

        def deadly(table: pa.Table) -> pa.Table:
            assert INTERNAL + "pixels" in table.column_names
            die_of(table, "restore")
            return stage(table)

        self._stage = deadly  # type: ignore[assignment]


class Encode(EncodeStage):
    def __call__(self, table: pa.Table) -> pa.Table:
        failed = table[INTERNAL + "status"].to_pylist()
        if set(failed) != {"failed"}:  # the guard fails rows through the stage, too
            die_of(table, "encode")
        return super().__call__(table)


if __name__ == "__main__":
    flow.Decode, flow.Restore, flow.EncodeStage = Decode, Restore, Encode  # type: ignore[misc]
    sys.exit(main(sys.argv[1:]))
