"""Tables of images on any store, to be read row by row."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.dataset as pads

from pipeline.errors import SourceError
from pipeline.imaging.tables import ImageTable
from pipeline.lake.fetch import UriReader
from pipeline.lake.find import find_files
from pipeline.lake.places import as_uri, explained
from pipeline.redaction import redacted

MAX_IMAGE_BYTES = 1 << 28
ATTEMPTS = 3


def open_tables(uris: Sequence[str]) -> list[ImageTable]:
    """The Parquet files behind paths, folders, globs and URLs, sorted by their paths.

    Images that they name by URI are read from below the folder that was asked for.

    Raises:
        SourceError: nothing is there, or it cannot be read.
    """
    store, found, *_ = find_files(uris)
    tables = []
    for path, file in sorted(found.items()):
        with explained(path, SourceError):
            try:
                data = pads.dataset(path, filesystem=store, format="parquet")
            except pa.ArrowInvalid as error:
                raise SourceError(f"{redacted(path)} is not a Parquet file, or a broken one: {error}") from error
        tables.append(
            ImageTable(redacted(path), data, UriReader(as_uri(store, file.root), (), MAX_IMAGE_BYTES, ATTEMPTS))
        )
    return tables
