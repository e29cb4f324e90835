"""What is read of the source before any image: the ids, for those that come twice, and the columns of the filters.

Ids that come twice: all of their rows come out in any case; what is wrong is the source, and the run says so. The
ledger keeps the ids that are finished as 64 bits each, and they are gone through piece by piece: 100 million take
800 MB there, not in memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from pipeline.errors import RecipeError, SourceError
from pipeline.lake.filters import Filters, are_numbers, as_expression
from pipeline.lake.inputs import ImageFile, ParquetFile, SourceFile, broken, readable, readable_type
from pipeline.lake.places import explained
from pipeline.redaction import redacted

READERS = 16
"""Files whose keys are read at a time."""
SHOWN = 5
"""Examples that are named."""

Hashes = npt.NDArray[np.uint64]


class Keys(NamedTuple):
    """What is known of a file's rows before they are read."""

    ids: Hashes
    """Of those that are wanted and have one."""
    wanted: npt.NDArray[np.bool_] | None
    """Which they are; None: all."""
    rows: int
    """How many are wanted."""


def read_keys(
    store: fsspec.AbstractFileSystem,
    files: Sequence[SourceFile],
    column: str,
    filters: Filters = (),
    known: Mapping[str, Keys] | None = None,
) -> dict[str, Keys]:
    """The keys of files, by the files' own.

    Args:
        store: that they lie in.
        files: of a source.
        column: with the ids.
        filters: `(column, operator, value)`; all must hold. Row groups whose statistics exclude them are not read.
        known: those that were read before.

    Raises:
        RecipeError: a filter names no column, or does not fit its type.
        SourceError: a file cannot be read.
    """
    names = {name for file in files for name in (*file.schema.names, *file.constants)}
    unknown = [name for name, _, _ in filters if name not in names]
    if unknown and files:
        raise RecipeError(f"source.filters: the source has no column {unknown[0]!r}; it has {', '.join(sorted(names))}")
    kinds = {field.name: field.type for file in files for field in file.schema if not pa.types.is_null(field.type)}

    def read(file: ParquetFile) -> Keys:
        return keys_of(store, file, column, filters, kinds)

    images = [file for file in files if isinstance(file, ImageFile)]
    keys = dict(zip((file.key for file in images), _of_images(images, column, filters), strict=True))
    tables = [file for file in files if isinstance(file, ParquetFile)]
    keys |= {file.key: known[file.key] for file in tables if known and file.key in known}
    tables = [file for file in tables if file.key not in keys]
    with ThreadPoolExecutor(READERS) as pool:
        return keys | dict(zip((file.key for file in tables), pool.map(read, tables), strict=True))


def keys_of(
    store: fsspec.AbstractFileSystem,
    file: ParquetFile,
    column: str,
    filters: Filters,
    kinds: Mapping[str, pa.DataType] | None = None,
) -> Keys:
    """The keys of one file; `kinds`: of columns that it lacks, or has no values in, as other files have them.

    Raises:
        RecipeError: a filter does not fit its column's type.
        SourceError: the file cannot be read.
    """
    with explained(file.path, SourceError), _fitting(file.path), broken(file.path):
        return _read(store, file, column, filters, kinds or {})


def stands_alone(file: ParquetFile, column: str, filters: Filters) -> bool:
    """Whether no other file must be known for the keys of this one: it has the columns, and values in them."""
    needed = {column, *(name for name, _, _ in filters)} - file.constants.keys()
    return all(name in file.schema.names and not pa.types.is_null(file.schema.field(name).type) for name in needed)


def _of_images(files: Sequence[ImageFile], column: str, filters: Filters) -> Iterator[Keys]:
    """Of image files of one source: all in one table."""
    if not files:
        return
    columns = list(dict.fromkeys([column, *(name for name, _, _ in filters)]))
    schema = pa.schema([files[0].schema.field(name) for name in columns])
    with _fitting(files[0].root):
        table = pa.table(
            [pa.array([file.row.get(name) for file in files], schema.field(name).type) for name in columns], schema
        )
        expression = as_expression(filters, dict(zip(schema.names, schema.types, strict=True)))
        numbers = table.append_column("", pa.array(np.arange(len(files))))
        kept = np.zeros(len(files), np.bool_)
        kept[(numbers if expression is None else numbers.filter(expression))[""].to_numpy()] = True
    ids = [None if value is None else str(value) for value in table[column].to_pylist()]
    hashes = hashed([value or "" for value in ids])
    for place, (value, is_wanted) in enumerate(zip(ids, kept.tolist(), strict=True)):
        has_id = is_wanted and value is not None
        yield Keys(hashes[place : place + has_id], None if is_wanted else np.zeros(1, np.bool_), int(is_wanted))


