"""Logs: lines for people, or one JSON object a line for collectors, with the run, stage and row that they are of."""

from __future__ import annotations

import copy
import datetime
import json
import logging
import os
import sys
from typing import Any, TextIO

from pipeline.redaction import without_secrets

FORMAT = "CONSERVATOR_LOG_FORMAT"
"""Environment variable: `text` (default) or `json`; workers of a cluster are told by the driver."""
FACTS = ("run_id", "stage", "row_id", "error_type")
"""Attributes of a record that stand in its line; give them as `extra`."""
NOISY = ("httpx", "botocore", "aiobotocore", "s3fs", "fsspec", "PIL", "asyncio", "filelock", "urllib3")


class Lines(logging.Formatter):
    """Lines whose tracebacks name no secrets: what libraries raise may hold addresses with passwords."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, and the traceback below it; another handler may have kept one in the record that tells more."""
        record = copy.copy(record)
        record.exc_text = None
        return super().format(record)

    def formatException(self, ei: Any) -> str:
        """The traceback."""
        return "\n".join(without_secrets(line) for line in super().formatException(ei).split("\n"))


class JsonLines(Lines):
    """One JSON object a record; `common` facts stand in all of them."""

    def __init__(self, **common: str) -> None:
        super().__init__()
        self._common = common

    def format(self, record: logging.LogRecord) -> str:
        """The line: time, level, logger, message, the facts, and the traceback, if there is one."""
        at = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line: dict[str, Any] = {
            "time": at.isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **self._common,
            **{name: getattr(record, name) for name in FACTS if getattr(record, name, None) is not None},
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class _Ours(logging.StreamHandler[TextIO]):
    """So that it is found again."""


def wants_json() -> bool:
    """Whether lines are for collectors."""
    return os.environ.get(FORMAT, "").casefold() == "json"


def configure(level: int | None = None, **common: str) -> None:
    """Send this process's log to standard error; `common` stands in every line, if they are JSON.

    Again: what was common is replaced, and the level stays if none is given (at first: INFO).
    """
    root = logging.getLogger()
    if level is None:
        level = root.level if any(isinstance(handler, _Ours) for handler in root.handlers) else logging.INFO
    for handler in [handler for handler in root.handlers if isinstance(handler, _Ours)]:
        root.removeHandler(handler)
    handler = _Ours(sys.stderr)
    text = Lines("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonLines(**common) if wants_json() else text)
    root.addHandler(handler)
    root.setLevel(level)
    for noisy in NOISY:
        logging.getLogger(noisy).setLevel(logging.WARNING)
