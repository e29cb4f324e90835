"""Delta and Iceberg tables as sources: the data files of one version, and the rows of theirs that count."""

from __future__ import annotations

import gzip
import hashlib
import json
import posixpath
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote, unquote

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import SourceError
from pipeline.lake.find import Files
from pipeline.lake.inputs import Found
from pipeline.lake.places import as_uri, explained, is_local, join, names_in, open_store
from pipeline.lake.storage import Options, for_delta, for_iceberg, open_catalog
from pipeline.redaction import redacted

GZIP = b"\x1f\x8b"
"""How compressed files begin."""


def table_format(store: fsspec.AbstractFileSystem, path: str) -> str | None:
    """Whether a folder holds a Delta or an Iceberg table."""
    if store.isdir(join(path, "_delta_log")):
        return "delta"
    if path.endswith(".metadata.json") or (store.isdir(join(path, "metadata")) and newest_metadata(store, path)):
        return "iceberg"
    return None


def newest_metadata(store: fsspec.AbstractFileSystem, root: str) -> str | None:
    """Path of the newest metadata file of an Iceberg table in a folder; None if there is none."""
    folder = join(root, "metadata")
    paths = [join(folder, name) for name in names_in(store, folder) if name.endswith(".metadata.json")]
    if not paths:
        return None
    for version in sorted({_version(path) for path in paths}, reverse=True):
        times = {path: _updated(store, path) for path in paths if _version(path) == version}
        whole = {path: updated for path, updated in times.items() if updated is not None}
        if whole:
            return max(whole, key=lambda path: (whole[path], path))
    return None


def _version(path: str) -> int:
    """`00012-….metadata.json`, or `v12.metadata.json` of tables without a catalog; with `.gz` if it is compressed."""
    number = posixpath.basename(path).partition("-")[0].partition(".")[0].lstrip("v")
    return int(number) if number.isdecimal() else -1


def _updated(store: fsspec.AbstractFileSystem, path: str) -> int | None:
    """When the table was changed, by a metadata file; None of one that was written by half."""
    data = store.cat_file(path)
    try:
        content = json.loads(gzip.decompress(data) if data[:2] == GZIP else data)
        return int(content["last-updated-ms"])
    except (ValueError, KeyError, TypeError, EOFError, OSError):
        return None


def delta_files(uri: str, version: int | str | None, storage: Options) -> Files:
    """The data files of a Delta table.

    Raises:
        SourceError: there is no such table or version, or its library is not installed.
    """
    try:
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError
    except ImportError as error:
        raise SourceError(f"{redacted(uri)} is a Delta table; pip install '.[delta]'") from error
    if isinstance(version, str):
        raise SourceError(f"source.version is {version!r}; versions of a Delta table are numbers")
    store, root = open_store(uri, storage)
    with explained(uri, SourceError):
        try:
            table = DeltaTable(as_uri(store, root), version=version, storage_options=for_delta(storage))
            actions = pa.table(table.get_add_actions(flatten=True))
            deleted = _delta_deleted(table)
        except DeltaError as error:
            at = "" if version is None else f" at version {version}"
            raise SourceError(f"cannot read the Delta table {redacted(uri)}{at}: {error}") from error
    kinds = pa.schema(table.schema().to_arrow())
    if any(b"delta.columnMapping.physicalName" in (field.metadata or {}) for field in kinds):
        raise SourceError(f"{redacted(uri)} maps its columns to other names in its files, which is not supported")
    found = {}
    for action in actions.to_pylist():
        name = unquote(action["path"])
        path = open_store(name, storage)[1] if "://" in name else join(root, name)
        constants = {
            key: pa.scalar(action.get(f"partition.{key}")).cast(kinds.field(key).type)
            for key in table.metadata().partition_columns
        }
        rows = deleted.pop(path, None) or deleted.pop(unquote(path), ()) or deleted.pop(quote(path), ())
        found[path] = Found(root, action["size_bytes"], _state(rows), constants, rows, table=root)
    if deleted:
        raise SourceError(f"{redacted(uri)} has deleted rows in files that it does not list, such as {min(deleted)}")
    return Files(store, found, (), root)


def _delta_deleted(table: Any) -> dict[str, tuple[int, ...]]:
    """Numbers of the rows that deletion vectors take out, by the path of their file."""
    deleted = {}
    for batch in table.deletion_vectors():
        for row in pa.record_batch(batch).to_pylist():
            path = open_store(row["filepath"])[1]
            deleted[path] = tuple(number for number, kept in enumerate(row["selection_vector"]) if not kept)
    return deleted


