"""How far a run is: Ray's progress bar on a terminal, one plain log line at intervals elsewhere."""

from __future__ import annotations

import logging
import sys
import threading
import time
from types import TracebackType
from typing import Any

import ray
import ray.data
import ray.exceptions

from pipeline.cluster import Pool
from pipeline.desk import Done

log = logging.getLogger(__name__)

INTERVAL = 10.0
"""Seconds between two lines."""


class Tally:
    """Shows progress while its block runs."""

    def __init__(self, desk: Any) -> None:
        """`desk` is the actor that workers tell."""
        self._rows, self.desk = 0, desk
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._started = time.monotonic()
        self.pool: Pool | None = None
        """The restoring actors, once there are some."""
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
            self.bare_speed = ray.get(self.desk.speed.remote(), timeout=INTERVAL)
            self.done = self._done()
        except ray.exceptions.RayError as problem:  # for show only
            log.debug("the desk does not answer: %s", problem)

    def expect(self, rows: int) -> None:
        """So many more are to be done."""
        self._rows += rows

    def so_far(self) -> tuple[float, Done]:
        """Seconds since the block began, or that it took, and what has come out in them."""
        if self.seconds:
            return self.seconds, self.done
        return time.monotonic() - self._started, self._done()

    def rows_left(self) -> int:
        """How many rows are still to do."""
        return max(0, self._rows - self._rows_done())

    def statuses(self) -> dict[str, int]:
        """How many rows are done, by status."""
        found: dict[str, int] = ray.get(self.desk.statuses.remote(), timeout=INTERVAL)
        return found

    def megapixels(self) -> float:
        """That are done so far."""
        return self._done().megapixels

    def _done(self) -> Done:
        done: Done = ray.get(self.desk.done.remote(), timeout=INTERVAL)
        return done

    def _rows_done(self) -> int:
        done: int = ray.get(self.desk.rows.remote(), timeout=INTERVAL)
        return done

    def _show(self) -> None:
        while not self._stop.wait(INTERVAL):
            try:
                done = self._rows_done()
            except ray.exceptions.RayError as problem:  # for show only
                log.debug("the desk does not answer: %s", problem)
                continue
            seconds = time.monotonic() - self._started
            left = f"about {(self._rows - done) * seconds / done:.0f} s left" if done else "starting"
            log.info("%d of %d rows, %.0f s, %s", min(done, self._rows), self._rows, seconds, left)
