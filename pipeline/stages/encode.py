"""The encode stage: restored pixels become files, and rows get the columns of the output table."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from pipeline.errors import PermanentRowError, RowError
from pipeline.imaging.encode import encode_image, encode_preview
from pipeline.recipe import Recipe
from pipeline.schema import OUTPUT
from pipeline.stages.table import Row, failure, source_columns, stage_rows, with_columns

LARGEST_WEBP = 16_383
"""Pixels a side that the format can hold."""


@dataclasses.dataclass(frozen=True)
class EncodeStage:
    """Encodes tables."""

    recipe: Recipe
    run_id: str
    publish: Callable[[bytes, str, str], str] | None = None
    """Writes an image file beside the table, given its SHA-256 and ending, and returns its URI; None: it stays in the
    row."""

    def __call__(self, table: pa.Table) -> pa.Table:
        """Every row of `table`, in order, with the columns of `OUTPUT` (under the recipe's prefix)."""
        cells = stage_rows(table)
        digest = self.recipe.digest()
        rows = [self._row(cell) | {"run_id": self.run_id, "recipe_digest": digest} for cell in cells]
        return with_columns(source_columns(table), rows, OUTPUT, self.recipe.output.prefix)

    def _row(self, cell: Row) -> Row:
        row = {name: cell[name] for name in OUTPUT.names if name in cell}
        if cell["status"] == "failed":
            return row
        try:
            return row | self._file(cell)
        except RowError as error:
            return row | failure("encode", error) | {"status": "failed"}
        except Exception as error:  # a codec's surprise must not cost the other rows
            return row | failure("encode", PermanentRowError(f"{type(error).__name__}: {error}")) | {"status": "failed"}

    def _file(self, cell: Row) -> Row:
        height, width = cell["height"], cell["width"]
        preview, row = cell["before_preview"], Row()
        if cell["pixels"] is None:
            data, format = cell["file"], cell["format"]
        else:
            format = self.recipe.output.format
            if format == "webp" and max(height, width) > LARGEST_WEBP:
                format = "png"
                row["notes"] = [*(cell["notes"] or ()), f"PNG, since WebP ends at {LARGEST_WEBP} pixels a side"]
            pixels = np.frombuffer(cell["pixels"], np.uint8).reshape(height, width, cell["channels"])
            data = encode_image(pixels, format, cell["icc"], cell["exif"])
            preview = encode_preview(pixels, self.recipe.output.previews)
        sha256 = hashlib.sha256(data).hexdigest()
        uri = self.publish(data, sha256, format) if self.publish else None
        return row | {
            "image": data if uri is None else None,
            "image_uri": uri,
            "image_bytes": len(data),
            "image_format": format,
            "image_width": width,
            "image_height": height,
            "image_sha256": sha256,
            "after_preview": preview,
        }
