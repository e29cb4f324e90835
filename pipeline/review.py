"""Review: a local page on which a person accepts or rejects rows marked `review`."""

from __future__ import annotations

import datetime as dt
import json
import logging
import secrets
import threading
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import pyarrow.dataset as pads

from pipeline.errors import ConservatorError, OutputError
from pipeline.lake.decisions import DECISIONS, Reviewed
from pipeline.lake.output import Output
from pipeline.lake.places import explained
from pipeline.recipe import Recipe
from pipeline.redaction import redacted
from pipeline.reporting.gallery import as_rows, fit_pictures, read_rows
from pipeline.reporting.page import describe, page, shown_columns

log = logging.getLogger(__name__)

ON_A_PAGE = 20
LONGEST_NOTE = 500
_LARGEST_REQUEST = 16_384
"""Bytes of a decision, at most."""


class Waiting(NamedTuple):
    """A row marked `review`."""

    source_row: str
    result_id: str
    row_id: str
    run_id: str
    path: str
    """Of its file."""


class Review:
    """The rows of an output that wait, and what is decided about them."""

    def __init__(self, output: Output, recipe: Recipe, reviewer: str) -> None:
        """`recipe` of the output's last run, `reviewer`: whose decisions these are.

        Raises:
            OutputError: the table cannot be read, or its rows cannot be told apart.
        """
        self._output, self._recipe, self._reviewer = output, recipe, reviewer
        self._prefix = recipe.output.prefix
        self._decisions = output.decisions()
        self._decisions.compact()
        self._lock = threading.Lock()
        self._load()

    def _load(self) -> None:
        self._seen = self._output.run()
        with explained(self._output.uri, OutputError):
            self._table = self._output.scan(self._output.table())
            if self._prefix + "result_id" not in self._table.schema.names:
                raise OutputError(
                    f"the rows of {redacted(self._output.uri)} were written by an older version, and cannot be "
                    "reviewed; make them anew with --fresh"
                )
            self._rows = {row.result_id: row for row in self._waiting()}

    def _waiting(self) -> list[Waiting]:
        """In the table's order; of rows that are alike in all that matters, the first stands for all."""
        names = {name: pads.field(self._prefix + name) for name in ("source_row", "result_id", "run_id")}
        columns = self._recipe.columns
        if columns.id in self._table.schema.names:
            names["row_id"] = pads.field(columns.id)
        waiting = pads.field(self._prefix + "status") == "review"
        found: dict[str, Waiting] = {}
        for path, rows in self._table.batches(names, waiting):
            for row in as_rows(rows):
                name = row["source_row"] if row.get("row_id") is None else str(row["row_id"])
                found.setdefault(row["result_id"], Waiting(**row | {"row_id": name, "path": path}))
        return list(found.values())

    def decide(self, result_id: str, decision: str, note: str) -> None:
        """Write a decision down.

        Raises:
            KeyError: no row that waits has this result.
            ValueError: that is no decision.
            OutputError: it cannot be written.
        """
        row = self._rows[result_id]
        if decision not in DECISIONS:
            raise ValueError(f"a decision is one of {', '.join(DECISIONS)}, not {decision!r}")
        now = dt.datetime.now(dt.UTC)
        said = Reviewed(
            *(result_id, row.row_id, row.source_row, row.run_id, decision, self._reviewer, note[:LONGEST_NOTE], now)
        )
        self._decisions.add(said)

    def render(self, after: str = "", with_decided: bool = False) -> str:
        """One page of rows: those that come after a result in the table's order, or the first.

        Raises:
            OutputError: the table cannot be read.
        """
        with self._lock:
            if self._output.run() != self._seen:  # a run has changed the table
                self._load()
        decided = self._decisions.latest()
        rows = list(self._rows.values())
        undecided = [row for row in rows if row.result_id not in decided]
        start = next((place + 1 for place, row in enumerate(rows) if row.result_id == after), 0)
        listed = [row for row in rows[start:] if with_decided or row.result_id not in decided]
        chosen = listed[:ON_A_PAGE]
        return page(
            "review.html",
            connects=True,
            place=redacted(self._output.uri),
            reviewer=self._reviewer,
            rows=self._shown(chosen, decided),
            after=after,
            next=chosen[-1].result_id if len(listed) > len(chosen) else "",
            waiting=len(undecided),
            decided=len(rows) - len(undecided),
            with_decided=with_decided,
        )

    def _shown(self, chosen: Sequence[Waiting], decided: dict[str, Reviewed]) -> list[dict[str, Any]]:
        columns = self._recipe.columns
        names = shown_columns(self._table.schema, columns.id, columns.caption, self._prefix)
        names["result_id"] = pads.field(self._prefix + "result_id")
        key = self._prefix + "source_row"
        with explained(self._output.uri, OutputError):
            keys, paths = [row.source_row for row in chosen], {row.path for row in chosen}
            rows = read_rows(self._table, keys, names, key, paths)
        fit_pictures(rows)
        for row in rows:
            describe(row)
            row["decided"] = decided.get(row["result_id"])
        return rows

    def close(self) -> int:
        """Tidy up; returns how many of the rows that wait are decided."""
        self._decisions.compact()
        return len(self._rows.keys() & self._decisions.latest().keys())


