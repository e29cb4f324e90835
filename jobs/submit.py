"""submit: run a command on a Ray cluster through its job API, follow it, and end with its exit code."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shlex
import signal
import sys
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.console import CRASH, INTERRUPTED, OK, main
from pipeline.errors import RecipeError, RunError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

WAIT = 2.0
"""Seconds between two questions whether a job has ended."""
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
    parser.add_argument("--name", help="of the job; if not given, from the time")
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
    client = _client(arguments.address)
    name = arguments.name or f"conservator-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{uuid.uuid4().hex[:6]}"
    try:
        client.submit_job(
            entrypoint=f"python -m jobs.cli {shlex.join(words)}",
            submission_id=name,
            runtime_env=environment,
            metadata={"name": name},
        )
    except (RuntimeError, ValueError) as error:
        raise RecipeError(f"the cluster did not take the job: {error}") from error
    print(f"job {name}", file=sys.stderr)
    return OK if arguments.no_wait else _follow(client, name)


def _pair(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise RecipeError(f"--env {text}: expected NAME=VALUE")
    return name, value


def _client(address: str | None) -> JobSubmissionClient:
    """The cluster's job API; its token, where it wants one, is found as Ray finds it.

    Raises:
        RecipeError: nothing answers there, or it does not let us in.
    """
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = address or os.environ.get("RAY_API_SERVER_ADDRESS") or "this machine"
        raise RecipeError(
            f"no Ray cluster takes jobs at {where} ({str(error)[:300]}); give --address http://HEAD:8265, and where "
            "the cluster wants a token, RAY_AUTH_MODE=token with RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
        ) from error


def _follow(client: JobSubmissionClient, name: str) -> int:
    """Print what the job says until it has ended. A signal is passed on: the job ends early, and that is waited for."""
    told = 0

    def stop(number: int, frame: object) -> None:
        nonlocal told
        told += 1
        if told > 1:
            raise KeyboardInterrupt
        print("stopping the job; a second signal leaves it alone", file=sys.stderr)
        client.stop_job(name)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with contextlib.suppress(RuntimeError, OSError):  # the connection may break; the job goes on
            asyncio.run(_print_logs(client, name))
        _wait(client, name)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    info = client.get_job_info(name)
    if info.driver_exit_code is not None:
        return int(info.driver_exit_code)
    if str(info.status) == "STOPPED":
        return INTERRUPTED
    if str(info.status) != "SUCCEEDED":
        print(f"conservator: the job {info.status}: {info.message}", file=sys.stderr)
        return CRASH
    return OK


def _wait(client: JobSubmissionClient, name: str) -> None:
    """Until the job has ended.

    Raises:
        RunError: the cluster does not answer any more.
    """
    answered = time.monotonic()
    while True:
        try:
            if client.get_job_status(name).is_terminal():
                return
            answered = time.monotonic()
        except (OSError, RuntimeError) as error:
            if time.monotonic() - answered > PATIENCE:
                raise RunError(
                    f"the cluster has not answered for {PATIENCE:g} s ({str(error)[:200]}); if it is lost, submit the "
                    "job again: it goes on where it was"
                ) from error
        time.sleep(WAIT)


async def _print_logs(client: JobSubmissionClient, name: str) -> None:
    async for lines in client.tail_job_logs(name):
        print(lines, end="", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__]))
