"""A run that is to end early: nothing more is read, and what is in flight is finished within a grace time.

Signals, in the main thread, only set an event; a thread of its own tells the workers and watches the time.
"""

from __future__ import annotations

import _thread
import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import ray
import ray.exceptions

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)
LOOK = 2.0
"""Seconds between two questions how much is done."""
ANSWER = 30.0
"""Seconds in which the actor answers a worker; one that does not is taken to have nothing to say."""
ASK = 0.5
"""Seconds between two questions of a task: small files are read faster than questions are answered."""


class Drain:
    """Whether a run is to end, and how its workers hear of it."""

    def __init__(self, grace: float, deadline: float | None = None, megapixels: float | None = None) -> None:
        """When a run is to end by itself.

        Args:
            grace: seconds from the request until what is still in flight is given up.
            deadline: seconds from now until the request is made.
            megapixels: so many done, and it is made.
        """
        self._grace = grace
        self._until = None if deadline is None else time.monotonic() + deadline
        self._most = megapixels
        self.reason: str | None = None
        """Why the run ends, if nobody has told it to."""
        self._requested = threading.Event()
        self._begun = threading.Event()
        self._over = threading.Event()

    def again(self) -> Drain:
        """For what comes after, in what is left of the time."""
        left = None if self._until is None else max(0.0, self._until - time.monotonic())
        return Drain(self._grace, left)

    @property
    def requested(self) -> bool:
        """Whether the run is to end."""
        return self._requested.is_set()

    def request(self) -> None:
        """End the run: at once before anything is in flight, or the second time; never in the last commit."""
        if self._over.is_set():
            return
        if self._requested.is_set() or not self._begun.is_set():
            raise KeyboardInterrupt
        self._requested.set()

    def give_up(self) -> None:
        """End the run without a grace time, from any thread."""
        if self._begun.is_set() and not self._over.is_set():
            self._requested.set()
            _thread.interrupt_main()

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[None]:
        """SIGTERM and Ctrl-C request the end while the block runs."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(number: int, frame: FrameType | None) -> None:
            self.request()

        before = {number: signal.signal(number, handle) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def told(self, desk: Any, megapixels: Callable[[], float] = float) -> Iterator[Callable[[], bool]]:
        """Gives what workers ask `desk`. After the grace time the main thread is interrupted.

        `megapixels` tells how many are done.
        """
        thread = threading.Thread(target=self._watch, args=(desk, megapixels), name="drain", daemon=True)
        thread.start()
        self._begun.set()
        try:
            yield _Ask(desk)
        finally:
            self._over.set()
            thread.join(5)

    def _watch(self, desk: Any, megapixels: Callable[[], float]) -> None:
        asked = time.monotonic()
        while not self._requested.wait(0.2):
            if self._over.is_set():
                return
            now = time.monotonic()
            if self._until is not None and now >= self._until:
                self.reason = "its deadline"
            elif self._most is not None and now - asked > LOOK:
                asked, done = now, _told(megapixels)
                if done >= self._most:
                    self.reason = f"{done:.1f} megapixels, of which it was to do {self._most:g}"
            if self.reason is not None:
                self._requested.set()
        log.warning(
            "stopping: what is in flight is finished, for %.0f s at most; a second signal stops at once", self._grace
        )
        with contextlib.suppress(ray.exceptions.RayError):  # then more is read until the grace time is over
            ray.get(desk.set.remote())
        if not self._over.wait(self._grace):
            log.warning("%.0f s are over; what is not finished is done by the next run", self._grace)
            _thread.interrupt_main()


def _told(megapixels: Callable[[], float]) -> float:
    try:
        return megapixels()
    except ray.exceptions.RayError as problem:  # then later
        log.debug("how much is done is not known: %s", problem)
        return 0.0


class _Ask:
    """Travels to Ray's workers."""

    def __init__(self, desk: Any) -> None:
        self._desk, self._asked = desk, float("-inf")

    def __call__(self) -> bool:
        now = time.monotonic()
        if now - self._asked < ASK:
            return False
        self._asked = now
        try:
            return bool(ray.get(self._desk.is_set.remote(), timeout=ANSWER))
        except ray.exceptions.RayError:
            return False
