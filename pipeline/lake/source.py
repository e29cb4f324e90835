"""What is read: Parquet files on any store, grouped by schema, with their row counts."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple
from urllib.parse import unquote

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.utils import get_protocol, glob_translate

from pipeline.errors import SourceError
from pipeline.imaging.cells import IMAGE_TYPES, holds_images, is_list, is_text, redacted
from pipeline.lake.ledger import InputFile
from pipeline.lake.places import explained, open_store
from pipeline.recipe import Columns

READERS = 16
"""Footers read at a time."""
ENDINGS = (".parquet", ".parq", ".pq")
"""What the files of a folder or glob that are read end with, in any case."""


class RowGroup(NamedTuple):
    """A part of a Parquet file that is read as one."""

    rows: int
    size: int
    """Bytes."""


@dataclasses.dataclass(frozen=True)
class Found:
    """A file, before it was looked into."""

    root: str
    """The folder that was asked for."""
    size: int
    """Bytes."""
    version: str
    """What the store calls this state of the file: ETag or time."""


@dataclasses.dataclass(frozen=True)
class ParquetFile:
    """One input file, known by its footer."""

    path: str
    root: str
    """The folder that was asked for; partitions and images named by a relative URI are taken from there."""
    size: int
    """Bytes."""
    version: str
    groups: tuple[RowGroup, ...]
    schema: pa.Schema

    @functools.cached_property
    def rows(self) -> int:
        """Of all row groups."""
        return sum(group.rows for group in self.groups)

    @property
    def input(self) -> InputFile:
        """As the ledger knows it."""
        return InputFile(self.path, self.size, self.version)

    @functools.cached_property
    def key(self) -> str:
        """16 hexadecimal digits that stand for this state of the file."""
        return self.input.key

    @property
    def partitions(self) -> dict[str, str | None]:
        """The Hive partitions (`key=value` folders) between the root and the file."""
        folders = self.path.removeprefix(self.root).split("/")[:-1]
        pairs = (folder.split("=", 1) for folder in folders if "=" in folder)
        return {key: None if value == "__HIVE_DEFAULT_PARTITION__" else unquote(value) for key, value in pairs}


@dataclasses.dataclass(frozen=True)
class Source:
    """The input table."""

    store: fsspec.AbstractFileSystem
    files: tuple[ParquetFile, ...]
    """Those that are not finished."""
    finished: int
    """How many others there are."""
    columns: Columns
    """Which hold what: the recipe's, but for those that have a default name by chance."""
    passed: pa.Schema
    """The columns that go through to the output."""
    patterns: tuple[str, ...]
    """Regular expressions of the paths that were asked for."""

    @property
    def rows(self) -> int:
        """Rows of all files."""
        return sum(file.rows for file in self.files)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def first(self, limit: int | None) -> Iterator[tuple[ParquetFile, int]]:
        """The files that hold the first so many rows (all without a limit), each with how many of its rows count."""
        left = self.rows if limit is None else limit
        for file in self.files:
            taken = min(file.rows, left)
            left -= taken
            if taken:
                yield file, taken

    def would_read(self, path: str) -> bool:
        """Whether the source, looked at again, would find a Parquet file that lay at this path of its store."""
        return any(re.match(pattern, path) for pattern in self.patterns)


def open_source(uris: Sequence[str], columns: Columns, finished: Collection[InputFile] = frozenset()) -> Source:
    """Find the files behind paths, folders, globs and URLs, and read the footers of those that are not finished.

    Raises:
        SourceError: nothing is there, a file is not Parquet, the URIs lie in different stores, or a column that
            the recipe names is in none of the files.
    """
    store, found, patterns = find_files(uris)
    new = [path for path in sorted(found) if InputFile(path, found[path].size, found[path].version) not in finished]
    with ThreadPoolExecutor(READERS) as pool:
        footers = tuple(pool.map(lambda path: _footer(store, path, found[path]), new))
    if footers:
        _check_columns(footers, columns)
    columns = _settled(columns, footers)
    return Source(store, footers, len(found) - len(new), columns, _passed(footers, columns), tuple(patterns))


