"""The run as one HTML page that needs nothing beside it."""

from __future__ import annotations

import base64
import heapq
from typing import Any

import pyarrow.dataset as pads
from jinja2 import Environment, PackageLoader, select_autoescape

from pipeline.quality.scores import EQUAL
from pipeline.reporting.summary import Summary, as_text
from pipeline.schema import OUTPUT

PAIRS = 60
"""Rows shown, at most; those that changed most come first."""
FAILURES = 40
_NEEDED = ("status", "reasons", "notes", "error_stage", "error_type", "error_message", "psnr_before", "psnr_after")
_SHOWN = (*_NEEDED, "expected_psnr", "change_psnr", "caption_agreement", "before_preview", "after_preview")


def render(
    dataset: pads.Dataset, summary: Summary, id_column: str, caption_column: str | None, prefix: str = ""
) -> str:
    """The page: totals, before-and-after pairs, failures.

    Args:
        dataset: the output table.
        summary: its totals.
        id_column: name of the column that names a row.
        caption_column: name of the column with captions; it need not be there.
        prefix: the recipe's `output.prefix`.
    """
    names = set(dataset.schema.names)
    columns = {name: pads.field(prefix + name) for name in _SHOWN if name in OUTPUT.names}
    columns["row_id"] = pads.field(id_column)
    if caption_column in names:
        columns["row_caption"] = pads.field(caption_column)
    changed: list[tuple[float, int, dict[str, Any]]] = []
    failed: list[dict[str, Any]] = []
    number = 0
    for batch in dataset.to_batches(columns=columns, batch_size=256):
        for row in batch.to_pylist():
            number += 1
            if row["status"] == "failed":
                if len(failed) < FAILURES:
                    failed.append(row)
                continue
            change = EQUAL if row["status"] == "kept" else row["change_psnr"]
            item = (-change, -number, row)
            (heapq.heappush if len(changed) < PAIRS else heapq.heappushpop)(changed, item)
    rows = [row for _, _, row in sorted(changed, reverse=True)]
    environment = Environment(loader=PackageLoader("pipeline.reporting"), autoescape=select_autoescape(default=True))
    environment.filters["picture"] = _picture
    template = environment.get_template("run.html")
    return template.render(summary=summary, table=as_text(summary), rows=rows, failed=failed)


def _picture(data: bytes | None) -> str:
    """A JPEG as a data URI."""
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}" if data else ""
