"""Rows on which workers die: found, tried alone a few times, and then failed, so that all others come out.

A library may crash on an image, or an image may take more memory than there is; Ray starts the worker again and repeats
what it was at, without end. So every worker writes down in a book beside the driver what it begins and ends. What was
begun before and never ended is done row by row, and a row on which a worker died alone too often is given up. Workers
whose machine was lost do not count.
"""

from __future__ import annotations

import collections
import faulthandler
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.exceptions

from pipeline.errors import WorkerDied
from pipeline.schema import INTERNAL

log = logging.getLogger(__name__)

ALONE = 2
"""Deaths on a row alone after which it is given up."""
A_MEGAPIXEL = 30.0
"""Seconds that a row may take more for each megapixel, where its size is known."""
TOGETHER = 10.0
"""Seconds that rows which are tried together may take more for each: those of a hanging one are then tried alone."""
ANSWER = 60.0
"""Seconds in which the book answers."""

Work = Callable[[pa.Table], Iterator[pa.Table]]


class Book:
    """What workers are at; an actor beside the driver."""

    def __init__(self, alive: Callable[[], set[str]] | None = None) -> None:
        """`alive`: tells the ids of machines that are there; if not given, Ray does."""
        self._alive = alive or _machines
        self._begun: collections.Counter[tuple[str, str]] = collections.Counter()
        self._alone: dict[tuple[str, str], list[str]] = {}

    def begin(self, stage: str, keys: Sequence[str]) -> bool:
        """Note the beginning; whether work on any of these rows was begun before and has not ended."""
        rows = [(stage, key) for key in keys]
        is_repeated = any(row in self._begun for row in rows)
        self._begun.update(rows)
        return is_repeated

    def begin_alone(self, stage: str, key: str, machine: str) -> int:
        """Note that a row is done alone on a machine, unless that has killed workers `ALONE` times.

        Returns:
            How often it has, on machines that are still there.
        """
        tried = self._alone.setdefault((stage, key), [])
        if tried:
            alive = self._alive()
            tried[:] = [one for one in tried if one in alive]
        deaths = len(tried)
        if deaths < ALONE:
            tried.append(machine)
        return deaths

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
        if not keys:
            yield from work(table)
            return
        if not self._asked(False, self._book.begin, self._stage, keys):
            yield from self._watched(table, work)
        else:
            log.warning("a worker has died at %d rows in %s; now one by one", len(keys), self._stage)
            for row, key in enumerate(keys):
                yield from self._alone(table.slice(row, 1), key, work)
        self._book.end.remote(self._stage, keys)

    def _alone(self, row: pa.Table, key: str, work: Work) -> list[pa.Table]:
        machine = ray.get_runtime_context().get_node_id()
        deaths: int = self._asked(0, self._book.begin_alone, self._stage, key, machine)
        if deaths >= ALONE:
            message = (
                f"the worker died each of the {deaths} times that it was at this row alone: memory ran out, a library "
                f"crashed, or it took longer than limits.row_seconds ({self._seconds:g})"
            )
            return [self._fail(row, WorkerDied(message, attempts=deaths + 1))]
        done = list(self._watched(row, work))
        self._asked(None, self._book.end, self._stage, [key])
        return done

    def _asked(self, otherwise: Any, method: Any, *arguments: Any) -> Any:
        """What the book says; if it does not answer, the work goes on all the same."""
        try:
            return ray.get(method.remote(*arguments), timeout=ANSWER)
        except ray.exceptions.RayError as error:
            log.warning("the book of what workers are at does not answer: %s", error)
            return otherwise

    def _watched(self, table: pa.Table, work: Work) -> Iterator[pa.Table]:
        """Nothing but its own end stops a worker that hangs in a library, and that needs no interpreter. The time that
        others take with what was handed on does not count."""
        left = self._seconds + TOGETHER * (table.num_rows - 1) + A_MEGAPIXEL * _megapixels(table)
        tables = _lazily(work, table)
        while True:
            started = time.monotonic()
            faulthandler.dump_traceback_later(max(left, 0.1), exit=True, file=2)
            try:
                done = next(tables, None)
            finally:
                faulthandler.cancel_dump_traceback_later()
            left -= time.monotonic() - started
            if done is None:
                return
            yield done


def _lazily(work: Work, table: pa.Table) -> Iterator[pa.Table]:
    """Nothing is done before the first of it is asked for, however the work is given."""
    yield from work(table)


def _machines() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def _megapixels(table: pa.Table) -> float:
    """Of decoded rows."""
    height, width = INTERNAL + "height", INTERNAL + "width"
    if height not in table.column_names:
        return 0.0
    pixels = pc.sum(pc.multiply(table[height].cast(pa.float64()), table[width])).as_py()
    return (pixels or 0.0) / 1e6
