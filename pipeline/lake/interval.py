"""Commits at intervals, while rows are on their way."""

from __future__ import annotations

import logging
import threading

from pipeline.lake.commits import Committer

log = logging.getLogger(__name__)


class Interval:
    """Commits at intervals while its block runs."""

    def __init__(self, committer: Committer, seconds: float | None) -> None:
        """`seconds` between commits; None: none before the end."""
        self._committer, self._seconds = committer, seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="commits", daemon=True)

    def __enter__(self) -> Interval:
        if self._seconds is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._seconds is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._seconds):
            try:
                self._committer.commit()
            except Exception as error:  # the last commit tries again, and says what is wrong
                log.warning("a commit failed: %s: %s", type(error).__name__, error)
