"""What all commands share: logging, and errors that become exit codes."""

from __future__ import annotations

import argparse
import datetime
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from pipeline import logs
from pipeline.errors import ConservatorError

OK, CRASH, WRONG, FAILED_ROWS, INTERRUPTED = 0, 1, 2, 3, 130
"""Exit codes: done; an error nobody foresaw; wrong recipe, source or output; done, with failed rows; Ctrl-C. Also
`errors.TRY_LATER`, and 4 of `errors.Stopped`."""


class Job(Protocol):
    """A module of this package that is a command."""

    __doc__: str | None
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def duration(text: str) -> float:
    """Seconds, from a command line: `90`, `90s`, `15m`, `4h`, `1.5h`, `2d`."""
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    number, unit = (text[:-1], text[-1]) if text[-1:] in units else (text, "s")
    try:
        seconds = float(number) * units[unit]
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no time: give it as 90s, 15m, 4h or 1d")
    return seconds


def until(text: str) -> float:
    """Seconds from now to a time of day, from a command line: `08:00`."""
    now = datetime.datetime.now()  # by the clock of this place
    try:
        end = datetime.datetime.combine(now, datetime.datetime.strptime(text, "%H:%M").time())
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no time of day: give it as 08:00") from None
    return ((end - now) % datetime.timedelta(days=1)).total_seconds()


def amount(text: str) -> float:
    """A number above 0, from a command line."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return number


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Rows of equally many texts, in columns."""
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{text:<{width}}" for text, width in zip(row, wide, strict=True)).rstrip())


def execute(run: Callable[[argparse.Namespace], int], arguments: argparse.Namespace) -> int:
    """Run a command; what it raises becomes a message and an exit code."""
    if arguments.log_format:
        os.environ[logs.FORMAT] = arguments.log_format
    logs.configure(logging.DEBUG if arguments.verbose else logging.INFO)
    try:
        return run(arguments)
    except ConservatorError as error:
        _say(error.message, type(error).__name__)
        return error.exit_code
    except KeyboardInterrupt:
        _say("interrupted", "KeyboardInterrupt")
        return INTERRUPTED
    except Exception:
        logging.getLogger("conservator").exception("this should not have happened; please report it")
        return CRASH


def _say(message: str, kind: str) -> None:
    """Why a command ends."""
    if logs.wants_json():
        logging.getLogger("conservator").error("%s", message, extra={"error_type": kind})
    else:
        print(f"conservator: {message}", file=sys.stderr)


def positive(text: str) -> int:
    """A whole number above 0, as an argument's type."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {number}")
    return number


def local_folder(text: str) -> Path:
    """A folder on this machine or mounted, as an argument's type: a path would make `s3:/` of a URL."""
    if "://" in text:
        raise argparse.ArgumentTypeError(f"must be a local or mounted folder, not {text}")
    return Path(text)


def main(job: Job, arguments: Sequence[str] | None = None) -> int:
    """Entry point of `python -m jobs.NAME`."""
    name = (job.__doc__ or "").split(":")[0]
    parser = argparse.ArgumentParser(prog=f"python -m jobs.{name}", description=job.__doc__)
    prepare(parser, job)
    parsed = parser.parse_args(arguments)
    return execute(job.run, parsed)


def prepare(parser: argparse.ArgumentParser, job: Job) -> None:
    """Give a parser a command's arguments, and those that all have."""
    job.add_arguments(parser)
    parser.add_argument(
        "--log-format", choices=["text", "json"], help=f"of the log; if not given, {logs.FORMAT}, else text"
    )
    parser.add_argument("--verbose", action="store_true", help="log what is of interest to developers too")
