"""The decode stage: a row's image files become pixels."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

import numpy as np
import pyarrow as pa
from PIL import Image

from pipeline.errors import (
    MissingImage,
    PermanentRowError,
    RowError,
    StoreUnavailable,
    UnreadableImage,
    UnsupportedColumn,
    UnsupportedImage,
)
from pipeline.imaging.cells import Fetch, holds_images, is_empty, read_cell, shown, uri_in, uri_of
from pipeline.imaging.decode import check_size, decode_image, rgb
from pipeline.imaging.encode import encode_preview
from pipeline.imaging.large import ENDINGS, LargeTiff, file_sha256
from pipeline.imaging.mask import lost_in
from pipeline.imaging.original import Original, pixels_sha256
from pipeline.imaging.tiff import TiffPages, Unsupported
from pipeline.imaging.working import eight_bits, to_working
from pipeline.recipe import Columns, Recipe
from pipeline.restoration.request import as_captions
from pipeline.schema import DECODED, ROW_KEY
from pipeline.stages.table import Row, as_type, failure, with_columns

REFERENCE_SIDE = 512
"""References are only seen as thumbnails; larger ones are shrunk to this longest side in pixels at once."""


MADE = 1_000_000
"""Bytes that stand for a picture which is to be made, so that Ray does not put too many of them together: that takes as
long as to restore some of a megapixel."""


@dataclasses.dataclass(frozen=True)
class DecodeStage:
    """Decodes tables; hands them on in pieces of bounded size, whatever came in."""

    recipe: Recipe
    columns: Columns
    """Which of the source's columns hold what."""
    passed: pa.Schema
    """The source's own columns that go through to the output."""
    fetch: Fetch
    open: Callable[[str], IO[bytes]] | None = None
    """Opens files for reading in parts, as those of large images are; None: there are none."""
    root: str = ""
    """The place below which the source's files lie."""
    device: str = "cpu"
    """Of the model that restores them."""

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        """Every row of `table` in tables of about `resources.block_mb` of pixels.

        Images that are restored band by band come alone, each at once: what takes minutes holds up nothing else.
        """
        limit = self.recipe.resources.block_bytes(self.device)
        source = table.select([name for name in self.passed.names if name in table.column_names])
        rows: dict[int, Row] = {}
        size = 0
        for index in range(table.num_rows):
            row = self._row(table, index) | {"source_row": _cell(table, ROW_KEY, index)}
            if row.get("large"):  # of so many bytes that Ray does not put others to it
                yield self._table(source.slice(index, 1), [row | {"pixels": bytes(limit)}])
                continue
            rows[index] = row
            size += len(row.get("pixels") or b"") + len(row.get("file") or b"")
            if size >= limit:
                yield self._table(source.take(pa.array(rows, pa.int64())), list(rows.values()))
                rows, size = {}, 0
        if rows or not table.num_rows:
            yield self._table(source.take(pa.array(rows, pa.int64())), list(rows.values()))

    def failed(self, table: pa.Table, error: RowError) -> pa.Table:
        """Rows that could not even be tried."""
        rows = []
        for index in range(table.num_rows):
            known: Row = {"source_uri": uri_of(_cell(table, self.columns.image, index))}
            rows.append(_failed(known, error) | {"source_row": _cell(table, ROW_KEY, index)})
        return self._table(table, rows)

    def _table(self, source: pa.Table, rows: Sequence[Row]) -> pa.Table:
        columns = {}
        for field in self.passed:
            if field.name in source.column_names:
                columns[field.name] = as_type(source[field.name], field.type)
            else:  # another file of the source has it
                columns[field.name] = pa.nulls(len(rows), field.type)
        return with_columns(pa.table(columns), rows, DECODED)

    def _row(self, table: pa.Table, index: int) -> Row:
        columns, row = self.columns, Row(attempts=1)
        try:
            if self._is_lost(table, index, row):
                return row
            size = (row["height"], row["width"])
            self._mask(table, index, size, row)
            row["truth"] = self._truth(table, index, size, row["notes"])
            row["references"] = self._references(table, index, row["notes"])
            captions = as_captions(_cell(table, columns.caption, index))
            row["caption"], row["further_captions"] = next(iter(captions), None), captions[1:]
            row["inputs_sha256"] = _inputs_digest(row)
        except RowError as error:
            return _failed(row, error)
        except Exception as error:  # one row's surprise must not cost the others
            return _failed(row, PermanentRowError(f"{type(error).__name__}: {error}"))
        return row

    def _is_lost(self, table: pa.Table, index: int, row: Row) -> bool:
        """Whether there is no image and one is to be made; if there is, fill in what is known of it."""
        try:
            self._image(table, index, row)
        except (MissingImage, UnreadableImage) as error:
            caption = next(iter(as_captions(_cell(table, self.columns.caption, index))), None)
            was_read = isinstance(error, MissingImage) or row.get("source_sha256") is not None
            intact = isinstance(error, UnsupportedImage) or not was_read  # a folder may just not be mounted
            if self.recipe.restoration.lost != "generate" or not caption or intact:
                raise
            name = _cell(table, self.columns.id, index)
            told = f"generate {_cell(table, ROW_KEY, index) if name is None else name} {caption}"
            row |= {"lost": error.message, "caption": caption, "notes": [], "pixels": bytes(MADE)}
            row["inputs_sha256"] = hashlib.sha256(told.encode()).hexdigest()
            return True
        return False

    def _image(self, table: pa.Table, index: int, row: Row) -> None:
        """Fill in what is known of the image, step by step, so that a failed row still tells where it came from."""
        column = self.columns.image
        if column not in table.column_names:
            raise UnsupportedColumn(f"the row's file has no column {column!r}")
        value, kind = _cell(table, column, index), table.schema.field(column).type
        row["source_uri"] = uri_of(value)
        if self._is_large(value, row):
            return
        data = read_cell(value, kind, column, self.fetch)
        row["source_sha256"] = hashlib.sha256(data).hexdigest()
        original = self._decode(data)
        row |= {"source_layout": original.layout, "source_pixels_sha256": pixels_sha256(original)}
        pixels, _, converted = to_working(original)
        height, width, channels = pixels.shape
        row |= {
            "file": data,
            "format": original.format,
            "pixels": pixels.tobytes(),
            "height": height,
            "width": width,
            "channels": channels,
            "depth": 8 * pixels.itemsize,
            "mask": None if original.missing is None else original.missing.tobytes(),
            "mask_given": False,
            "broken": original.broken or None,
            "notes": [*([original.broken] if original.broken else []), *original.notes, *converted],
            "before_preview": encode_preview(eight_bits(pixels), self.recipe.output.previews),
        }

    def _is_large(self, value: Any, row: Row) -> bool:
        """Whether the image is to be restored band by band; if so, fill in what is known of it."""
        uri = uri_in(value)
        if self.open is None or uri is None or not uri.lower().endswith(ENDINGS):
            return False
        try:
            return self._look_into(uri, row, self.open)
        except OSError as error:
            raise StoreUnavailable(f"{shown(uri)} could not be read ({type(error).__name__}: {error})") from error

    def _look_into(self, uri: str, row: Row, opens: Callable[[str], IO[bytes]]) -> bool:
        limits = self.recipe.limits
        with opens(uri) as file:
            try:
                pages = TiffPages(file)
            except OSError:
                raise
            except Exception:  # it is told of in the usual way
                return False
            with pages:
                height, width = pages.size
                if height * width <= limits.max_megapixels * 1e6:
                    return False
                check_size(pages.size, limits.max_streamed_megapixels, "limits.max_streamed_megapixels")
                try:
                    image = LargeTiff(pages)
                    layout, pixels_sha256, notes = image.proto.layout, image.pixels_sha256(), list(image.proto.notes)
                except Unsupported as error:
                    raise UnsupportedImage(f"the image file cannot be read: {error}") from error
                except (ValueError, IndexError) as error:
                    row["source_sha256"], _ = file_sha256(file)
                    raise UnreadableImage(f"the image file cannot be read: {error}") from error
            sha256, _ = file_sha256(file)
        row |= {"source_sha256": sha256, "source_pixels_sha256": pixels_sha256, "source_layout": layout}
        row |= {"height": height, "width": width, "format": "tiff", "notes": notes, "large": uri, "root": self.root}
        row |= {"mask": None, "mask_given": False}
        return True

    def _decode(self, data: bytes) -> Original:
        limits = self.recipe.limits
        return decode_image(data, limits.max_megapixels, limits.max_image_mb)

    def _mask(self, table: pa.Table, index: int, size: tuple[int, int], row: Row) -> None:
        """Add a mask that is given to what is missing from the file."""
        column = self.columns.mask
        value = _cell(table, column, index)
        if column is None or is_empty(value):
            return
        if row.get("large"):
            raise PermanentRowError("a mask cannot be used with an image that is restored band by band")
        try:
            mask = lost_in(self._decode(read_cell(value, table.schema.field(column).type, column, self.fetch)))
        except PermanentRowError as error:
            raise type(error)(f"the mask: {error.message}") from error
        if mask.shape != size:
            raise PermanentRowError(
                f"the mask has {mask.shape[1]} x {mask.shape[0]} pixels, the image {size[1]} x {size[0]}; "
                "they must be equal"
            )
        if row["mask"] is not None:
            mask |= np.frombuffer(row["mask"], np.bool_).reshape(size)
        row |= {"mask": mask.tobytes(), "mask_given": True}

    def _truth(self, table: pa.Table, index: int, size: tuple[int, int], notes: list[str]) -> bytes | None:
        column = self.columns.truth
        value = _cell(table, column, index)
        if column is None or is_empty(value) or not self.recipe.scoring.truth:
            return None
        if size[0] * size[1] > self.recipe.limits.max_megapixels * 1e6:
            notes.append("no score against the truth: the image is restored band by band")
            return None
        try:
            truth = rgb(self._decode(read_cell(value, table.schema.field(column).type, column, self.fetch)))
        except RowError as error:
            notes.append(f"no score, the truth cannot be read: {error.message}")
            return None
        if truth.shape[:2] != size:
            notes.append(f"no score, the truth has another size: {truth.shape[1]} x {truth.shape[0]}")
            return None
        return truth.tobytes()

    def _references(self, table: pa.Table, index: int, notes: list[str]) -> list[dict[str, Any]]:
        column = self.columns.references
        values = _cell(table, column, index)
        if column is None or not values:
            return []
        kind = table.schema.field(column).type
        if isinstance(values, list):
            kind, values = kind.value_type, [value for value in values if not is_empty(value)]
        else:
            values = [values]
        if not holds_images(kind):
            notes.append(f"references ignored: column {column!r} has the type {kind}")
            return []
        found = []
        for number, value in enumerate(values[: self.recipe.limits.max_references], start=1):
            try:
                picture = Image.fromarray(rgb(self._decode(read_cell(value, kind, column, self.fetch))))
            except RowError as error:
                notes.append(f"reference {number} ignored: {error.message}")
                continue
            picture.thumbnail((REFERENCE_SIDE, REFERENCE_SIDE), reducing_gap=2.0)
            found.append({"pixels": picture.tobytes(), "height": picture.height, "width": picture.width})
        return found


_SOURCE = ("source_sha256", "source_pixels_sha256", "source_layout")


def _inputs_digest(row: Row) -> str:
    """SHA-256 of what a result is made from."""
    digest = hashlib.sha256(row["source_sha256"].encode())
    further = "\0".join(row["further_captions"]).encode()
    parts = [row["mask"] or b"", (row["caption"] or "").encode(), *(found["pixels"] for found in row["references"])]
    parts += [further] if further else []
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def _failed(row: Row, error: RowError) -> Row:
    """What is left of a row that failed: no pixels, but what tells where it came from."""
    kept = {name: row.get(name) for name in ("notes", "before_preview", "source_uri", *_SOURCE)}
    return kept | failure("decode", error)


def _cell(table: pa.Table, column: str | None, index: int) -> Any:
    """A cell as a Python value; None for a column that is not there."""
    if column is None or column not in table.column_names:
        return None
    return table[column][index].as_py()
