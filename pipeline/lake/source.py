"""What is read: Parquet files on any store, grouped by schema, with their row counts."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.utils import get_protocol

from pipeline.errors import SourceError
from pipeline.imaging.cells import IMAGE_TYPES, holds_images
from pipeline.lake.places import explained, open_store, redacted
from pipeline.recipe import Columns

READERS = 16
"""Footers read at a time."""


@dataclasses.dataclass(frozen=True)
class ParquetFile:
    """One input file, known by its footer."""

    path: str
    rows: int
    size: int
    """Bytes."""
    schema: pa.Schema


@dataclasses.dataclass(frozen=True)
class Source:
    """The input table."""

    store: fsspec.AbstractFileSystem
    base: str
    """The folder against which images named by a relative URI are resolved."""
    files: tuple[ParquetFile, ...]
    passed: pa.Schema
    """The columns that go through to the output."""

    @property
    def rows(self) -> int:
        """Rows of all files."""
        return sum(file.rows for file in self.files)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def groups(self) -> list[list[ParquetFile]]:
        """Files of one schema together: a column may have another type, or be missing, in some of them."""
        groups: dict[str, list[ParquetFile]] = {}
        for file in self.files:
            if file.rows:
                groups.setdefault(str(file.schema.remove_metadata()), []).append(file)
        return list(groups.values())


def open_source(uris: Sequence[str], columns: Columns) -> Source:
    """Find the files behind paths, folders, globs and URLs, and read their footers.

    Raises:
        SourceError: nothing is there, a file is not Parquet, the URIs lie in different stores, or a column that
            the recipe names is in none of the files.
    """
    if not uris:
        raise SourceError("no source is given: --source PATH_OR_URL")
    protocols = {get_protocol(uri) for uri in uris}
    if len(protocols) > 1:
        raise SourceError(f"all sources of a run must lie in one store, not in {' and '.join(sorted(protocols))}")
    store, first = open_store(uris[0])
    paths: dict[str, int] = {}
    for uri in uris:
        with explained(uri, SourceError):
            found = _find(store, open_store(uri)[1])
        if not found:
            raise SourceError(
                f"no Parquet files at {redacted(uri)}; give a .parquet file, a folder with some, or a glob"
            )
        paths |= found
    with ThreadPoolExecutor(READERS) as pool:
        files = tuple(pool.map(lambda item: _footer(store, *item), sorted(paths.items())))
    _check_columns(files, columns)
    base = first.split("*")[0].rsplit("/", 1)[0] if "*" in first or first.endswith(".parquet") else first.rstrip("/")
    return Source(store, base, files, _passed(files, columns))


def _find(store: fsspec.AbstractFileSystem, path: str) -> dict[str, int]:
    if any(mark in path for mark in "*?["):
        entries = store.glob(path, detail=True)
    elif store.isdir(path):
        entries = store.find(path, detail=True)
    else:
        entries = {path: store.info(path)}
    hidden = len([part for part in path.split("/") if part.startswith(("_", "."))])
    return {
        name: int(info["size"])
        for name, info in entries.items()
        if info["type"] == "file"
        and (name.endswith((".parquet", ".parq")) or name == path)
        and len([part for part in name.split("/") if part.startswith(("_", "."))]) <= hidden
    }


def _footer(store: fsspec.AbstractFileSystem, path: str, size: int) -> ParquetFile:
    with explained(path, SourceError):
        try:
            with store.open(path, "rb") as file:
                parquet = pq.ParquetFile(file)
                return ParquetFile(path, parquet.metadata.num_rows, size, parquet.schema_arrow)
        except pa.ArrowInvalid as error:
            raise SourceError(f"{redacted(path)} is not a Parquet file, or a broken one: {error}") from error


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
    kinds = {file.schema.field(columns.image).type for file in files if columns.image in file.schema.names}
    if not any(holds_images(kind) for kind in kinds):
        found = ", ".join(map(str, kinds))
        raise SourceError(
            f"column {columns.image!r} has the type {found}, which holds no images; {IMAGE_TYPES}; "
            "name the right column: --set columns.image=NAME"
        )


def _passed(files: Sequence[ParquetFile], columns: Columns) -> pa.Schema:
    """All columns but those with images; where files disagree on a type, the wider one."""
    consumed = {columns.image, columns.mask, columns.references, columns.truth}
    schemas = []
    for file in files:
        fields = [field for field in file.schema if field.name not in consumed]
        schemas.append(pa.schema(fields))
    try:
        return pa.unify_schemas(schemas, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise SourceError(f"a column has types in different files that do not go together: {error}") from error
