"""The desk: an actor beside the driver that all workers of a run ask and tell.

It is one, and imports little: each actor takes its time to start when all else starts, too.
"""

from __future__ import annotations

import collections
import time
from typing import NamedTuple

from pipeline.survival import Book


class Done(NamedTuple):
    """What tasks have said is done."""

    rows: int = 0
    megapixels: float = 0.0
    first_at: float | None = None
    """When the first of it was, by the clock."""
    steady_speed: float | None = None
    """Megapixels a second from then on to the last of it: without what it takes to begin."""


class Counter:
    """Counts the rows that the tasks say are done. A task that is repeated counts again: this is for show only."""

    def __init__(self) -> None:
        self._megapixels = 0.0
        self._first: tuple[float, float] | None = None
        self._last = 0.0
        self._speeds: list[float] = []
        self._statuses: collections.Counter[str] = collections.Counter()

    def found_speed(self, megapixels: float) -> None:
        """What the model alone does on one actor, in megapixels a second."""
        self._speeds.append(megapixels)

    def speed(self) -> float | None:
        """Of the model alone, in the mean of the actors."""
        return sum(self._speeds) / len(self._speeds) if self._speeds else None

    def add(self, statuses: dict[str, int], megapixels: float) -> None:
        """So many rows are done, by status, and so many megapixels."""
        self._statuses.update(statuses)
        self._megapixels += megapixels
        self._last = time.time()
        self._first = self._first or (self._last, megapixels)

    def done(self) -> Done:
        """All of it."""
        if self._first is None:
            return Done()
        first_at, begun = self._first
        seconds = self._last - first_at
        return Done(self.rows(), self._megapixels, first_at, (self._megapixels - begun) / seconds if seconds else None)

    def statuses(self) -> dict[str, int]:
        """How many rows are done, by status."""
        return dict(self._statuses)

    def rows(self) -> int:
        """How many are done."""
        return self._statuses.total()


class Flag:
    """Whether the run is to end."""

    def __init__(self) -> None:
        self._is_set = False

    def set(self) -> None:
        """It is."""
        self._is_set = True

    def is_set(self) -> bool:
        """What workers ask before they read more."""
        return self._is_set


class Desk(Book, Counter, Flag):
    """All of it."""

    def __init__(self) -> None:
        for part in (Book, Counter, Flag):
            part.__init__(self)
