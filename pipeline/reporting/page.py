"""The run as one HTML page that needs nothing beside it."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup

from pipeline.reporting.charts import histogram
from pipeline.reporting.distributions import PAIRED, SINGLE
from pipeline.reporting.distributions import columns as score_columns
from pipeline.reporting.gallery import fit_pictures, read_rows
from pipeline.reporting.rows import Rows
from pipeline.reporting.summary import DAMAGE, as_lines, kinds_of, speed_line
from pipeline.reporting.survey import Survey
from pipeline.schema import STATUSES

Row = dict[str, Any]

_PROVENANCE = {
    "actions": "done",
    "digital_source": "digital source",
    "source_layout": "source samples",
    "image_layout": "image samples",
    "encoding_psnr": "PSNR of the encoding, dB",
    "source_uri": "source",
    "source_row": "source row",
    "source_sha256": "source SHA-256",
    "image_uri": "image file",
    "image_sha256": "image SHA-256",
    "model": "model",
    "model_sha256": "model SHA-256",
    "model_license": "model licence",
    "software": "software",
    "device": "device",
    "restored_at": "restored at",
    "recipe_digest": "recipe digest",
    "run_id": "run",
}
_FACTS = (
    *("status", "reasons", "notes", "subjects", *_PROVENANCE, "image_width", "image_height", "image_format"),
    *("error_stage", "error_type", "error_message", "attempts", "before_preview", "after_preview"),
)
LONGEST = {"row_id": 200, "row_caption": 2000, "error_message": 1000}
"""Characters that are shown, at most; of other text 500."""


def render(table: Rows, survey: Survey, id_column: str, caption_column: str | None, prefix: str = "") -> str:
    """The page: totals, charts, a gallery before and after, failures.

    Args:
        table: the rows of the run.
        survey: what was seen of them.
        id_column: name of the column that names a row.
        caption_column: name of the column with captions; it need not be there.
        prefix: the recipe's `output.prefix`.
    """
    shown, failed = survey.chosen.shown, survey.chosen.failed
    columns = shown_columns(table.schema, id_column, caption_column, prefix)
    key, paths = prefix + "source_row", survey.chosen.paths
    rows = read_rows(table, list(shown), columns, key, {paths[name] for name in shown})
    fit_pictures(rows)
    for row in rows:
        describe(row)
        row["groups"] = shown[row["source_row"]]
    examples = [key for keys in failed.values() for key in keys]
    bare = {name: column for name, column in columns.items() if not name.endswith("_preview")}
    found = read_rows(table, examples, bare, key, {paths[name] for name in examples})
    broken = {row["source_row"]: row for row in found}
    for row in broken.values():
        describe(row)
    summary = survey.summary
    return page(
        "run.html",
        summary=summary,
        lines=as_lines(summary),
        speed=speed_line(summary) if summary.share_of_bare is not None else None,
        charts={
            name: (axis, histogram(axis, found), found) for name, (axis, found) in survey.distributions.charts().items()
        },
        rows=rows,
        groups=list(dict.fromkeys(name for names in shown.values() for name in names)),
        statuses=[status for status in STATUSES if any(row["status"] == status for row in rows)],
        damages=[name for name in DAMAGE if any(name in row["damage"] for row in rows)],
        failures=[
            (kind, summary.failures.get(kind, len(keys)), [broken[key] for key in keys if key in broken])
            for kind, keys in failed.items()
        ],
    )


def shown_columns(
    schema: pa.Schema, id_column: str, caption_column: str | None, prefix: str
) -> dict[str, pads.Expression]:
    """What is read of the rows that are shown, as far as the table has it."""
    there = set(schema.names)
    wanted = dict.fromkeys([*_FACTS, *score_columns(), *(column for column, *_ in DAMAGE.values())])
    columns = {name: pads.field(prefix + name) for name in wanted if prefix + name in there}
    if id_column in there:
        columns["row_id"] = pads.field(id_column)
    if caption_column in there:
        columns["row_caption"] = pads.field(caption_column)
    return columns


def describe(row: Row) -> None:
    """Add to a row what the templates show of it: caption, damage, scores, provenance."""
    caption = row.get("row_caption")
    row["row_caption"] = " · ".join(map(str, caption)) if isinstance(caption, list) else caption
    if row.get("row_id") is None:
        row["row_id"] = row["source_row"]
    row["actions"] = ", ".join(f"{done['name']} ({done['strength']:.3g})" for done in row.get("actions") or [])
    for name in ("row_id", "row_caption", "error_message", *_PROVENANCE):
        if row.get(name) is not None:
            row[name] = _cut(str(row[name]), LONGEST.get(name, 500))
    for name in ("reasons", "notes"):
        row[name] = [_cut(text, 500) for text in (row.get(name) or [])[:20]]
    row["damage"] = kinds_of(row)
    row["scores"] = [
        (axis.title, _number(row.get(f"{name}_before")), _number(row.get(f"{name}_after")), axis.unit)
        for name, axis in PAIRED.items()
        if row.get(f"{name}_before") is not None
    ]
    row["judged"] = [
        (axis.title, _number(row.get(name)), axis.unit) for name, axis in SINGLE.items() if row.get(name) is not None
    ]
    row["provenance"] = [(title, row[name]) for name, title in _PROVENANCE.items() if row.get(name)]


def page(template: str, connects: bool = False, **content: Any) -> str:
    """A template with its content; its script is the only one that the page may run, and it may load nothing.

    `connects`: it may talk to its own server.
    """
    environment = Environment(loader=PackageLoader("pipeline.reporting"), autoescape=select_autoescape(default=True))
    environment.filters["picture"] = _picture
    script = environment.get_template("page.js").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(
        script=Markup(script),  # nosec B704: our own file, nothing is put into it
        policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
        + ("; connect-src 'self'" if connects else ""),
        **content,
    )


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _picture(data: bytes | None) -> str:
    """A JPEG as a data URI."""
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}" if data else ""


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.3f}"
