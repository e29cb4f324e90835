"""The decide stage: rows of the table become what a person has decided, without restoring anything anew."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.errors import RowError, UnreadableImage
from pipeline.imaging.cells import Fetch, read_cell, uri_in
from pipeline.imaging.decode import decode_image
from pipeline.imaging.encode import ending
from pipeline.imaging.large import ENDINGS, file_sha256
from pipeline.imaging.tiff import TiffPages
from pipeline.quality.gate import Decision
from pipeline.recipe import Recipe
from pipeline.schema import BLIND_SCORES, ROW_KEY, TRUTH_SCORES
from pipeline.stages.table import Row

if TYPE_CHECKING:
    from pipeline.stages.large import Reader

ANOTHER = "it is another image than the one that was restored"

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class DecideStage:
    """Looks rows up in the table; accepted ones keep the image that was seen, rejected ones get the original back."""

    recipe: Recipe
    run_id: str
    image_column: str
    """Of the source, with the originals."""
    decisions: Mapping[str, Decision]
    """By `result_id`."""
    lookup: Callable[[Sequence[str]], pa.Table]
    """The table's rows with these keys, in the table's columns."""
    fetch: Fetch
    reader: Reader | None = None
    """Opens originals of images that were restored band by band."""
    publish: Callable[[bytes, str, str], str] | None = None
    """As in encoding."""

    def __call__(self, table: pa.Table) -> pa.Table:
        """The table's own rows for the rows of the source in `table`, as it was decided.

        A row whose original cannot be had, or is another now, stays as it was: nothing that a person has seen is lost.
        """
        prefix = self.recipe.output.prefix
        found = self.lookup(table[ROW_KEY].to_pylist())
        names = {name: name.removeprefix(prefix) for name in found.column_names if name.startswith(prefix)}
        places = {key: place for place, key in enumerate(table[ROW_KEY].to_pylist())}
        pieces = []
        for number in range(found.num_rows):
            one = found.slice(number, 1)
            row = {plain: one[name][0].as_py() for name, plain in names.items() if plain in _READ}
            changed = self._decided(row, table, places[row["source_row"]])
            for name, plain in names.items():
                if plain in changed:
                    kind = one.schema.field(name).type
                    one = one.set_column(one.column_names.index(name), name, pa.array([changed[plain]], kind))
            pieces.append(one)
        return pa.concat_tables(pieces) if pieces else found

    def _decided(self, row: Row, source: pa.Table, place: int) -> Row:
        decision = self.decisions[row["result_id"]]
        status, reasons = decision.apply(row["reasons"] or [])
        try:
            changed = {} if decision.accepted else self._original(row, source, place)
        except RowError as error:
            log.warning("row %s stays for review: its original cannot be kept: %s", row["source_row"], error.message)
            return {}
        return changed | {"status": status, "reasons": reasons, "run_id": self.run_id}

    def _original(self, row: Row, source: pa.Table, place: int) -> Row:
        column = source[self.image_column]
        value = column[place].as_py()
        written = self._large(value, row) or self._file(
            read_cell(value, column.type, self.image_column, self.fetch), row
        )
        return written | {
            **dict.fromkeys(("encoding_psnr", "digital_source", "change_mask", "seed")),
            "actions": [],
            "image_pixels_sha256": row["source_pixels_sha256"],
            "image_layout": row["source_layout"],
            **{f"{name}_after": row.get(f"{name}_before") for name in (*BLIND_SCORES, *TRUTH_SCORES)},
            "image_sha256": row["source_sha256"],
            "after_preview": row["before_preview"],
        }

    def _file(self, data: bytes, row: Row) -> Row:
        sha256 = hashlib.sha256(data).hexdigest()
        if sha256 != row["source_sha256"]:
            raise UnreadableImage(ANOTHER)
        limits = self.recipe.limits
        original = decode_image(data, limits.max_megapixels, limits.max_image_mb)
        format, (height, width) = original.format, original.size
        uri = self.publish(data, sha256, ending(format)) if self.publish else None
        return {
            "image": data if uri is None else None,
            "image_uri": uri,
            "image_bytes": len(data),
            "image_format": format,
            "image_height": height,
            "image_width": width,
        }

    def _large(self, value: Any, row: Row) -> Row | None:
        """An original that was restored band by band stays where it is; None: it was not."""
        uri = uri_in(value)
        if self.reader is None or uri is None or not uri.lower().endswith(ENDINGS):
            return None
        with self.reader.open(uri) as file:
            try:
                with TiffPages(file) as pages:
                    height, width = pages.size
            except Exception:  # it is told of in the usual way
                return None
            if height * width <= self.recipe.limits.max_megapixels * 1e6:
                return None
            sha256, size = file_sha256(file)
        if sha256 != row["source_sha256"]:
            raise UnreadableImage(ANOTHER)
        return {"image": None, "image_uri": self.reader.place(uri), "image_bytes": size, "image_format": "tiff"}


_READ = {
    *("source_row", "result_id", "source_sha256", "source_pixels_sha256", "source_layout", "reasons", "before_preview"),
    *(f"{name}_before" for name in (*BLIND_SCORES, *TRUTH_SCORES)),
}
"""Columns that are looked at. Of the image itself only a new one is put in its place."""
