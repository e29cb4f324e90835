"""The lease: one run at a time writes to an output.

Leases are numbered files that are created once (`put_new`); the highest number holds. The holder renews its own file.
A lease that was not renewed for its time, by the clock of the store, may be followed by the next number. Who was
followed without knowing finds out at the next renewal, or at a commit, which needs a number of its own too.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec

from pipeline.errors import OutputError, RunError
from pipeline.lake.places import join, make_folder, names_in, put, put_new

log = logging.getLogger(__name__)

SECONDS = 120.0
"""How long a lease holds that nobody renews."""
KEPT = 3
"""Leases of the past that stay, to be looked at."""


@dataclasses.dataclass(frozen=True)
class Holder:
    """Who holds a lease."""

    run_id: str
    token: str
    host: str
    process: str
    """Boot of the machine, space of process numbers, number and start: tells there whether the process still lives."""
    since: str
    seconds: float
    released: bool = False

    @classmethod
    def me(cls, run_id: str, seconds: float) -> Holder:
        """This process."""
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        return cls(run_id, uuid.uuid4().hex, socket.gethostname(), _process(os.getpid()), since, seconds)

    @property
    def is_dead(self) -> bool:
        """It ran on this machine, and does not any more."""
        boot, space, number, started = self.process.split("/")
        if self.host != socket.gethostname() or not boot or (boot, space) != (_boot(), _space()):
            return False
        try:
            os.kill(int(number), 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # another user's
            pass
        return _started(int(number)) not in ("", started)

    def __str__(self) -> str:
        return f"run {self.run_id} (process {self.process.split('/')[2]} on {self.host}, since {self.since})"


class Lease:
    """Taken on entering, renewed in the background, given back on leaving."""

    def __init__(self, store: fsspec.AbstractFileSystem, folder: str, run_id: str, seconds: float = SECONDS) -> None:
        """`folder` belongs to the leases alone."""
        self._store, self._folder = store, folder
        self._holder = Holder.me(run_id, seconds)
        self._number = 0
        self._renewed = 0.0
        self._when_lost: Callable[[], object] = bool
        self._lost = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew_until_stopped, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        """Take the lease.

        Raises:
            OutputError: another run holds it.
        """
        make_folder(self._store, self._folder)
        numbers = self._numbers()
        if numbers:
            self._check_free(numbers[-1])
        self._number = (numbers[-1] if numbers else 0) + 1
        self._renewed = _seconds()
        if not put_new(self._store, self._path(self._number), self._content(self._holder)):
            raise OutputError(self._held_by(self._read(self._number)), later=True)
        if len(numbers) >= KEPT:
            self._store.rm([self._path(number) for number in numbers[: 1 - KEPT]])
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        try:
            if not self._lost.is_set() and self._numbers()[-1:] == [self._number]:
                released = dataclasses.replace(self._holder, released=True)
                put(self._store, self._path(self._number), self._content(released))
        except Exception as error:  # it expires by itself
            log.warning("the lease could not be given back: %s: %s", type(error).__name__, error)

    def check(self) -> None:
        """Whether it still is ours.

        Raises:
            RunError: it expired, and another run may write now.
        """
        if self._lost.is_set() or _seconds() - self._renewed > self._holder.seconds:
            raise RunError(
                f"the lease on {self._folder} was lost: it could not be renewed for {self._holder.seconds:g} s; "
                "what was committed stands, and the next run goes on from there"
            )

    def last(self) -> tuple[Holder, bool] | None:
        """Who took the lease last, and whether they still hold it, by this machine's clock; None: nobody did.

        Nothing is written. The clock of the store may differ by as much as the clocks of machines do.
        """
        numbers = self._numbers()
        if not numbers:
            return None
        holder = self._read(numbers[-1])
        renewed = self._store.modified(self._path(numbers[-1])).timestamp()
        return holder, not (holder.released or holder.is_dead or time.time() - renewed > holder.seconds)

    def left(self) -> float:
        """Share of the time after which it expires if it is not renewed, 0..1; 0 when it is lost."""
        if self._lost.is_set():
            return 0.0
        return max(0.0, 1 - (_seconds() - self._renewed) / self._holder.seconds)

    def confirm(self) -> None:
        """Ask the store whether it still is ours.

        Raises:
            RunError: as `check`.
        """
        self.check()
        self.renew()
        self.check()

    def renew(self) -> None:
        """Show that we are alive, unless somebody followed."""
        started = _seconds()
        if self._numbers()[-1:] != [self._number]:
            self._lost.set()
            return
        put(self._store, self._path(self._number), self._content(self._holder))
        self._renewed = started

    def when_lost(self, action: Callable[[], None]) -> None:
        """Call this, from a thread of the lease, when it is lost."""
        self._when_lost = action

    def _renew_until_stopped(self) -> None:
        while not self._stop.wait(self._holder.seconds / 6):
            try:
                self.renew()
            except Exception as error:  # the store is away: it may come back before the lease expires
                log.warning("the lease could not be renewed: %s: %s", type(error).__name__, error)
            try:
                self.check()
            except RunError as error:
                self._lost.set()
                log.error("%s", error)
                self._when_lost()
                return

    def _check_free(self, number: int) -> None:
        holder = self._read(number)
        if holder.released or holder.is_dead:
            return
        age = self._age(number)
        if age < holder.seconds:
            raise OutputError(self._held_by(holder, holder.seconds - age), later=True)
        log.warning("the lease of %s expired %.0f s ago and is taken over", holder, age - holder.seconds)

    def _held_by(self, holder: Holder, left: float | None = None) -> str:
        until = "" if left is None else f"; if that has died, its lease expires in {left:.0f} s"
        return f"{holder} is writing to this output: wait for its end, or give another --output{until}"

    def _age(self, number: int) -> float:
        """Seconds since the renewal, by the store's clock: those of two machines may differ."""
        probe = join(self._folder, f"now-{self._holder.token}")
        put(self._store, probe, b"")
        try:
            self._store.invalidate_cache()
            now = self._store.modified(probe)
        finally:
            self._store.rm_file(probe)
        age: float = (now - self._store.modified(self._path(number))).total_seconds()
        return age

    def _numbers(self) -> list[int]:
        return [int(name[:-5]) for name in names_in(self._store, self._folder) if name.endswith(".json")]

    def _path(self, number: int) -> str:
        return join(self._folder, f"{number:08d}.json")

    def _read(self, number: int) -> Holder:
        content: dict[str, Any] = json.loads(self._store.cat_file(self._path(number)))
        return Holder(**content)

    @staticmethod
    def _content(holder: Holder) -> bytes:
        return json.dumps(dataclasses.asdict(holder), indent=2).encode()


def _boot() -> str:
    """What tells one run of this machine from another; empty where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _space() -> str:
    """What tells the process numbers of one container from those of another."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _process(number: int) -> str:
    """See `Holder.process`."""
    return f"{_boot()}/{_space()}/{number}/{_started(number)}"


def _started(number: int) -> str:
    """When a process was started; empty if that cannot be told."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _seconds() -> float:
    """A clock that goes on while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
