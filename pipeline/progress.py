"""How far a run is: Ray's progress bar on a terminal, one plain log line at intervals elsewhere."""

from __future__ import annotations

import logging
import sys
import threading
import time
from types import TracebackType
from typing import Any, NamedTuple

import ray
import ray.data
import ray.exceptions

from pipeline.cluster import start_beside_driver
from pipeline.survival import Book

log = logging.getLogger(__name__)

INTERVAL = 10.0
"""Seconds between two lines."""


class Done(NamedTuple):
    """What tasks have said is done."""

    rows: int = 0
    megapixels: float = 0.0
    first_at: float | None = None
    """When the first of it was, by the clock."""
    steady_speed: float | None = None
    """Megapixels a second from then on to the last of it: without what it takes to begin."""


class _Counter:
    """Counts the rows that the tasks say are done. A task that is repeated counts again: this is for show only."""

    def __init__(self) -> None:
        self._rows, self._megapixels = 0, 0.0
        self._first: tuple[float, float] | None = None
        self._last = 0.0
        self._speeds: list[float] = []

    def found_speed(self, megapixels: float) -> None:
        self._speeds.append(megapixels)

    def speed(self) -> float | None:
        return sum(self._speeds) / len(self._speeds) if self._speeds else None

    def add(self, rows: int, megapixels: float) -> None:
        self._rows += rows
        self._megapixels += megapixels
        self._last = time.time()
        self._first = self._first or (self._last, megapixels)

    def done(self) -> Done:
        if self._first is None:
            return Done()
        first_at, begun = self._first
        seconds = self._last - first_at
        return Done(self._rows, self._megapixels, first_at, (self._megapixels - begun) / seconds if seconds else None)

    def rows(self) -> int:
        return self._rows


class Tally:
    """Shows progress while its block runs."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._started = time.monotonic()
        self.counter: Any = None
        """The actor to tell."""
        self.book: Any = None
        """The actor in which workers write down what they are at."""
        self.seconds = 0.0
        """That the block took."""
        self.bare_speed: float | None = None
        """Megapixels a second of the model alone, in the mean of the actors that have told it."""
        self.done = Done()
        """What came out within it."""

    def __enter__(self) -> Tally:
        terminal = sys.stderr.isatty()
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = terminal
        self.counter, self.book = start_beside_driver(_Counter), start_beside_driver(Book)
        if not terminal:
            logging.getLogger("ray.data").setLevel(logging.WARNING)
            self._thread = threading.Thread(target=self._show, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self.seconds = time.monotonic() - self._started
        if self._thread is not None:
            self._thread.join(2 * INTERVAL)
        try:
            self.bare_speed = ray.get(self.counter.speed.remote(), timeout=INTERVAL)
            self.done = ray.get(self.counter.done.remote(), timeout=INTERVAL)
        except ray.exceptions.RayError as problem:  # for show only
            log.debug("the counter does not answer: %s", problem)
        ray.kill(self.counter)
        ray.kill(self.book)

    def rows_left(self) -> int:
        """How many rows are still to do."""
        return max(0, self._rows - self._rows_done())

    def megapixels(self) -> float:
        """That are done so far."""
        done: Done = ray.get(self.counter.done.remote(), timeout=INTERVAL)
        return done.megapixels

    def _rows_done(self) -> int:
        done: int = ray.get(self.counter.rows.remote(), timeout=INTERVAL) if self.counter is not None else 0
        return done

    def _show(self) -> None:
        while not self._stop.wait(INTERVAL):
            try:
                done = self._rows_done()
            except ray.exceptions.RayError as problem:  # for show only
                log.debug("the counter does not answer: %s", problem)
                continue
            seconds = time.monotonic() - self._started
            left = f"about {(self._rows - done) * seconds / done:.0f} s left" if done else "starting"
            log.info("%d of %d rows, %.0f s, %s", min(done, self._rows), self._rows, seconds, left)
