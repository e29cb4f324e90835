"""A lake table as the commits see it: data files are written by others, a commit only registers them.

Three kinds keep the same promises: a commit is seen whole or not at all, carries a number, the run's id and the
recipe's digest, and what was committed under a number is not committed again.
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import OutputError
from pipeline.imaging.cells import is_list

KEY_DIGITS = 16
"""Of a row's key, those that stand for its input file; a dash and the row's number follow."""


@dataclasses.dataclass(frozen=True)
class DataFile:
    """One Parquet file below the table's folder."""

    path: str
    """Relative to the table's folder."""
    size: int
    """Bytes."""
    rows: int


@dataclasses.dataclass(frozen=True)
class Commit:
    """What is written beside the files in the table's history."""

    number: int
    """Counts the commits of an output, from 1."""
    run_id: str
    recipe_digest: str

    @property
    def properties(self) -> dict[str, str]:
        """As readers find them in the table's history."""
        return {
            "conservator.commit": str(self.number),
            "conservator.run-id": self.run_id,
            "conservator.recipe-digest": self.recipe_digest,
        }


@dataclasses.dataclass(frozen=True)
class Removal:
    """Rows that go as those that take their place come in."""

    column: str
    """The one with the rows' keys."""
    rows: tuple[str, ...] = ()
    """Keys of rows."""
    files: tuple[str, ...] = ()
    """Keys of input files, all of whose rows go."""

    def __bool__(self) -> bool:
        return bool(self.rows or self.files)

    def of(self, keys: pa.ChunkedArray) -> pa.ChunkedArray:
        """Which of the rows with these keys go."""
        owners = pc.utf8_slice_codeunits(keys, 0, KEY_DIGITS)
        files = pc.is_in(owners, pa.array(self.files, owners.type))
        return pc.or_(files, pc.is_in(keys, pa.array(self.rows, keys.type)))


def schema_text(schema: pa.Schema) -> str:
    """A schema, to be kept in JSON."""
    return base64.b64encode(schema.serialize()).decode()


def read_schema(text: str) -> pa.Schema:
    """The inverse."""
    return pa.ipc.read_schema(pa.BufferReader(base64.b64decode(text)))


PARTITION = "partition_"
"""How the names of folders begin that go by a copy of a column."""


def partitions(names: Sequence[str], table: str) -> list[tuple[str, str]]:
    """The columns by which a kind of table is divided, each with the one that names its folders.

    The column of the folders is not in the data files. That is what readers of Hive and Delta tables expect; Iceberg
    wants it there, so the folders go by a copy.
    """
    return [(name, PARTITION + name if table == "iceberg" else name) for name in names]


def partitions_of(path: str) -> dict[str, str | None]:
    """The Hive partitions (`key=value` folders) in a path."""
    pairs = (folder.split("=", 1) for folder in path.split("/")[:-1] if "=" in folder)
    return {key: None if value == "__HIVE_DEFAULT_PARTITION__" else unquote(value) for key, value in pairs}


class Table(Protocol):
    """What all kinds of table can do."""

    def last_commit(self) -> int:
        """The number of the last commit; 0 before the first."""

    def files(self) -> list[str]:
        """Paths of the data files that a reader sees now, relative to the table's folder."""

    def schema(self) -> pa.Schema | None:
        """Of the table; None before the first commit."""

    def check(self, schema: pa.Schema, replace: bool = False) -> None:
        """Whether files with these columns can be added, or take the place of all (`replace`); changes nothing.

        Raises:
            OutputError: they cannot.
        """

    def commit(
        self,
        files: Sequence[DataFile],
        schema: pa.Schema,
        commit: Commit,
        replace: bool = False,
        removal: Removal | None = None,
    ) -> None:
        """Add files in one step, instead of all that the table held (`replace`), or of some rows (`removal`).

        Columns that the table does not have yet are added to it; with `replace` it gets these columns and no others.

        Raises:
            OutputError: the files do not fit the table.
        """

    def refresh(self) -> None:
        """Write anew what other readers start from, and what a crash right after a commit may have left as it was."""


