"""The run as one HTML page that needs nothing beside it."""

from __future__ import annotations

import base64
import heapq

import pyarrow.dataset as pads
from jinja2 import Environment, PackageLoader, select_autoescape

from pipeline.quality.scores import EQUAL
from pipeline.reporting.summary import Summary, as_text

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
    columns = {name: pads.field(prefix + name) for name in _SHOWN} | {"row_id": pads.field(id_column)}
    if caption_column in dataset.schema.names:
        columns["row_caption"] = pads.field(caption_column)
    changed, broken = _chosen(dataset, prefix)
    rows = dataset.take(changed, columns=columns).to_pylist() if changed else []
    failed = dataset.take(broken, columns=columns).to_pylist() if broken else []
    for row in rows:
        caption = row.get("row_caption")
        row["row_caption"] = " · ".join(map(str, caption)) if isinstance(caption, list) else caption
    environment = Environment(loader=PackageLoader("pipeline.reporting"), autoescape=select_autoescape(default=True))
    environment.filters["picture"] = _picture
    template = environment.get_template("run.html")
    return template.render(summary=summary, table=as_text(summary), rows=rows, failed=failed)


def _chosen(dataset: pads.Dataset, prefix: str) -> tuple[list[int], list[int]]:
    """Positions of the rows to show: those that changed most, and the first that failed. Only scalars are read."""
    small = {name: pads.field(prefix + name) for name in ("status", "change_psnr")}
    changed: list[tuple[float, int]] = []
    broken: list[int] = []
    position = 0
    for batch in dataset.to_batches(columns=small):
        for status, change in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            if status != "failed":
                item = (-(EQUAL if status == "kept" else change), -position)
                (heapq.heappush if len(changed) < PAIRS else heapq.heappushpop)(changed, item)
            elif len(broken) < FAILURES:
                broken.append(position)
            position += 1
    return [-place for _, place in sorted(changed, reverse=True)], broken


def _picture(data: bytes | None) -> str:
    """A JPEG as a data URI."""
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}" if data else ""
