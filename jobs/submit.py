"""submit: run a command on a Ray cluster through its job API, follow it, and end with its exit code."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import re
import shlex
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from jobs.cli import COMMANDS
from jobs.console import CRASH, INTERRUPTED, OK, main
from pipeline.errors import RecipeError, RunError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

T = TypeVar("T")
NAME = re.compile(r"[A-Za-z0-9._-]+")
WAIT = 2.0
"""Seconds between two questions whether a job has ended."""
ANSWER = 20.0
"""Seconds in which it answers one."""
LAST_WORDS = 10.0
"""Seconds that the end of its log may take."""
PATIENCE = 60.0
"""Seconds without an answer after which the cluster is taken to be lost."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument(
        "--address", help="of the cluster's dashboard, such as http://head:8265; if not given, RAY_API_SERVER_ADDRESS"
    )
    parser.add_argument(
        "--working-dir",
        metavar="FOLDER",
        help="sent along and made the job's folder: recipes, and this project where the cluster does not have it",
    )
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="for the job; may be repeated")
    parser.add_argument(
        "--name", help="of the job; if not given, from the time. One of this name that still runs is followed instead"
    )
    parser.add_argument(
        "--ok",
        type=int,
        action="append",
        default=[],
        metavar="CODE",
        help="an exit code of the job that counts as 0, such as 4: it came to its deadline; may be repeated",
    )
    parser.add_argument("--no-wait", action="store_true", help="print the job's name and do not follow it")
    parser.add_argument(
        "words", nargs=argparse.REMAINDER, metavar="-- COMMAND …", help="such as: -- restore --recipe nightly.yaml"
    )


def run(arguments: argparse.Namespace) -> int:
    """Submit; the job's exit code, or 0 if it is not waited for."""
    words = arguments.words[1:] if arguments.words[:1] == ["--"] else arguments.words
    if not words:
        raise RecipeError("conservator submit -- COMMAND …: which command? such as -- restore --recipe nightly.yaml")
    variables = dict(_pair(text) for text in arguments.env)
    environment: dict[str, object] = {"env_vars": variables} if variables else {}
    if arguments.working_dir:
        if not Path(arguments.working_dir).is_dir():
            raise RecipeError(f"--working-dir {arguments.working_dir} is no folder")
        environment["working_dir"] = arguments.working_dir
    if arguments.name and not NAME.fullmatch(arguments.name):
        raise RecipeError(f"--name {arguments.name}: it may hold letters, digits, `.`, `_` and `-`")
    if words[0] not in COMMANDS:
        raise RecipeError(f"conservator submit -- {words[0]}: no such command; give one of {', '.join(COMMANDS)}")
    client = _client(arguments.address)
    name = arguments.name or f"conservator-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{uuid.uuid4().hex[:6]}"
    with _explained(arguments.address):
        name, runs = _in_time(lambda: _free_name(client, name))
        if not runs:
            client.submit_job(  # sends the folder along, which takes its time
                entrypoint=f"python -m jobs.cli {shlex.join(words)}",
                submission_id=name,
                runtime_env=environment,
                metadata={"name": name},
            )
    print(f"job {name}{' runs already' if runs else ''}", file=sys.stderr)
    if arguments.no_wait:
        print(name)
        return OK
    code = _follow(client, name, arguments.address)
    return OK if code in arguments.ok else code


