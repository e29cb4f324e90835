"""One look at all rows of a run: totals, distributions, and which rows to show. Only small columns are read."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from pipeline.quality.gate import LOST
from pipeline.reporting.distributions import Distributions, columns
from pipeline.reporting.gallery import SCALARS, Chooser, Chosen
from pipeline.reporting.rows import Rows
from pipeline.reporting.summary import DAMAGE, Summary
from pipeline.schema import STATUSES, megapixels

_TOGETHER = 4_000
"""Rows."""
_COUNTED = ("image_width", "image_height", "restore_seconds", "score_seconds")


@dataclasses.dataclass(frozen=True)
class Survey:
    """What was seen."""

    summary: Summary
    distributions: Distributions
    chosen: Chosen


def survey(rows: Rows, run_id: str, prefix: str = "") -> Survey:
    """Look at all rows, some thousand at a time.

    Args:
        rows: of a run.
        run_id: of the run.
        prefix: the recipe's `output.prefix`.
    """
    there = [name.removeprefix(prefix) for name in rows.schema.names if name.startswith(prefix)]
    wanted = dict.fromkeys([*SCALARS, *_COUNTED, *columns(), *(column for column, *_ in DAMAGE.values())])
    names = [name for name in wanted if name in there]  # rows of older versions lack some
    summary, distributions, chooser = Summary(run_id), Distributions(names), Chooser(run_id)
    totals = _Totals(summary)
    for table in _together(rows.batches({name: pads.field(prefix + name) for name in names})):
        distributions.add(table)
        chooser.add(table)
        totals.add(table)
    totals.finish()
    summary.scores = distributions.means()
    return Survey(summary, distributions, chooser.chosen)


def _together(batches: Iterable[tuple[str, pa.RecordBatch]]) -> Iterator[pa.Table]:
    """Many batches together, with the paths of their files: of a table of images they are small, and each costs two
    milliseconds to look at."""
    waiting: list[pa.RecordBatch] = []
    rows = 0
    for path, batch in batches:
        waiting.append(batch.append_column("path", pa.repeat(path, batch.num_rows)))
        rows += batch.num_rows
        if rows >= _TOGETHER:
            yield pa.Table.from_batches(waiting)
            waiting, rows = [], 0
    if waiting:
        yield pa.Table.from_batches(waiting)


class _Totals:
    """Counts into a summary."""

    def __init__(self, summary: Summary) -> None:
        self._summary = summary
        self._statuses, self._failures, self._found = Counter[str](), Counter[str](), Counter[str]()
        self._megapixels = Counter[str]()

    def add(self, table: pa.Table) -> None:
        summary = self._summary
        summary.rows += table.num_rows
        self._statuses.update(table["status"].to_pylist())
        errors = table.filter(pc.equal(table["status"], "failed"))
        kinds = zip(errors["error_stage"].to_pylist(), errors["error_type"].to_pylist(), strict=True)
        self._failures.update(f"{stage}: {kind}" for stage, kind in kinds)
        for name, (column, above, bound) in DAMAGE.items():
            if column not in table.column_names:
                continue
            test = pc.greater if above else pc.less
            self._found[name] += pc.sum(test(table[column].cast(pa.float64()), bound)).as_py() or 0
        gain = pc.subtract(table["psnr_after"], table["psnr_before"])
        summary.with_truth += len(gain) - gain.null_count
        lost = pc.and_(pc.equal(table["status"], "restored"), pc.less(gain, -LOST))
        summary.worse += pc.sum(lost).as_py() or 0
        areas = pa.table({"status": table["status"], "area": megapixels(table)})
        sums = areas.group_by("status").aggregate([("area", "sum")]).to_pylist()
        self._megapixels.update({row["status"]: row["area_sum"] or 0.0 for row in sums})
        for name in ("restore_seconds", "score_seconds"):
            if name in table.column_names:
                setattr(summary, name, getattr(summary, name) + (pc.sum(table[name]).as_py() or 0.0))

    def finish(self) -> None:
        summary = self._summary
        summary.by_status = {status: self._statuses[status] for status in STATUSES if self._statuses[status]}
        summary.megapixels_by_status = {
            status: round(self._megapixels[status], 6) for status in STATUSES if self._megapixels[status]
        }
        summary.failures = dict(self._failures.most_common())
        summary.damage_found = {name: count for name, count in self._found.most_common() if count}
