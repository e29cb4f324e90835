"""Review: a local page on which a person accepts or rejects rows marked `review`."""

from __future__ import annotations

import datetime as dt
import json
import logging
import secrets
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import pyarrow.dataset as pads

from pipeline.errors import ConservatorError, OutputError
from pipeline.imaging.cells import redacted
from pipeline.lake.decisions import DECISIONS, Reviewed
from pipeline.lake.output import Output
from pipeline.recipe import Recipe
from pipeline.reporting.gallery import fit_pictures, read_rows
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


class Review:
    """The rows of an output that wait, and what is decided about them."""

    def __init__(self, output: Output, recipe: Recipe, reviewer: str) -> None:
        """`recipe` of the output's last run, `reviewer`: whose decisions these are.

        Raises:
            OutputError: the table cannot be read, or its rows cannot be told apart.
        """
        self._output, self._recipe, self._reviewer = output, recipe, reviewer
        self._decisions = output.decisions()
        self._dataset = output.dataset(output.table())
        self._prefix = recipe.output.prefix
        if self._prefix + "result_id" not in self._dataset.schema.names:
            raise OutputError(
                f"the rows of {redacted(output.uri)} were written by an older version, and cannot be reviewed; "
                "make them anew with --fresh"
            )
        self._rows = {row.result_id: row for row in self._waiting()}

    def _waiting(self) -> list[Waiting]:
        """In the table's order; of rows that are alike in all that matters, the first stands for all."""
        names = {name: pads.field(self._prefix + name) for name in ("source_row", "result_id", "run_id")}
        columns = self._recipe.columns
        has_id = columns.id in self._dataset.schema.names
        names["row_id"] = pads.field(columns.id if has_id else self._prefix + "source_row")
        rows = self._dataset.to_table(columns=names, filter=pads.field(self._prefix + "status") == "review").to_pylist()
        found: dict[str, Waiting] = {}
        for row in rows:
            found.setdefault(row["result_id"], Waiting(**row | {"row_id": str(row["row_id"])}))
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

    def render(self, token: str, number: int, with_decided: bool) -> str:
        """One page of rows, the first is 1."""
        decided = self._decisions.latest()
        undecided = [row for row in self._rows.values() if row.result_id not in decided]
        listed = list(self._rows.values()) if with_decided else undecided
        pages = max(1, -(-len(listed) // ON_A_PAGE))
        number = min(max(number, 1), pages)
        chosen = listed[(number - 1) * ON_A_PAGE : number * ON_A_PAGE]
        return page(
            "review.html",
            connects=True,
            token=token,
            place=redacted(self._output.uri),
            reviewer=self._reviewer,
            rows=self._shown(chosen, decided),
            number=number,
            pages=pages,
            waiting=len(undecided),
            decided=len(self._rows) - len(undecided),
            with_decided=with_decided,
        )

    def _shown(self, chosen: Sequence[Waiting], decided: dict[str, Reviewed]) -> list[dict[str, Any]]:
        columns = self._recipe.columns
        names = shown_columns(self._dataset, columns.id, columns.caption, self._prefix)
        names["result_id"] = pads.field(self._prefix + "result_id")
        key = self._prefix + "source_row"
        rows = read_rows(self._dataset, [row.source_row for row in chosen], names, key)
        fit_pictures(rows)
        for row in rows:
            describe(row)
            row["decided"] = decided.get(row["result_id"])
        return rows

    def close(self) -> int:
        """Tidy up; returns how many rows the next run will do as it was decided."""
        self._decisions.compact()
        return len(self._rows.keys() & self._decisions.latest().keys())


class ReviewServer(ThreadingHTTPServer):
    """Serves a Review to this machine alone."""

    daemon_threads = True

    def __init__(self, review: Review, port: int) -> None:
        """`port` 0: any that is free.

        Raises:
            OSError: the port is taken.
        """
        self.review = review
        self.token = secrets.token_urlsafe(24)
        """Only pages that this server has made can decide."""
        super().__init__(("127.0.0.1", port), _Handler)

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://127.0.0.1:{self.server_port}/"


class _Handler(BaseHTTPRequestHandler):
    server: ReviewServer

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        if not self._is_local() or address.path != "/":
            self._answer(HTTPStatus.NOT_FOUND, "there is only one page: /")
            return
        query = parse_qs(address.query)
        number = query.get("page", ["1"])[0]
        try:
            html = self.server.review.render(
                self.server.token, int(number) if number.isdecimal() else 1, query.get("show") == ["all"]
            )
        except ConservatorError as error:
            self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, error.message)
            return
        self._answer(HTTPStatus.OK, html, "text/html; charset=utf-8")

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        is_ours = secrets.compare_digest(self.headers.get("X-Conservator-Token", ""), self.server.token)
        if not self._is_local() or not is_ours or self.path != "/decisions":
            self._answer(HTTPStatus.FORBIDDEN, "this page is out of date: load it again")
            return
        if not length.isdecimal() or int(length) > _LARGEST_REQUEST:
            self._answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "that is too long")
            return
        try:
            said = json.loads(self.rfile.read(int(length)))
            self.server.review.decide(str(said["result"]), str(said["decision"]), str(said.get("note", "")))
        except KeyError:
            self._answer(HTTPStatus.NOT_FOUND, "no such row waits for a decision")
        except (ValueError, TypeError, AttributeError) as error:
            self._answer(HTTPStatus.BAD_REQUEST, str(error))
        except ConservatorError as error:
            self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, error.message)
        else:
            self._answer(HTTPStatus.OK, "saved")

    def _is_local(self) -> bool:
        """Whether the browser was sent to this machine by its own name: no other site's name leads here."""
        host = self.headers.get("Host", "")
        return host in (f"127.0.0.1:{self.server.server_port}", f"localhost:{self.server.server_port}")

    def _answer(self, status: HTTPStatus, text: str, kind: str = "text/plain; charset=utf-8") -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Requests are of no interest on a terminal."""
        log.debug(format, *arguments)