def _pair(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise RecipeError(f"--env {text}: expected NAME=VALUE")
    return name, value


@contextlib.contextmanager
def _explained(address: str | None) -> Iterator[None]:
    """What the job API raises, as errors of ours.

    Raises:
        RecipeError: it does not let us in, or the job is wrong.
        RunError: nothing answers, or not now: a later try may help.
    """
    from ray.exceptions import AuthenticationError

    where = _address(address) or "this machine"
    try:
        yield
    except AuthenticationError as error:
        raise RecipeError(
            f"the cluster at {where} wants a token ({_said(error)}): set RAY_AUTH_MODE=token with RAY_AUTH_TOKEN or "
            "RAY_AUTH_TOKEN_PATH"
        ) from error
    except (ConnectionError, OSError, TimeoutError, TypeError, AttributeError, KeyError) as error:  # or no Ray answers
        raise RunError(
            f"no Ray cluster takes jobs at {where} ({_said(error)}); give --address http://HEAD:8265", later=True
        ) from error
    except (RuntimeError, ValueError) as error:
        if any(f"status code {code}" in str(error) for code in range(500, 600)):
            raise RunError(f"the cluster at {where} could not take the job now: {_said(error)}", later=True) from error
        raise RecipeError(f"the cluster at {where} did not take the job: {_said(error)}") from error


def _address(given: str | None) -> str | None:
    return given or os.environ.get("RAY_API_SERVER_ADDRESS")


def _said(error: BaseException) -> str:
    return str(error)[:300]


def _client(address: str | None) -> JobSubmissionClient:
    """The cluster's job API; its token, where it wants one, is found as Ray finds it."""
    from ray.job_submission import JobSubmissionClient

    where = _address(address)
    if where is not None and not where.startswith(("http://", "https://")):
        raise RecipeError(f"{where!r} is no address of a job API; give --address http://HEAD:8265")
    with _explained(address):
        return _in_time(lambda: JobSubmissionClient(address))


def _in_time(ask: Callable[[], T]) -> T:
    """What the cluster says; its client itself would wait for ever.

    Raises:
        TimeoutError: it did not within `ANSWER`. And what else the client raises.
    """
    found: list[T | Exception] = []

    def run() -> None:
        try:
            found.append(ask())
        except Exception as error:  # whatever the connection raises
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(ANSWER)
    if not found:
        raise TimeoutError(f"no answer in {ANSWER:g} s")
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


def _free_name(client: JobSubmissionClient, name: str) -> tuple[str, bool]:
    """The name, with a number where a job of that name has ended; and whether one of it still runs."""
    known = {job.submission_id: job for job in client.list_jobs()}
    for number in itertools.count(1):
        one = name if number == 1 else f"{name}-{number}"
        if one not in known:
            return one, False
        if not known[one].status.is_terminal():
            return one, True
    raise AssertionError


def _follow(client: JobSubmissionClient, name: str, address: str | None) -> int:
    """Print what the job says until it has ended. A signal is passed on: the job ends early, and that is waited for.

    Raises:
        RunError: the cluster does not answer any more.
    """
    stop, told = threading.Event(), 0

    def passed_on(number: int, frame: object) -> None:
        nonlocal told
        told += 1
        if told > 1:
            raise KeyboardInterrupt
        print("stopping the job; a second signal leaves it alone", file=sys.stderr)
        stop.set()

    before = {number: signal.signal(number, passed_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        _wait(client, name, stop)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    with _explained(address):
        info = _in_time(lambda: client.get_job_info(name))
    if info.driver_exit_code is not None:
        code = int(info.driver_exit_code)
        return code if code >= 0 else 128 - code  # killed by a signal
    if str(info.status) == "STOPPED":
        return INTERRUPTED
    if str(info.status) != "SUCCEEDED":
        print(f"conservator: the job {info.status}: {info.message}", file=sys.stderr)
        return CRASH
    return OK


def _wait(client: JobSubmissionClient, name: str, stop: threading.Event) -> None:
    """Until the job has ended; `stop`: when set, it is told to end.

    Raises:
        RunError: the cluster does not answer any more.
    """
    log, answered = _Log(client, name), time.monotonic()
    while True:
        log.keep_on()
        if stop.is_set() and _answer(lambda: client.stop_job(name)) is not None:
            stop.clear()
        status = _answer(lambda: client.get_job_status(name))
        if status is not None:
            answered = time.monotonic()
            if status.is_terminal():
                log.finish()
                return
        elif time.monotonic() - answered > PATIENCE:
            raise RunError(
                f"the cluster has not answered for {PATIENCE:g} s; if it is lost, submit the job again: it goes on "
                "where it was",
                later=True,
            )
        time.sleep(WAIT)


def _answer(ask: Callable[[], T]) -> T | None:
    """What the cluster says; None if it does not."""
    with contextlib.suppress(Exception):  # whatever the connection raises
        return _in_time(ask)
    return None


class _Log:
    """Prints a job's log as it grows; if the connection breaks, it goes on where it was."""

    def __init__(self, client: JobSubmissionClient, name: str) -> None:
        self._client, self._name = client, name
        self._printed = 0
        self._thread: threading.Thread | None = None

    def keep_on(self) -> None:
        """Connect, or connect again."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    def finish(self) -> None:
        """The job has ended: what it said last is soon there."""
        if self._thread is not None:
            self._thread.join(LAST_WORDS)

    def _run(self) -> None:
        with contextlib.suppress(Exception):  # the connection may break; the job goes on
            asyncio.run(self._print())

    async def _print(self) -> None:
        seen = 0
        async for lines in self._client.tail_job_logs(self._name):
            fresh = lines[max(0, self._printed - seen) :]
            seen += len(lines)
            if fresh:
                print(fresh, end="", flush=True)
                self._printed = seen


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__]))
