"""The processor's cores, on each of which runs a task at a time: scores and detectors are made of small steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch

Answer = TypeVar("Answer")


class Cores:
    """As many threads as torch may use here, of one core each.

    They are the same for all calls: glibc gives each new thread an arena, which keeps 50 MB of images when it ends.
    """

    def __init__(self) -> None:
        """Threads begin with the first task."""
        self._pools: dict[int, ThreadPoolExecutor] = {}

    def run(self, tasks: Iterable[Callable[[], Answer]]) -> list[Answer]:
        """What each of the tasks gives, in their order. All have ended before an error of one is raised."""
        threads = torch.get_num_threads()
        if threads == 1:
            return [task() for task in tasks]
        if threads not in self._pools:
            self._pools[threads] = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
        ends = [self._pools[threads].submit(task) for task in tasks]
        wait(ends)
        return [end.result() for end in ends]