class ReviewServer(ThreadingHTTPServer):
    """Serves a Review to this machine alone, and there to who knows the page's address."""

    daemon_threads = True

    def __init__(self, review: Review, port: int) -> None:
        """`port` 0: any that is free.

        Raises:
            OSError: the port is taken.
        """
        self.review = review
        self.path = f"/{secrets.token_urlsafe(16)}/"
        super().__init__(("127.0.0.1", port), _Handler)

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://127.0.0.1:{self.server_port}{self.path}"


class _Handler(BaseHTTPRequestHandler):
    server: ReviewServer
    timeout = 30

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        if not self._is_ours(address.path, ""):
            return
        query = parse_qs(address.query)
        try:
            html = self.server.review.render(query.get("after", [""])[0], query.get("show") == ["all"])
        except ConservatorError as error:
            self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, error.message)
            return
        self._answer(HTTPStatus.OK, html, "text/html; charset=utf-8")

    def do_POST(self) -> None:
        if not self._is_ours(self.path, "decisions"):
            return
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or len(length) > 6 or int(length) > _LARGEST_REQUEST:
            self._answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "that is too long")
            return
        try:
            said = json.loads(self.rfile.read(int(length)))
            self.server.review.decide(str(said["result"]), str(said["decision"]), str(said.get("note", "")))
        except KeyError:
            self._answer(HTTPStatus.NOT_FOUND, "no such row waits for a decision; load the page again")
        except (ValueError, TypeError, AttributeError) as error:
            self._answer(HTTPStatus.BAD_REQUEST, str(error))
        except ConservatorError as error:
            self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, error.message)
        else:
            self._answer(HTTPStatus.OK, "saved")

    def _is_ours(self, path: str, name: str) -> bool:
        """Whether this machine was asked by its own name, by who knows the secret address; else it is refused."""
        host = self.headers.get("Host", "")
        local = host in (f"127.0.0.1:{self.server.server_port}", f"localhost:{self.server.server_port}")
        if local and secrets.compare_digest(path.encode(), (self.server.path + name).encode()):
            return True
        self._answer(HTTPStatus.NOT_FOUND, "conservator review has printed the address of its page")
        return False

    def _answer(self, status: HTTPStatus, text: str, kind: str = "text/plain; charset=utf-8") -> None:
        data = text.encode(errors="replace")
        self.send_response(status)
        for name, value in (("Content-Type", kind), ("Content-Length", str(len(data))), *_HEADERS):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Requests are of no interest on a terminal."""
        log.debug(format, *arguments)


_HEADERS = (
    ("Cache-Control", "no-store"),
    ("Content-Security-Policy", "frame-ancestors 'none'"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
)
