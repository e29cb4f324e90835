"""Rows on which workers die: found, tried alone a few times, and then failed, so that all others come out.

A library may crash on an image, or an image may take more memory than there is; Ray starts the worker again and repeats
what it was at, without end. So every worker writes down in a book beside the driver what it begins and ends. What was
begun before and never ended is done row by row, and a row on which a worker died alone too often is given up.
"""

from __future__ import annotations

import collections
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from pipeline.errors import WorkerDied
from pipeline.schema import INTERNAL

log = logging.getLogger(__name__)

ALONE = 2
"""Deaths on a row alone after which it is given up: one may be a machine that was taken away."""
DIED = 70
"""Exit code of a worker that ends itself."""

A_MEGAPIXEL = 30.0
"""Seconds that a row may take more for each megapixel, where its size is known."""

Work = Callable[[pa.Table], Iterator[pa.Table]]


class Book:
    """What workers are at; an actor beside the driver."""

    def __init__(self) -> None:
        self._begun: collections.Counter[tuple[str, str]] = collections.Counter()
        self._alone: collections.Counter[tuple[str, str]] = collections.Counter()

    def begin(self, stage: str, keys: Sequence[str]) -> bool:
        """Note the beginning; whether work on any of these rows was begun before and has not ended."""
        rows = [(stage, key) for key in keys]
        is_repeated = any(row in self._begun for row in rows)
        self._begun.update(rows)
        return is_repeated

    def begin_alone(self, stage: str, key: str) -> int:
        """Note that a row is done alone; how often that was begun before and has not ended."""
        before = self._alone[stage, key]
        self._alone[stage, key] += 1
        return before

    def end(self, stage: str, keys: Sequence[str]) -> None:
        """Work on these rows has ended, whatever came of it."""
        for key in keys:
            self._begun.pop((stage, key), None)
            self._alone.pop((stage, key), None)


class Guard:
    """Does a stage's work on tables of rows, in a worker that may die of it."""

    def __init__(self, book: Any, stage: str, seconds: float, fail: Callable[[pa.Table, WorkerDied], pa.Table]) -> None:
        """Of one stage.

        Args:
            book: the actor.
            stage: its name.
            seconds: so long a row may take; a worker that takes longer ends itself.
            fail: rows as the stage hands on what has failed.
        """
        self._book, self._stage, self._seconds, self._fail = book, stage, seconds, fail

    def __call__(self, table: pa.Table, keys: Sequence[str], work: Work) -> Iterator[pa.Table]:
        """What `work` makes of the rows; `keys` tell them apart, over all tables of the run."""
        if not ray.get(self._book.begin.remote(self._stage, keys)):
            yield from self._watched(table, work)
        else:
            log.warning("a worker has died at %d rows in %s; now one by one", len(keys), self._stage)
            for row, key in enumerate(keys):
                yield from self._alone(table.slice(row, 1), key, work)
        self._book.end.remote(self._stage, keys)

    def _alone(self, row: pa.Table, key: str, work: Work) -> Iterator[pa.Table]:
        deaths = ray.get(self._book.begin_alone.remote(self._stage, key))
        if deaths >= ALONE:
            message = (
                f"the worker died each of the {deaths} times that it was at this row alone: a library crashed, memory "
                f"ran out, or it took longer than limits.row_seconds ({self._seconds:g})"
            )
            yield self._fail(row, WorkerDied(message, attempts=deaths))
            return
        yield from self._watched(row, work)
        ray.get(self._book.end.remote(self._stage, [key]))

    def _watched(self, table: pa.Table, work: Work) -> Iterator[pa.Table]:
        """Nothing but its own end stops a worker that hangs in a library. The time that others take with what was
        handed on does not count."""
        left = table.num_rows * self._seconds + A_MEGAPIXEL * _megapixels(table)
        tables = work(table)
        while True:
            started = time.monotonic()
            timer = threading.Timer(left, _die, [self._stage, table.num_rows])
            timer.daemon = True
            timer.start()
            try:
                done = next(tables, None)
            finally:
                timer.cancel()
            left -= time.monotonic() - started
            if done is None:
                return
            yield done


def _megapixels(table: pa.Table) -> float:
    """Of decoded rows."""
    height, width = INTERNAL + "height", INTERNAL + "width"
    if height not in table.column_names:
        return 0.0
    pixels = pc.sum(pc.multiply(table[height].cast(pa.float64()), table[width])).as_py()
    return (pixels or 0.0) / 1e6


def _die(stage: str, rows: int) -> None:
    log.error("%d rows took too long in %s: this worker ends itself", rows, stage)
    sys.stderr.flush()
    os._exit(DIED)
