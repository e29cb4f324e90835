"""Input files: Parquet files, known by their footers, and image files, each with its row of a captions file."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import SourceError
from pipeline.imaging.cells import redacted
from pipeline.lake.ledger import InputFile
from pipeline.lake.places import explained

VIEWS = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}
"""Types that Delta's writer gives to some columns, and that Arrow can do little with."""


class RowGroup(NamedTuple):
    """A part of a Parquet file that is read as one."""

    rows: int
    size: int
    """Bytes."""


_NOTHING: Mapping[str, pa.Scalar] = {}


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """A file of the source, before it was looked into."""

    root: str
    """The folder that was asked for; images named by a relative URI are taken from there."""
    size: int
    """Bytes."""
    version: str
    """What the store calls this state of the file: ETag or time."""
    constants: Mapping[str, pa.Scalar] = dataclasses.field(default_factory=lambda: _NOTHING)
    """Values that all of its rows share and that are not in it: of partitions."""
    deleted: tuple[int, ...] = ()
    """Numbers of rows that the table does not count any more."""
    fields: Mapping[int, str] | None = None
    """Names of the table's columns by Iceberg's field ids, which hold whatever the file calls them."""


@dataclasses.dataclass(frozen=True)
class ParquetFile:
    """One Parquet file of the source."""

    path: str
    found: Found
    groups: tuple[RowGroup, ...]
    schema: pa.Schema
    """Of what is in the file, under the names that the table gives the columns."""
    renamed: Mapping[str, str]
    """The file's own names of columns that have others in the table."""

    @functools.cached_property
    def rows(self) -> int:
        """Of all row groups."""
        return sum(group.rows for group in self.groups)

    @property
    def root(self) -> str:
        """The folder that was asked for."""
        return self.found.root

    @property
    def size(self) -> int:
        """Bytes."""
        return self.found.size

    @property
    def constants(self) -> Mapping[str, pa.Scalar]:
        """See `Found`."""
        return self.found.constants

    @property
    def input(self) -> InputFile:
        """As the ledger knows it."""
        return InputFile(self.path, self.size, self.found.version)

    @functools.cached_property
    def key(self) -> str:
        """16 hexadecimal digits that stand for this state of the file."""
        return self.input.key

    def in_file(self, names: list[str]) -> list[str]:
        """The file's own names of those columns that it has."""
        return [self.renamed.get(name, name) for name in names if name in self.schema.names]

    def in_table(self, names: list[str]) -> list[str]:
        """The inverse."""
        back = {old: new for new, old in self.renamed.items()}
        return [back.get(name, name) for name in names]


@dataclasses.dataclass(frozen=True)
class ImageFile:
    """One image file of the source: a single row."""

    path: str
    root: str
    size: int
    """Bytes."""
    version: str
    """Of the file, and of what is said of it."""
    row: Mapping[str, Any]
    """Its values, all but the image itself."""
    schema: pa.Schema
    """Of all rows of the folder."""

    rows = 1
    constants: Mapping[str, pa.Scalar] = dataclasses.field(default_factory=lambda: _NOTHING, repr=False)

    @property
    def input(self) -> InputFile:
        """As the ledger knows it."""
        return InputFile(self.path, self.size, self.version)

    @functools.cached_property
    def key(self) -> str:
        """16 hexadecimal digits that stand for this state of the file."""
        return self.input.key


SourceFile = ParquetFile | ImageFile


def read_footer(store: fsspec.AbstractFileSystem, path: str, found: Found) -> ParquetFile:
    """What a Parquet file holds.

    Raises:
        SourceError: it is none, or cannot be read.
    """
    with explained(path, SourceError):
        try:
            with store.open(path, "rb") as file:
                parquet = pq.ParquetFile(file)
                metadata = (parquet.metadata.row_group(number) for number in range(parquet.num_row_groups))
                groups = tuple(RowGroup(group.num_rows, _compressed(group)) for group in metadata)
                return ParquetFile(path, found, groups, *_named(parquet.schema_arrow, found.fields))
        except pa.ArrowInvalid as error:
            raise SourceError(f"{redacted(path)} is not a Parquet file, or a broken one: {error}") from error


def without_views(table: pa.Table) -> pa.Table:
    """The table with plain strings and bytes."""
    return table.cast(pa.schema([field.with_type(VIEWS.get(field.type, field.type)) for field in table.schema]))


def _compressed(group: Any) -> int:
    return sum(group.column(index).total_compressed_size for index in range(group.num_columns))


def _named(schema: pa.Schema, fields: Mapping[int, str] | None) -> tuple[pa.Schema, dict[str, str]]:
    """The schema under the table's names, and the file's own names of those that differ."""
    if fields is None:
        return schema, {}
    kept, renamed = [], {}
    for field in schema:
        number = (field.metadata or {}).get(b"PARQUET:field_id")
        name = fields.get(int(number)) if number is not None else field.name
        if name is None:  # the table has dropped this column
            continue
        kept.append(field.with_name(name))
        if name != field.name:
            renamed[name] = field.name
    return pa.schema(kept), renamed
