"""The encode stage: restored pixels become files, and rows get the columns of the output table."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from pipeline.errors import PermanentRowError, RowError
from pipeline.imaging.decode import decode_image
from pipeline.imaging.encode import Encoded, encode_image, encode_preview, ending
from pipeline.imaging.label import labelled
from pipeline.imaging.original import Original, pixels_sha256
from pipeline.imaging.signing import Credentials, signed
from pipeline.imaging.working import eight_bits, enlarged, from_working, to_working
from pipeline.imaging.xmp import with_provenance
from pipeline.recipe import Recipe
from pipeline.schema import INTERNAL, OUTPUT
from pipeline.stages.provenance import provenance
from pipeline.stages.table import Row, failure, source_columns, stage_rows, with_columns

WHOLE = (1, 8, 16, 32, 64)
"""Bits of samples that lossless files hold as they are; others are scaled."""


@dataclasses.dataclass(frozen=True)
class EncodeStage:
    """Encodes tables."""

    recipe: Recipe
    run_id: str
    publish: Callable[[bytes, str, str], str] | None = None
    """Writes an image file beside the table, given its SHA-256 and ending, and returns its URI; None: it stays in the
    row."""
    credentials: Credentials | None = None
    """With what restored files are signed; None: not at all."""

    def __call__(self, table: pa.Table) -> pa.Table:
        """Every row of `table`, in order, with the columns of `OUTPUT` (under the recipe's prefix)."""
        cells = stage_rows(table)
        digest = self.recipe.digest()
        rows = [self._row(cell) | {"run_id": self.run_id, "recipe_digest": digest} for cell in cells]
        return with_columns(source_columns(table), rows, OUTPUT, self.recipe.output.prefix)

    def failed(self, table: pa.Table, error: RowError) -> pa.Table:
        """Rows that could not even be tried."""
        told = failure("encode", error)
        names = [INTERNAL + name for name in ("status", *told)]
        for name, value in zip(names, ("failed", *told.values()), strict=True):
            at = table.column_names.index(name)
            kind = table.schema.field(name).type
            table = table.set_column(at, name, pa.array([value] * table.num_rows, kind))
        return self(table)

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
        if cell["image_uri"] is not None:  # a large one, that is written already
            return {"image_width": cell["width"], "image_height": cell["height"]}
        if cell["pixels"] is None:
            data, format, preview = cell["file"], cell["format"], cell["before_preview"]
            row = Row(image_pixels_sha256=cell["source_pixels_sha256"], image_layout=cell["source_layout"])
            height, width = cell["height"], cell["width"]
        else:
            row, encoded, picture = self._encoded(cell)
            data, format = encoded.data, encoded.format
            (height, width), preview = picture.size, self._preview(picture)
        sha256 = hashlib.sha256(data).hexdigest()
        uri = self.publish(data, sha256, ending(format)) if self.publish else None
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

    def _encoded(self, cell: Row) -> tuple[Row, Encoded, Original]:
        """The restored picture in the original's own numbers, with all that stood beside it."""
        output, limits = self.recipe.output, self.recipe.limits
        kind = np.uint8 if cell["depth"] == 8 else np.uint16
        after = np.frombuffer(cell["pixels"], kind).reshape(cell["height"], cell["width"], cell["channels"])
        notes: list[str] = []
        if cell["file"] is None:  # there is no original
            samples = labelled(after) if self.recipe.restoration.mark_generated else after
            picture = Original(samples, "rgb", white=255, bits=8, format="png")
        else:
            original = decode_image(cell["file"], limits.max_megapixels)
            before = to_working(original).pixels
            if after.shape[:2] == before.shape[:2]:
                picture = from_working(original, before, after)
            else:
                picture = enlarged(original, after, notes)
        if output.provenance:
            xmp = with_provenance(picture.metadata.xmp, provenance(cell), notes)
            picture = dataclasses.replace(picture, metadata=dataclasses.replace(picture.metadata, xmp=xmp))
        encoded = encode_image(picture, output.format, output.quality, output.least_psnr)
        if self.credentials is not None:
            parts = (encoded.data, encoded.format, cell["file"], cell["format"], provenance(cell), self.credentials)
            data = signed(*parts)
            if data is None:
                formats = " or ".join(name.upper() for name in (cell["format"], encoded.format) if name)
                notes.append(f"not signed: C2PA has no place in {formats}")
            else:
                encoded = encoded._replace(data=data)
        plain = encoded.psnr is None and encoded.format in ("png", "tiff", "jpeg2000") and picture.bits in WHOLE
        written = picture if plain else decode_image(encoded.data)
        row: Row = {
            "notes": [*(cell["notes"] or ()), *notes, *encoded.notes],
            "image_pixels_sha256": pixels_sha256(written),
            "image_layout": written.layout,
            "encoding_psnr": encoded.psnr,
        }
        return row, encoded, written

    def _preview(self, picture: Original) -> bytes | None:
        side = self.recipe.output.previews
        return encode_preview(eight_bits(to_working(picture).pixels), side) if side else None