@contextlib.contextmanager
def _fitting(path: str) -> Iterator[None]:
    """Names the file that has columns which filters do not fit.

    Raises:
        RecipeError: they do not.
    """
    try:
        yield
    except (pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise RecipeError(f"source.filters do not fit the columns of {redacted(path)}: {error}") from error


def _read(
    store: fsspec.AbstractFileSystem,
    file: ParquetFile,
    column: str,
    filters: Filters,
    kinds: Mapping[str, pa.DataType],
) -> Keys:
    columns = list(dict.fromkeys([column, *(name for name, _, _ in filters)]))
    constants = {name: _value(name, value, filters) for name, value in file.constants.items()}
    own = {field.name: field.type for field in file.schema if not pa.types.is_null(field.type)}
    own |= {name: value.type for name, value in constants.items()}
    expression = as_expression(filters, {name: own.get(name, kinds.get(name, pa.null())) for name in columns})
    groups = _groups(store, file, expression, constants)
    numbers, table = _columns(store, file, groups, columns)
    for name in columns:
        if name not in table.column_names:
            value = constants.get(name, pa.scalar(None, kinds.get(name, pa.string())))
            table = table.append_column(name, pa.repeat(value, len(numbers)))
    for place, field in enumerate(table.schema):
        if pa.types.is_null(field.type) and field.name in kinds:
            table = table.set_column(place, field.name, table[place].cast(kinds[field.name]))
    table = table.append_column("", pa.array(numbers))
    if expression is not None:
        table = table.filter(expression)
    if file.found.deleted:
        table = table.filter(pc.invert(pc.is_in(table[""], pa.array(file.found.deleted, pa.int64()))))
    wanted = None
    if table.num_rows < file.rows:
        wanted = np.zeros(file.rows, np.bool_)
        wanted[table[""].to_numpy()] = True
    ids = table[column].to_pylist() if column not in file.constants else []
    return Keys(hashed([str(value) for value in ids if value is not None]), wanted, table.num_rows)


def _value(name: str, value: pa.Scalar, filters: Filters) -> pa.Scalar:
    """The value of a partition as it is compared: as a number with numbers."""
    if not pa.types.is_string(value.type) or not are_numbers(filters, name):
        return value
    try:
        return value.cast(pa.int64())
    except pa.ArrowInvalid:
        return value


def _groups(
    store: fsspec.AbstractFileSystem,
    file: ParquetFile,
    expression: pc.Expression | None,
    constants: Mapping[str, pa.Scalar],
) -> list[int]:
    """The row groups in which rows may be wanted."""
    if expression is None or file.renamed:
        return list(range(len(file.groups)))
    partition = None
    for name, value in constants.items():
        equal = pc.field(name) == value if value.is_valid else pc.field(name).is_null()
        partition = equal if partition is None else partition & equal
    filesystem = pafs.PyFileSystem(pafs.FSSpecHandler(store))
    fragment = pads.ParquetFileFormat().make_fragment(file.path, filesystem, partition)
    kept = [field for field in fragment.physical_schema if not pa.types.is_nested(field.type)]
    kept = [field for field in kept if readable_type(field.type) == field.type]
    schema = pa.schema([*kept, *((name, value.type) for name, value in constants.items())])
    try:
        return [group.id for group in fragment.subset(expression, schema=schema).row_groups]
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, KeyError):  # this file lacks a column of the filter
        return list(range(len(file.groups)))


def _columns(
    store: fsspec.AbstractFileSystem, file: ParquetFile, groups: Sequence[int], columns: list[str]
) -> tuple[npt.NDArray[np.int64], pa.Table]:
    """Numbers of the rows in some row groups, and some columns of theirs."""
    starts = np.cumsum([0, *(group.rows for group in file.groups)])
    ranges = [np.arange(starts[group], starts[group + 1]) for group in groups]
    numbers = np.concatenate(ranges) if ranges else np.zeros(0, np.int64)
    present = file.in_file(columns)
    if not present or not groups:
        empty = pa.schema([file.schema.field(name) for name in columns if name in file.schema.names])
        return numbers if groups else np.zeros(0, np.int64), empty.empty_table() if not groups else pa.table({})
    with store.open(file.path, "rb") as opened:
        table = readable(pq.ParquetFile(opened).read_row_groups(list(groups), columns=present))
    return numbers, table.rename_columns(file.in_table(table.column_names))


@dataclasses.dataclass(frozen=True)
class Duplicates:
    """Ids that more than one row has."""

    count: int
    """Of such ids."""
    examples: tuple[str, ...]

    def __str__(self) -> str:
        shown = ", ".join(map(repr, self.examples))
        return f"{self.count} ids come more than once in the source, such as {shown}; all of their rows are restored"


def find_duplicates(keys: Mapping[str, Keys], before: Iterable[Hashes]) -> dict[str, Hashes]:
    """The ids that come twice, of each file that has any.

    Args:
        keys: of the files that are read now, by file.
        before: ids that are finished, in pieces.
    """
    owners = np.repeat(np.arange(len(keys)), [len(key.ids) for key in keys.values()])
    hashes = np.concatenate([np.zeros(0, np.uint64), *(key.ids for key in keys.values())])
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    twice = np.zeros(len(hashes), np.bool_)
    twice[order[1:]] = ordered[1:] == ordered[:-1]
    for piece in before if len(ordered) else ():
        places = np.minimum(np.searchsorted(ordered, piece), len(ordered) - 1)
        seen = np.unique(piece[ordered[places] == piece])
        twice[order[np.isin(ordered, seen)]] = True
    names = list(keys)
    return {names[owner]: hashes[twice & (owners == owner)] for owner in np.unique(owners[twice])}


def name_duplicates(
    store: fsspec.AbstractFileSystem, files: Sequence[SourceFile], column: str, found: Mapping[str, Hashes]
) -> Duplicates | None:
    """How many ids come twice, and the first of them."""
    if not found:
        return None
    examples: list[str] = []
    for file in files:
        if file.key not in found or len(examples) >= SHOWN:
            continue
        if isinstance(file, ImageFile):
            texts = [str(file.row.get(column))]
        else:
            _, table = _columns(store, file, range(len(file.groups)), [column])
            texts = [str(value) for value in table[column].to_pylist() if value is not None]
        marks = np.isin(hashed(texts), found[file.key]).tolist()
        examples += [text for text, is_twice in zip(texts, marks, strict=True) if is_twice]
    count = len(np.unique(np.concatenate(list(found.values()))))
    return Duplicates(count, tuple(dict.fromkeys(examples))[:SHOWN])


def hashed(texts: Sequence[str]) -> Hashes:
    """64 bits of each text."""
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, np.uint64)