def find_files(
    uris: Sequence[str],
) -> tuple[fsspec.AbstractFileSystem, dict[str, Found], list[str]]:
    """Find the Parquet files behind paths, folders, globs and URLs.

    Returns:
        Their store; what is known of each, by its path; and regular expressions of what was asked for.

    Raises:
        SourceError: nothing is there, or the URIs lie in different stores.
    """
    if not uris:
        raise SourceError("no source is given: --source PATH_OR_URL")
    protocols = {get_protocol(uri) for uri in uris}
    if len(protocols) > 1:
        raise SourceError(f"all sources of a run must lie in one store, not in {' and '.join(sorted(protocols))}")
    store, _ = open_store(uris[0])
    found: dict[str, Found] = {}
    patterns = []
    for uri in uris:
        if not uri.strip():
            raise SourceError("a source is empty; give a Parquet file, a folder, a glob or a URL")
        with explained(uri, SourceError):
            path = open_store(uri)[1]
            root, files, pattern = _find(store, path)
        patterns.append(pattern)
        if not files:
            raise SourceError(
                f"no Parquet files ({', '.join(ENDINGS)}) at {redacted(uri)}; "
                "give a file, a folder with some, or a glob"
            )
        found |= {
            name: Found(root, int(info["size"]), _version(info)) for name, info in files.items() if name not in found
        }
    return store, found, patterns


def _find(store: fsspec.AbstractFileSystem, path: str) -> tuple[str, dict[str, Any], str]:
    """The root, the files below it with what the store says of them, and a regular expression of their paths."""
    if any(mark in path for mark in "*?[") and not store.exists(path):
        entries, pattern = store.glob(path, detail=True), glob_translate(path)
        first = min(path.find(mark) for mark in "*?[" if mark in path)
        root = path[:first].rpartition("/")[0]
    elif store.isdir(path):
        root = path.rstrip("/")
        entries, pattern = store.find(path, detail=True), re.escape(root) + "/"
    else:
        info, name = store.info(path), path.rpartition("/")[2]
        if "." not in name:
            raise SourceError(f"{redacted(path)} has no ending, and Ray goes by it; rename it to {name}.parquet")
        return path.rpartition("/")[0], {path: info}, re.escape(path) + "$"
    files = {
        name: info
        for name, info in entries.items()
        if info["type"] == "file"
        and name.lower().endswith(ENDINGS)
        and not any(part.startswith(("_", ".")) for part in name.removeprefix(root).split("/"))
    }
    return root, files, pattern


def _version(info: Mapping[str, Any]) -> str:
    """What the store calls this state of a file."""
    for name in ("ETag", "etag", "md5Hash", "content_md5", "LastModified", "last_modified", "updated", "mtime"):
        if info.get(name):
            return str(info[name]).strip('"')
    return ""


def _footer(store: fsspec.AbstractFileSystem, path: str, found: Found) -> ParquetFile:
    with explained(path, SourceError):
        try:
            with store.open(path, "rb") as file:
                parquet = pq.ParquetFile(file)
                metadata = (parquet.metadata.row_group(n) for n in range(parquet.num_row_groups))
                groups = tuple(RowGroup(group.num_rows, _compressed(group)) for group in metadata)
                return ParquetFile(path, found.root, found.size, found.version, groups, parquet.schema_arrow)
        except pa.ArrowInvalid as error:
            raise SourceError(f"{redacted(path)} is not a Parquet file, or a broken one: {error}") from error


def _compressed(group: Any) -> int:
    return sum(group.column(index).total_compressed_size for index in range(group.num_columns))


