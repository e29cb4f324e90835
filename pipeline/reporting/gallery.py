"""The few rows of a run that a person should see, and their pictures."""

from __future__ import annotations

import dataclasses
import heapq
import io
import random
from collections.abc import Callable, Collection, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
from PIL import Image

from pipeline.reporting.rows import Rows

Row = dict[str, Any]

EACH = 12
"""Rows shown for each reason."""
FAILURES = 5
"""Examples of each kind of failure."""
KINDS_OF_FAILURE = 30
PICTURES_MB = 9.0
"""Of all pictures; as text they take a third more."""
_SMALL = 200
"""Longest side in pixels to which pictures shrink that would not fit."""

TAKEN = ("restored", "review")


def _gain(row: Row) -> float | None:
    if row["psnr_after"] is None or row["psnr_before"] is None:
        return None
    return float(row["psnr_after"] - row["psnr_before"])


def _of_taken(value: Callable[[Row], float | None]) -> Callable[[Row], float | None]:
    return lambda row: value(row) if row["status"] in TAKEN else None


def _worst(row: Row) -> float | None:
    """What was lost against the truth; without one, how badly the result explains its input."""
    gain = _gain(row)
    if gain is not None:
        return -gain
    return None if row["redamaged_psnr"] is None else 50 - float(row["redamaged_psnr"])


GROUPS: dict[str, Callable[[Row], float | None]] = {
    "best": _of_taken(lambda row: row["expected_gain"] if _gain(row) is None else _gain(row)),
    "worst": _of_taken(_worst),
    "uncertain": _of_taken(lambda row: None if row["expected_psnr"] is None else -row["expected_psnr"]),
    "changed most": _of_taken(lambda row: None if row["change_psnr"] is None else -row["change_psnr"]),
    "generated": lambda row: 0.0 if row["status"] == "generated" else None,
    "kept, nearly restored": lambda row: row["expected_gain"] if row["status"] == "kept" else None,
}
"""Why a row is shown: the highest values are. `random` rows come on top."""
SCALARS = (
    *("source_row", "status", "expected_gain", "expected_psnr", "change_psnr", "redamaged_psnr"),
    *("psnr_before", "psnr_after", "error_stage", "error_type"),
)
"""Columns by which rows are chosen."""


@dataclasses.dataclass
class Chosen:
    """Keys of rows."""

    shown: dict[str, list[str]]
    """With pictures: the groups that each belongs to, by its key."""
    failed: dict[str, list[str]]
    """Keys of examples, by `stage: type`."""
    paths: dict[str, str]
    """Of the files with these rows, by their keys."""


class Chooser:
    """Looks at all rows, batch by batch, and remembers a few."""

    def __init__(self, seed: str) -> None:
        """`seed` of the random rows: the run's id, so that a report made again shows the same."""
        self._best: dict[str, list[tuple[float, str, str]]] = {name: [] for name in GROUPS}
        self._random: list[tuple[str, str]] = []
        self._seen = 0
        self._dice = random.Random(seed)
        self._failed: dict[str, list[tuple[str, str]]] = {}

    def add(self, table: pa.Table) -> None:
        """Look at a batch with the columns `SCALARS`, and the `path` of each row's file."""
        for row in table.select([name for name in (*SCALARS, "path") if name in table.column_names]).to_pylist():
            row = dict.fromkeys(SCALARS) | row
            key, path = row["source_row"], row["path"]
            if row["status"] == "failed":
                kind = f"{row['error_stage']}: {row['error_type']}"
                if kind in self._failed or len(self._failed) < KINDS_OF_FAILURE:
                    examples = self._failed.setdefault(kind, [])
                    if len(examples) < FAILURES:
                        examples.append((key, path))
                continue
            for name, value in GROUPS.items():
                score = value(row)
                if score is not None:
                    found = self._best[name]
                    (heapq.heappush if len(found) < EACH else heapq.heappushpop)(found, (score, key, path))
            self._seen += 1
            if len(self._random) < EACH:
                self._random.append((key, path))
            elif (place := self._dice.randrange(self._seen)) < EACH:
                self._random[place] = key, path

    @property
    def chosen(self) -> Chosen:
        """Those to show, the best of each group first."""
        shown: dict[str, list[str]] = {}
        paths: dict[str, str] = {}
        for name, found in self._best.items():
            for _, key, path in sorted(found, reverse=True):
                shown.setdefault(key, []).append(name)
                paths[key] = path
        for key, path in self._random:
            shown.setdefault(key, []).append("random")
            paths[key] = path
        failed = {kind: [key for key, _ in examples] for kind, examples in self._failed.items()}
        return Chosen(shown, failed, paths | dict(one for examples in self._failed.values() for one in examples))


def read_rows(
    rows: Rows, keys: Sequence[str], columns: dict[str, pads.Expression], key: str, paths: Collection[str]
) -> list[Row]:
    """The rows with these keys, in their order; of the table's files only the parts that hold them are read.

    Args:
        rows: the table's.
        keys: of those that are wanted.
        columns: what is read.
        key: name of the column with the keys.
        paths: of the files that hold them.
    """
    if not keys:
        return []
    wanted = pads.field(key).isin(pa.array(list(keys), pa.string()))
    found = {row["source_row"]: row for _, batch in rows.batches(columns, wanted, paths) for row in as_rows(batch)}
    return [found[name] for name in keys if name in found]


def as_rows(batch: pa.RecordBatch) -> list[Row]:
    """A batch's rows; text that is no UTF-8 as far as it is."""
    values = {name: _readable(batch[name]) for name in batch.schema.names}
    return [{name: column[place] for name, column in values.items()} for place in range(batch.num_rows)]


def _readable(column: pa.Array) -> list[Any]:
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        is_list = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
        kind = pa.list_(pa.large_binary()) if is_list else pa.large_binary()
        values = [_decoded(value) for value in column.cast(kind).to_pylist()]
    return values


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(one) for one in value]
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def fit_pictures(rows: Sequence[Row]) -> None:
    """Shrink previews until all of them together are as large as a page may be."""
    limit = int(PICTURES_MB * 1e6 / max(1, 2 * len(rows)))
    for row in rows:
        for name in ("before_preview", "after_preview"):
            data = row.get(name)
            if data and len(data) > limit:
                row[name] = _shrunk(data, limit)


def _shrunk(data: bytes, limit: int) -> bytes:
    with Image.open(io.BytesIO(data)) as file:
        picture = file.convert("RGB")
        side = max(picture.size)
        while True:
            side = max(_SMALL, side * 2 // 3)
            small = picture.copy()
            small.thumbnail((side, side))
            out = io.BytesIO()
            small.save(out, "JPEG", quality=80)
            if len(out.getvalue()) <= limit or side == _SMALL:
                return out.getvalue()
