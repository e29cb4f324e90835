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
from pipeline.imaging.cells import IMAGE_TYPES, holds_images, redacted
from pipeline.lake.places import explained, open_store
from pipeline.recipe import Columns

READERS = 16
"""Footers read at a time."""


@dataclasses.dataclass(frozen=True)
class ParquetFile:
    """One input file, known by its footer."""

    path: str
    root: str
    """The folder that was asked for; partitions and images named by a relative URI are taken from there."""
    rows: int
    size: int
    """Bytes."""
    schema: pa.Schema

    @property
    def partitions(self) -> tuple[str, ...]:
        """Names of the Hive partitions (`key=value` folders) between the root and the file."""
        folders = self.path.removeprefix(self.root).split("/")[:-1]
        return tuple(folder.split("=")[0] for folder in folders if "=" in folder)


@dataclasses.dataclass(frozen=True)
class Source:
    """The input table."""

    store: fsspec.AbstractFileSystem
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

    def groups(self, limit: int | None = None) -> list[list[ParquetFile]]:
        """Files that can be read together: of one root, with the same partitions and the same schema.

        A column may have another type, or be missing, in some files. With a `limit`, only the files that hold the
        first so many rows.
        """
        groups: dict[tuple[str, ...], list[ParquetFile]] = {}
        before = 0
        for file in self.files:
            if file.rows and (limit is None or before < limit):
                key = (file.root, *file.partitions, str(file.schema.remove_metadata()))
                groups.setdefault(key, []).append(file)
                before += file.rows
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
    store, _ = open_store(uris[0])
    found: dict[str, tuple[str, int]] = {}
    for uri in uris:
        with explained(uri, SourceError):
            path = open_store(uri)[1]
            root, files = _find(store, path)
        if not files:
            raise SourceError(
                f"no Parquet files at {redacted(uri)}; give a .parquet file, a folder with some, or a glob"
            )
        found |= {name: (root, size) for name, size in files.items() if name not in found}
    with ThreadPoolExecutor(READERS) as pool:
        footers = tuple(pool.map(lambda item: _footer(store, item[0], *item[1]), sorted(found.items())))
    _check_columns(footers, columns)
    return Source(store, footers, _passed(footers, columns))


def _find(store: fsspec.AbstractFileSystem, path: str) -> tuple[str, dict[str, int]]:
    """The root, and the files below it with their sizes."""
    if any(mark in path for mark in "*?[") and not store.exists(path):
        entries = store.glob(path, detail=True)
        first = min(path.find(mark) for mark in "*?[" if mark in path)
        root = path[:first].rpartition("/")[0]
    elif store.isdir(path):
        entries, root = store.find(path, detail=True), path.rstrip("/")
    else:
        entries, root = {path: store.info(path)}, path.rpartition("/")[0]
    return root, {
        name: int(info["size"])
        for name, info in entries.items()
        if info["type"] == "file"
        and (name.endswith((".parquet", ".parq")) or name == path)
        and not any(part.startswith(("_", ".")) for part in name.removeprefix(root).split("/"))
    }


def _footer(store: fsspec.AbstractFileSystem, path: str, root: str, size: int) -> ParquetFile:
    with explained(path, SourceError):
        try:
            with store.open(path, "rb") as file:
                parquet = pq.ParquetFile(file)
                return ParquetFile(path, root, parquet.metadata.num_rows, size, parquet.schema_arrow)
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
    """All columns but those with images; where files disagree on a type, the wider one. Partitions are strings."""
    consumed = {columns.image, columns.mask, columns.references, columns.truth} - {columns.id, columns.caption}
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
    try:
        return pa.unify_schemas(schemas, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise SourceError(f"a column has types in different files that do not go together: {error}") from error