def _check_columns(files: Sequence[ParquetFile], columns: Columns) -> None:
    names = list(dict.fromkeys(name for file in files for name in file.schema.names))
    defaults = Columns()
    for role, name in columns.model_dump().items():
        optional = role not in ("id", "image")
        if name is None or name in names or (optional and name == getattr(defaults, role)):
            continue
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"--set columns.{role}={near[0] if near else 'NAME'}"
        raise SourceError(
            f"the source has no column {name!r} (its columns: {', '.join(names)}); name the right one: {hint}"
        )
    for role in ("image", "mask", "truth", "references"):
        name = getattr(columns, role)
        kinds = {file.schema.field(name).type for file in files if name in file.schema.names}
        wanted = role == "image" or name != getattr(defaults, role)
        if wanted and kinds and not any(_fits(role, kind) for kind in kinds):
            found = ", ".join(map(str, kinds))
            raise SourceError(
                f"column {name!r} has the type {found}, which holds no images; {IMAGE_TYPES}; "
                f"name the right column: --set columns.{role}=NAME"
            )


def _settled(columns: Columns, files: Sequence[ParquetFile]) -> Columns:
    """The recipe's columns as they are meant for this source.

    One that has a default name by chance (`references` may be a list of numbers, `mask` a flag) but holds no images
    in any file is not ours: it is passed through.
    """
    defaults = Columns()
    changes: dict[str, None] = {}
    for role in ("mask", "truth", "references"):
        name = getattr(columns, role)
        kinds = [file.schema.field(name).type for file in files if name in file.schema.names]
        if name == getattr(defaults, role) and kinds and not any(_fits(role, kind) for kind in kinds):
            changes[role] = None
    return columns.model_copy(update=changes)


def _fits(role: str, kind: pa.DataType) -> bool:
    """Whether a column of this type can be what the recipe takes it for."""
    return holds_images(kind.value_type if role == "references" and is_list(kind) else kind)


def _passed(files: Sequence[ParquetFile], columns: Columns) -> pa.Schema:
    """All columns but those with images; where files disagree on a type, one that holds all values of both.

    Masks, references and truths that are named by URI stay, as does the id, whatever else it is; partitions are
    strings.
    """
    images = {columns.mask, columns.references, columns.truth} - {columns.id, columns.caption}
    named = {field.name for file in files for field in file.schema if field.name in images and _is_named(field.type)}
    consumed = (images - named) | ({columns.image} - {columns.id, columns.caption})
    schemas = []
    for file in files:
        both = sorted(set(file.partitions) & set(file.schema.names))
        if both:
            raise SourceError(
                f"{redacted(file.path)} has {', '.join(both)} both as a column and as a folder name; "
                "give that folder itself as --source"
            )
        fields = [field for field in file.schema if field.name not in consumed]
        schemas.append(pa.schema([*fields, *((name, pa.string()) for name in file.partitions)]))
    kinds: dict[str, list[pa.DataType]] = {}
    for schema in schemas:
        for field in schema:
            kinds.setdefault(field.name, []).append(field.type)
    return pa.schema([(name, _common_type(name, found)) for name, found in kinds.items()])


def _is_named(kind: pa.DataType) -> bool:
    """Whether cells are URIs, or lists of them."""
    return is_text(kind.value_type if is_list(kind) else kind)


def _common_type(name: str, kinds: Sequence[pa.DataType]) -> pa.DataType:
    """The type of a column whose files may disagree; text, where no other holds every value of all of them.

    Raises:
        SourceError: there is none, as for a number and a struct.
    """
    distinct = [kind for kind in dict.fromkeys(kinds) if not pa.types.is_null(kind)]
    if len(distinct) < 2:
        return distinct[0] if distinct else pa.null()
    if any(map(is_list, distinct)) and not all(map(is_list, distinct)):
        inner = [kind.value_type if is_list(kind) else kind for kind in distinct]
        return pa.list_(_common_type(name, inner))
    try:
        schemas = [pa.schema([(name, kind)]) for kind in distinct]
        common = pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        found = " and ".join(map(str, distinct))
        raise SourceError(
            f"column {name!r} has types in different files that do not go together: {found}; "
            "give the files of one type as --source, or rewrite the others"
        ) from error
    longs = any(pa.types.is_integer(kind) and kind.bit_width == 64 for kind in distinct)
    times = pa.types.is_timestamp(common) and any(kind != common for kind in distinct)
    return pa.string() if times or (longs and pa.types.is_floating(common)) else common