def iceberg_files(uri: str, version: int | str | None, catalog: Options, storage: Options) -> Files:
    """The data files of an Iceberg table: of the one with this name in a catalog, or of the one in this folder.

    Raises:
        SourceError: there is no such table or snapshot, or its library is not installed.
    """
    try:
        from pyiceberg.exceptions import NoSuchTableError
        from pyiceberg.table import StaticTable
    except ImportError as error:
        raise SourceError(f"{redacted(uri)} is an Iceberg table; pip install '.[iceberg]'") from error
    with explained(uri, SourceError):
        if catalog:
            try:
                table: Any = open_catalog(catalog, storage, "source.catalog").load_table(uri)
            except NoSuchTableError as error:
                raise SourceError(f"the catalog has no table {uri!r}: {error}") from error
        else:
            store, path = open_store(uri, storage)
            metadata = path if path.endswith(".metadata.json") else newest_metadata(store, path)
            if metadata is None:
                raise SourceError(f"{redacted(uri)} holds no Iceberg table")
            place = f"file://{metadata}" if is_local(store) else as_uri(store, metadata)
            table = StaticTable.from_metadata(place, for_iceberg(storage))
        snapshot = _snapshot(table, uri, version)
        store, root = open_store(table.location(), storage)
        if snapshot is None:
            return Files(store, {}, (), root)
        # Named, a snapshot has the columns of its time; else those of now count.
        scan = table.scan() if version is None else table.scan(snapshot_id=snapshot)
        schema = scan.projection()
        fields: dict[int | str, str] = {field.field_id: field.name for field in schema.fields}
        mapping = table.name_mapping()
        fields |= _names_without_ids(mapping, fields) if mapping else {name: name for name in fields.values()}
        tasks = list(scan.plan_files())
        deletes = {file.file_path: file for task in tasks for file in task.delete_files}
        deleted = _iceberg_deleted(deletes.values(), storage)
        found = {}
        for task in tasks:
            rows = tuple(sorted(deleted.get(task.file.file_path, ())))
            path = open_store(task.file.file_path, storage)[1]
            constants = _iceberg_constants(schema, table.specs()[task.file.spec_id], task.file)
            found[path] = Found(root, task.file.file_size_in_bytes, _state(rows), constants, rows, fields, root)
    return Files(store, found, (), root)


def _snapshot(table: Any, uri: str, version: int | str | None) -> int | None:
    """The id of the snapshot to read; None for a table that has none yet."""
    if version is None:
        current = table.current_snapshot()
        return None if current is None else int(current.snapshot_id)
    ids = [snapshot.snapshot_id for snapshot in table.snapshots()]
    named = {name: reference.snapshot_id for name, reference in table.metadata.refs.items()}
    wanted = named.get(str(version), version)
    if wanted not in ids:
        raise SourceError(
            f"{redacted(uri)} has no snapshot {version!r}; it has {', '.join(map(str, [*named, *ids][-10:]))}"
        )
    return int(wanted)


def _names_without_ids(mapping: Any, fields: Mapping[int | str, str]) -> dict[int | str, str]:
    """The table's columns by the names that files without field ids have for them: those were made before the table."""
    ids = {name: field.field_id for field in mapping.root for name in field.names}
    return {name: fields[number] for name, number in ids.items() if number in fields}


def _iceberg_constants(schema: Any, spec: Any, file: Any) -> dict[str, pa.Scalar]:
    """Values of columns that a data file may lack: of its partition, and of columns that were added with a default."""
    from pyiceberg.transforms import IdentityTransform

    names = {field.field_id: field.name for field in schema.fields}
    kinds = {field.name: field.type for field in schema.as_arrow()}
    values = {field.name: field.initial_default for field in schema.fields if field.initial_default is not None}
    for place, partition in enumerate(spec.fields):
        if isinstance(partition.transform, IdentityTransform) and partition.source_id in names:
            values[names[partition.source_id]] = file.partition[place]
    return {name: pa.scalar(value, kinds[name]) for name, value in values.items()}


def _iceberg_deleted(files: Iterable[Any], storage: Options) -> Mapping[str, set[int]]:
    """Numbers of the rows that position deletes take out, by the path of their data file."""
    deleted: dict[str, set[int]] = defaultdict(set)
    for file in files:
        if file.content.name != "POSITION_DELETES" or file.file_format.name != "PARQUET":
            raise SourceError(
                f"the table's delete file {redacted(file.file_path)} is of a kind that is not supported "
                f"({file.content.name}, {file.file_format.name}); compact the table, and run again"
            )
        store, path = open_store(file.file_path, storage)
        with store.open(path, "rb") as opened:
            rows = pq.ParquetFile(opened).read(columns=["file_path", "pos"])
        for name in pc.unique(rows["file_path"]).to_pylist():
            deleted[name].update(rows.filter(pc.equal(rows["file_path"], name))["pos"].to_pylist())
    return deleted


def _state(deleted: tuple[int, ...]) -> str:
    """Data files of a table never change, but what counts of them does."""
    return hashlib.sha256(repr(deleted).encode()).hexdigest()[:16] if deleted else "whole"
