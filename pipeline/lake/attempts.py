"""Passing errors of stores are tried again here, and nowhere else."""

from __future__ import annotations

import dataclasses
import errno
import random
import time
from collections.abc import Callable
from typing import TypeVar

from pipeline.errors import ConservatorError

T = TypeVar("T")

FIRST_WAIT = 0.5
LONGEST_WAIT = 20.0
"""Seconds between attempts; doubled each time, with jitter."""
PERMANENT = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError, ValueError)
PERMANENT_CODES = (errno.ENAMETOOLONG, errno.EINVAL, errno.ELOOP, errno.ENOSPC)


class GaveUp(Exception):
    """What was tried failed to the end; the last error is the cause."""

    def __init__(self, attempts: int, permanent: bool) -> None:
        super().__init__(f"{attempts} attempts")
        self.attempts = attempts
        self.permanent = permanent
        """Whether another attempt would have met the same error."""


@dataclasses.dataclass(frozen=True)
class Attempts:
    """How often, and with what pauses. Travels to Ray's workers."""

    count: int = 4

    def __call__(self, action: Callable[[], T]) -> T:
        """The result of `action`, which must bear to be done twice.

        Raises:
            GaveUp: it failed for good, or in every attempt; `__cause__` is its error.
        """
        wait = FIRST_WAIT
        for attempt in range(1, self.count + 1):
            try:
                return action()
            except Exception as error:  # what a store raises when it is busy or away differs from driver to driver
                if is_permanent(error) or attempt == self.count:
                    raise GaveUp(attempt, is_permanent(error)) from error
                time.sleep(wait * random.uniform(0.5, 1.0))
                wait = min(2 * wait, LONGEST_WAIT)
        raise AssertionError("count is at least 1")


def is_permanent(error: Exception) -> bool:
    """Whether the next attempt would meet the same error."""
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and type(cause).__module__.startswith("aiohttp"):
        status = getattr(cause, "status", 500)  # fsspec says "not found" whatever an HTTP server has answered, or not
        return status < 500 and status not in (408, 429)
    if isinstance(error, (*PERMANENT, ConservatorError)):
        return True
    return isinstance(error, OSError) and error.errno in PERMANENT_CODES
