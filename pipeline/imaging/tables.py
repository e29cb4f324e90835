"""A table of images that is read image by image, wherever it lies: for training, evaluation and samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.dataset as pads

from pipeline.errors import SourceError
from pipeline.imaging.cells import Fetch, read_cell
from pipeline.imaging.decode import decode_image, rgb

MAX_MEGAPIXELS = 100.0
"""Larger images are refused, row by row."""
CAPTIONS = ("captions", "caption")
"""Columns in which captions are looked for."""
BATCH_ROWS = 32
"""Rows read at a time: they may hold large files."""


class ImageTable(NamedTuple):
    """One Parquet file of a source."""

    path: str
    data: pads.Dataset
    fetch: Fetch
    """Reads images that are named by URI."""

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return PurePosixPath(self.path).stem

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        """Row by row, as Python values.

        Raises:
            SourceError: the file cannot be read to its end.
        """
        try:
            for batch in self.data.to_batches(columns=columns, batch_size=BATCH_ROWS, batch_readahead=1):
                yield from batch.to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise SourceError(f"{self.path} cannot be read: {error}") from error

    def check(self, column: str) -> None:
        """Look for a column.

        Raises:
            SourceError: there is none of this name.
        """
        names = self.data.schema.names
        if column not in names:
            raise SourceError(f"{self.path} has no column {column!r}; its columns are {', '.join(names)}")

    def decode(self, row: dict[str, Any], column: str) -> Any:
        """The pixels [H, W, 3], uint8, of a row.

        Raises:
            RowError: it holds no image, or one that is broken, too large or out of reach.
        """
        data = read_cell(row[column], self.data.schema.field(column).type, column, self.fetch)
        return rgb(decode_image(data, MAX_MEGAPIXELS))


def captions_of(value: object) -> tuple[str, ...]:
    """The texts of a cell that holds one, a list of them, or nothing."""
    texts = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return tuple(text for text in texts if isinstance(text, str) and text.strip())
