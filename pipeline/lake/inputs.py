"""Input files: Parquet files, known by their footers, and image files, each with its row of a captions file."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import SourceError
from pipeline.imaging.cells import unsigned
from pipeline.lake.ledger import InputFile
from pipeline.lake.places import explained
from pipeline.redaction import redacted

_UUID = "arrow.uuid"


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
    fields: Mapping[int | str, str] | None = None
    """Names of the table's columns by Iceberg's field ids, which hold whatever the file calls them; by the file's own
    names for files without ids."""
    table: str = ""
    """The folder of the Delta or Iceberg table that the file belongs to."""

    def input(self, path: str) -> InputFile:
        """The file at this path as the ledger knows it."""
        return InputFile(unsigned(path), self.size, self.version, self.table)


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
        return self.found.input(self.path)

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

    def read(
        self, parquet: pq.ParquetFile, groups: Sequence[int], columns: Sequence[str], rows: int
    ) -> Iterator[pa.Table]:
        """Some columns of some row groups, so many rows at a time, under the table's names."""
        for batch in parquet.iter_batches(rows, row_groups=list(groups), columns=self.in_file(list(columns))):
            table = readable(pa.Table.from_batches([batch]))
            yield table.rename_columns(self.in_table(table.column_names))


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
        return InputFile(unsigned(self.path), self.size, self.version)

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
                schema, renamed = _named(parquet.schema_arrow, found.fields)
                own = {name: value for name, value in found.constants.items() if name not in schema.names}
                if len(own) < len(found.constants):  # what the folder says stands in the file too
                    found = dataclasses.replace(found, constants=own)
                return ParquetFile(path, found, groups, schema, renamed)
        except pa.ArrowInvalid as error:
            raise SourceError(f"{redacted(path)} is not a Parquet file, or a broken one: {error}") from error


@contextlib.contextmanager
def broken(path: str) -> Iterator[None]:
    """Names the file whose content is broken.

    Raises:
        SourceError: what Arrow says of it.
    """
    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowKeyError, OSError) as error:
        is_of_store = isinstance(error, OSError) and (type(error) is not OSError or error.errno is not None)
        if is_of_store:  # Arrow's own, of a page that cannot be decompressed, are plain and without a number
            raise
        raise SourceError(f"{redacted(path)} is broken: {error}; repair or remove it") from error


def readable(table: pa.Table) -> pa.Table:
    """The table without views (Delta's writer makes them) and extension types, with which Arrow can do little."""
    columns = [_readable(column) for column in table.columns]
    return pa.table(columns, names=table.column_names) if columns else table


def _readable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = readable_type(column.type)
    if kind == column.type:
        return column
    if isinstance(column.type, pa.BaseExtensionType):
        if column.type.extension_name == _UUID:
            texts = [None if value is None else str(value) for value in column.to_pylist()]
            return pa.chunked_array([texts], kind)
        column = pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type)
    return column.cast(kind)


def readable_type(kind: pa.DataType) -> pa.DataType:
    """What `readable` makes of a type: the one that an extension is stored as, but UUIDs become text."""
    if isinstance(kind, pa.BaseExtensionType):
        return pa.string() if kind.extension_name == _UUID else readable_type(kind.storage_type)
    if pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_list(kind):
        return pa.list_(readable_type(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(kind[i].name, readable_type(kind[i].type)) for i in range(kind.num_fields)])
    return kind


def _compressed(group: Any) -> int:
    return sum(group.column(index).total_compressed_size for index in range(group.num_columns))


def _named(schema: pa.Schema, fields: Mapping[int | str, str] | None) -> tuple[pa.Schema, dict[str, str]]:
    """The schema under the table's names, and the file's own names of those that differ."""
    schema = pa.schema([field.with_type(readable_type(field.type)) for field in schema])
    if fields is None:
        return schema, {}
    kept, renamed = [], {}
    for field in schema:
        number = (field.metadata or {}).get(b"PARQUET:field_id")
        name = fields.get(field.name if number is None else int(number))
        if name is None:  # the table has dropped this column
            continue
        kept.append(field.with_name(name))
        if name != field.name:
            renamed[name] = field.name
    return pa.schema(kept), renamed
