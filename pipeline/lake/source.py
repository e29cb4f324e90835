"""What is read: files on any store with the rows that they hold, whatever kind of table they belong to."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import fsspec
import pyarrow as pa

from pipeline.errors import SourceError
from pipeline.lake.columns import check_columns, passed_columns, settled
from pipeline.lake.find import IMAGES, PARQUET, Files, find_files
from pipeline.lake.inputs import ParquetFile, SourceFile, read_footer
from pipeline.lake.keys import Keys
from pipeline.lake.ledger import InputFile
from pipeline.lake.pictures import image_files
from pipeline.lake.places import explained, open_store
from pipeline.lake.snapshots import delta_files, iceberg_files, table_format
from pipeline.recipe import Columns
from pipeline.recipe import Source as Settings
from pipeline.redaction import redacted

READERS = 16
"""Footers read at a time."""
TABLES = ("delta", "iceberg")
"""Kinds of sources that tell themselves which files they have."""


@dataclasses.dataclass(frozen=True)
class Source:
    """The input table."""

    store: fsspec.AbstractFileSystem
    files: tuple[SourceFile, ...]
    """Those that are not finished."""
    finished: frozenset[InputFile]
    """The others."""
    columns: Columns
    """Which hold what: the recipe's, but for those that have a default name by chance."""
    passed: pa.Schema
    """The columns that go through to the output."""
    patterns: tuple[str, ...]
    """Regular expressions of the paths that were asked for."""
    table: str | None
    """The folder of a Delta or Iceberg table, whose files take each other's place."""
    keys: Mapping[str, Keys] = dataclasses.field(default_factory=dict)
    """What is known of files' rows already, by the files' keys."""

    @property
    def rows(self) -> int:
        """Rows of all files."""
        return sum(file.rows for file in self.files)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def would_read(self, path: str) -> bool:
        """Whether the source, looked at again, would find a Parquet file that lay at this path of its store."""
        return any(re.match(pattern, path) for pattern in self.patterns)


def open_source(
    uris: Sequence[str],
    columns: Columns,
    finished: Collection[InputFile] = frozenset(),
    settings: Settings | None = None,
) -> Source:
    """Find the files of a source, and look into those that are not finished.

    Raises:
        SourceError: nothing is there, a file is not Parquet, the URIs lie in different stores, or a column that
            the recipe names is in none of the files.
    """
    settings = settings or Settings()
    return source_of(*find(format_of(uris, settings), uris, settings), columns, finished, settings)


def source_of(
    kind: str,
    files: Files,
    columns: Columns,
    finished: Collection[InputFile],
    settings: Settings,
    footers: Mapping[str, ParquetFile] | None = None,
    are_all: bool = True,
) -> Source:
    """What is to be read of files that `find` has found.

    Args:
        kind: of the source.
        files: all of it, or the first.
        columns: the recipe's.
        finished: files that are not looked into.
        settings: the recipe's.
        footers: of Parquet files, by path, as far as they are read already.
        are_all: whether these are all files.

    Raises:
        SourceError: as `open_source`.
    """
    new: tuple[SourceFile, ...]
    if kind == "images":
        images = image_files(files, columns, settings.captions, settings.storage, are_all)
        new = tuple(file for file in images if file.input not in finished)
        old = frozenset(file.input for file in images) - {file.input for file in new}
    else:
        states = {found.input(path): path for path, found in sorted(files.found.items())}
        old = frozenset(state for state in states if state in finished)
        paths = [path for state, path in states.items() if state not in old]
        known = footers or {}
        with ThreadPoolExecutor(READERS) as pool:
            new = tuple(
                pool.map(lambda path: known.get(path) or read_footer(files.store, path, files.found[path]), paths)
            )
    if new:
        check_columns(new, columns)
    columns = settled(columns, new)
    return Source(files.store, new, old, columns, passed_columns(new, columns), files.patterns, files.table)


def find(kind: str, uris: Sequence[str], settings: Settings, most: int | None = None) -> tuple[str, Files]:
    """What lies at URIs of the kind that `format_of` says, and its files; `most`: as `find_files` takes it.

    Raises:
        SourceError: as `open_source`.
    """
    if kind in TABLES:
        if len(uris) != 1:
            raise SourceError(f"one {kind.capitalize()} table makes a source, not {len(uris)}")
        if kind == "delta":
            return kind, delta_files(uris[0], settings.version, settings.storage)
        return kind, iceberg_files(uris[0], settings.version, settings.catalog, settings.storage)
    if settings.version is not None:
        raise SourceError(
            f"source.version is {settings.version}, but {redacted(uris[0]) if uris else 'nothing'} is no Delta or "
            "Iceberg table"
        )
    if kind != "auto":
        return kind, find_files(uris, IMAGES if kind == "images" else PARQUET, settings.storage, most)
    files = find_files(uris, (*PARQUET, *IMAGES), settings.storage, most)
    tables = {path: found for path, found in files.found.items() if not path.lower().endswith(IMAGES)}
    return ("parquet", files._replace(found=tables)) if tables else ("images", files)


def format_of(uris: Sequence[str], settings: Settings) -> str:
    """What the recipe says, or the folder of a table shows; `auto`: files, of one kind or the other.

    Raises:
        SourceError: the store cannot be reached.
    """
    if settings.catalog:
        return "iceberg"
    if settings.format != "auto" or len(uris) != 1 or not uris[0].strip():
        return settings.format
    with explained(uris[0], SourceError):
        return table_format(*open_store(uris[0], settings.storage)) or "auto"
