"""An Apache Iceberg table (pyiceberg), in a catalog of the user's or in an embedded one."""

from __future__ import annotations

import posixpath
import tempfile
import time
from collections.abc import Mapping, Sequence

import fsspec
import pyarrow as pa
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import NoSuchTableError, ValidationError
from pyiceberg.expressions import AlwaysTrue
from pyiceberg.schema import Schema
from pyiceberg.table import Table as PyIcebergTable
from pyiceberg.table import TableProperties
from pyiceberg.table.update.schema import UpdateSchema

from pipeline.errors import OutputError
from pipeline.lake.places import as_uri, is_local, join, put
from pipeline.lake.rewriting import rewrite
from pipeline.lake.snapshots import newest_metadata
from pipeline.lake.storage import Options, open_catalog
from pipeline.lake.table import Commit, DataFile, Removal, plain
from pipeline.redaction import redacted

NUMBER = "conservator.commit"
"""The table property that holds the number of the last commit; it changes in the same step as the files."""
LONGEST_WAIT = 60
"""Seconds by which clocks may differ."""


class IcebergTable:
    """One Iceberg table.

    Without a catalog of the user's, the embedded one (SQLite, in a temporary folder: in memory each thread would have a
    catalog to itself) is filled from the table's own folder: the newest metadata file there is the table. That is right
    under the lease, since nobody else writes.
    """

    def __init__(
        self,
        store: fsspec.AbstractFileSystem,
        root: str,
        name: str,
        catalog: Mapping[str, str] | None = None,
        storage: Options | None = None,
        partition_by: Sequence[str] = (),
    ) -> None:
        """`name` is `namespace.table`; `catalog` holds pyiceberg's properties, such as `type` and `uri`."""
        self._store, self._root, self._name, self._partition_by = store, root, name, tuple(partition_by)
        self._location = _location(store, root)
        self._embedded = not catalog
        if not catalog:
            self._folder = tempfile.TemporaryDirectory(prefix="conservator-catalog-")
            catalog = {"type": "sql", "uri": f"sqlite:///{self._folder.name}/catalog.db"}
        self._catalog: Catalog = open_catalog(catalog, storage or {}, "output.catalog")
        self._catalog.create_namespace_if_not_exists(name.rpartition(".")[0])
        if self._embedded:
            newest = newest_metadata(store, root)
            if newest:
                self._catalog.register_table(name, f"{self._location}/metadata/{posixpath.basename(newest)}")

    def last_commit(self) -> int:
        """The number of the last commit; 0 before the first."""
        table = self._table()
        return int(table.properties.get(NUMBER, 0)) if table else 0

    def files(self) -> list[str]:
        """Paths of the data files that a reader sees now, relative to the table's folder."""
        table = self._table()
        if table is None or table.current_snapshot() is None:
            return []
        paths = table.inspect.files().column("file_path").to_pylist()
        return [path.removeprefix(self._location + "/") for path in paths]

    def schema(self) -> pa.Schema | None:
        """Of the table; None before the first commit."""
        table = self._table()
        return None if table is None else table.schema().as_arrow()

    def check(self, schema: pa.Schema, replace: bool = False) -> None:
        """See `Table`."""
        table = self._table()
        have = Schema() if table is None or replace else table.schema()
        try:
            UpdateSchema(None, schema=have).union_by_name(schema)  # type: ignore[arg-type]  # nothing is applied
        except (ValidationError, ValueError, TypeError) as error:  # a type that it does not have, or cannot take
            raise OutputError(
                f"the Iceberg table {self._name} cannot have the columns of this run: {error}; leave the column out "
                "with columns.keep, give another --output, or --fresh to make the table anew"
            ) from error
        changed = set() if table is None else _changed(table.schema().as_arrow(), schema)
        if (changed if replace else changed.intersection(schema.names)).intersection(self._partition_by):
            raise OutputError(
                f"the table {self._name} is divided by a column whose type has changed; give another --output"
            )

    def commit(
        self,
        files: Sequence[DataFile],
        schema: pa.Schema,
        commit: Commit,
        replace: bool = False,
        removal: Removal | None = None,
    ) -> None:
        """See `Table`."""
        self.check(schema, replace)
        table = self._table() or self._create(schema)
        self._wait_for_clock(table)
        # What pyiceberg does when another commit was faster, we do: look whether that was this one.
        table.metadata.properties[TableProperties.COMMIT_NUM_RETRIES] = "0"
        rewritten = rewrite(self._store, self._root, self.files(), removal, commit.number) if removal else []
        with table.transaction() as transaction:
            if replace:
                with transaction.update_schema(allow_incompatible_changes=True) as update:
                    for name in _changed(table.schema().as_arrow(), schema):
                        update.delete_column((name,))
            with transaction.update_schema() as update:
                update.union_by_name(schema)
            if replace and table.current_snapshot() is not None:
                transaction.delete(AlwaysTrue(), snapshot_properties=commit.properties)
            elif rewritten:
                old = {f"{self._location}/{path}" for path, _ in rewritten}
                with transaction.update_snapshot(snapshot_properties=commit.properties).overwrite() as overwrite:
                    for task in table.scan().plan_files():
                        if task.file.file_path in old:
                            overwrite.delete_data_file(task.file)
            added = [*files, *(new for _, new in rewritten if new)]
            if added:
                paths = [f"{self._location}/{file.path}" for file in added]
                transaction.add_files(paths, snapshot_properties=commit.properties, check_duplicate_files=False)
            transaction.set_properties({NUMBER: str(commit.number)})
        self.refresh()

    def refresh(self) -> None:
        """Write down which metadata is the newest, where readers without a catalog (DuckDB, Hadoop tables) look."""
        table = self._table()
        if self._embedded and table is not None:
            version = posixpath.basename(table.metadata_location).removesuffix(".metadata.json")
            put(self._store, join(self._root, "metadata", "version-hint.text"), version.encode())

    def _wait_for_clock(self, table: PyIcebergTable) -> None:
        """Readers refuse snapshots that are older than those before; a machine before this one had a clock ahead.

        Raises:
            OutputError: by more than is worth waiting for.
        """
        ahead = table.metadata.last_updated_ms / 1000 - time.time()
        if ahead > LONGEST_WAIT:
            raise OutputError(
                f"the last change of the table {self._name} lies {ahead:.0f} s in the future by this machine's clock; "
                "set the clock right"
            )
        time.sleep(max(0.0, ahead))

    def _create(self, schema: pa.Schema) -> PyIcebergTable:
        with (
            self._catalog.create_table_transaction(
                self._name, schema=schema, location=self._location, properties={"format-version": "2"}
            ) as transaction,
            transaction.update_spec() as spec,
        ):
            for name in self._partition_by:
                spec.add_identity(name)
        table = self._table()
        assert table is not None
        return table

    def _table(self) -> PyIcebergTable | None:
        try:
            table = self._catalog.load_table(self._name)
        except NoSuchTableError:
            return None
        if _without_scheme(table.location()) != _without_scheme(self._location):
            raise OutputError(
                f"the table {self._name} of the catalog lies at {redacted(table.location())}, not at "
                f"{redacted(self._location)}; give this output a name of its own with output.table_name"
            )
        return table


def _without_scheme(location: str) -> str:
    return location.partition(":")[2].strip("/")


def _changed(have: pa.Schema, wanted: pa.Schema) -> set[str]:
    """The columns that are missing, or have another type."""
    kinds = {field.name: plain(field.type) for field in wanted}
    return {field.name for field in have if kinds.get(field.name) != plain(field.type)}


def _location(store: fsspec.AbstractFileSystem, root: str) -> str:
    return f"file://{root}" if is_local(store) else as_uri(store, root)