def fitted(new: pa.Schema, table: pa.Schema) -> pa.Schema:
    """The columns of new rows with the types that the table has for them.

    Raises:
        OutputError: a column has values that the table's type does not hold, or differs from one in its case alone.
    """
    names = {name.casefold(): name for name in table.names}
    fields = []
    for field in new:
        known = names.get(field.name.casefold())
        if known is None:
            fields.append(field)
            continue
        if known != field.name:
            raise OutputError(
                f"the source's column {field.name!r} and the table's {known!r} differ in their case alone, which many "
                "readers ignore; rename it in the source, leave it out with columns.keep, or give another --output"
            )
        kind = table.field(known).type
        if pa.types.is_null(kind):
            fields.append(field)
            continue
        if not _holds(plain(kind), plain(field.type)):
            raise OutputError(
                f"column {field.name!r} is {field.type} in the source and {kind} in the table, which holds no such "
                "values; leave it out with columns.keep, make the table anew with --fresh, or give another --output"
            )
        is_view = pa.types.is_string_view(kind) or pa.types.is_binary_view(kind)
        fields.append(field.with_type(plain(kind) if is_view else kind))
    return pa.schema(fields)


def plain(kind: pa.DataType) -> pa.DataType:
    """A type without its variants of layout (large, view), which say nothing about values."""
    if kind in _PLAIN:
        return _PLAIN[kind]
    if pa.types.is_dictionary(kind):
        return plain(kind.value_type)
    return _rebuilt(kind, plain)


def _rebuilt(kind: pa.DataType, inner: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """A nested type with other types inside; any kind of list becomes a plain one."""
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(kind[i].name, inner(kind[i].type)) for i in range(kind.num_fields)])
    if pa.types.is_map(kind):
        return pa.map_(inner(kind.key_type), inner(kind.item_type))
    if is_list(kind):
        return pa.list_(inner(kind.value_type))
    return kind


_PLAIN = {
    pa.large_string(): pa.string(),
    pa.string_view(): pa.string(),
    pa.large_binary(): pa.binary(),
    pa.binary_view(): pa.binary(),
}


def _holds(wide: pa.DataType, narrow: pa.DataType) -> bool:
    """Whether each value of one type can be one of the other, and be told from others."""
    if wide == narrow or pa.types.is_null(narrow):
        return True
    if pa.types.is_string(wide):
        return not (pa.types.is_nested(narrow) or pa.types.is_binary(narrow) or pa.types.is_fixed_size_binary(narrow))
    if pa.types.is_integer(narrow):
        bits = narrow.bit_width + pa.types.is_unsigned_integer(narrow)
        if pa.types.is_signed_integer(wide):
            return bool(wide.bit_width >= bits)
        return bool((pa.types.is_float64(wide) and bits <= 53) or wide == _WIDER.get(narrow))
    if pa.types.is_floating(narrow):
        return bool(pa.types.is_floating(wide) and wide.bit_width >= narrow.bit_width)
    if is_list(wide):
        return _holds(wide.value_type, narrow.value_type if is_list(narrow) else narrow)
    if pa.types.is_struct(wide) and pa.types.is_struct(narrow):
        return [field.name for field in wide] == [field.name for field in narrow] and all(
            _holds(one.type, other.type) for one, other in zip(wide, narrow, strict=True)
        )
    if pa.types.is_timestamp(wide) and pa.types.is_timestamp(narrow):  # nanoseconds reach from 1677 to 2262 only
        units = ("s", "ms", "us")
        finer = wide.unit in units and narrow.unit in units and units.index(wide.unit) >= units.index(narrow.unit)
        return finer and bool(wide.tz) == bool(narrow.tz)
    return False


def storable(schema: pa.Schema) -> pa.Schema:
    """The schema with types that every kind of table knows, each holding all values of the one it stands for.

    Iceberg and Delta know no unsigned, half-precision or dictionary types, no null type, and no times below a
    microsecond: those are cut off.
    """
    return pa.schema([pa.field(field.name, _storable(field.type)) for field in schema], schema.metadata)


def _storable(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return _storable(kind.value_type)
    if pa.types.is_null(kind):
        return pa.string()
    if kind in _WIDER:
        return _WIDER[kind]
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", "UTC" if kind.tz else None)
    if pa.types.is_date64(kind):
        return pa.date32()
    if pa.types.is_time(kind) or pa.types.is_duration(kind) or pa.types.is_interval(kind):
        return pa.string()
    if pa.types.is_decimal256(kind):
        return pa.string() if kind.precision > 38 else pa.decimal128(kind.precision, kind.scale)
    if pa.types.is_fixed_size_binary(kind) or pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_string_view(kind):
        return pa.string()
    return _rebuilt(kind, _storable)


_WIDER = {
    pa.uint8(): pa.int32(),
    pa.uint16(): pa.int32(),
    pa.uint32(): pa.int64(),
    pa.uint64(): pa.decimal128(20, 0),
    pa.int8(): pa.int32(),
    pa.int16(): pa.int32(),
    pa.float16(): pa.float32(),
}
