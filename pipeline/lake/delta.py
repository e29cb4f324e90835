"""A Delta Lake table (deltalake): a commit carries an application transaction, which guards against repetition."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from urllib.parse import unquote

import fsspec
import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Field, Schema, TableFeatures, Transaction
from deltalake.exceptions import TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction, create_table_with_add_actions

from pipeline.errors import OutputError
from pipeline.lake.places import as_uri
from pipeline.lake.rewriting import rewrite
from pipeline.lake.storage import Options, for_delta
from pipeline.lake.table import Commit, DataFile, Removal, partitions_of

APPLICATION = "conservator"


class DeltaLakeTable:
    """The Delta table in the folder `root`."""

    def __init__(
        self,
        store: fsspec.AbstractFileSystem,
        root: str,
        storage: Options | None = None,
        partition_by: Sequence[str] = (),
    ) -> None:
        self._store, self._root, self._uri = store, root, as_uri(store, root)
        self._options, self._partition_by = for_delta(storage or {}), list(partition_by)

    def last_commit(self) -> int:
        """The number of the last commit; 0 before the first."""
        table = self._table()
        return (table.transaction_version(APPLICATION) or 0) if table else 0

    def files(self) -> list[str]:
        """Paths of the data files that a reader sees now, relative to the table's folder."""
        table = self._table()
        if table is None:
            return []
        actions = pa.table(table.get_add_actions())
        return [unquote(path) for path in actions.column("path").to_pylist()]

    def schema(self) -> pa.Schema | None:
        """Of the table; None before the first commit."""
        table = self._table()
        return None if table is None else pa.schema(table.schema().to_arrow())

    def check(self, schema: pa.Schema, replace: bool = False) -> None:
        """See `Table`."""
        try:
            wanted = Schema.from_arrow(schema)
        except Exception as error:  # its own library raises plain ones
            raise OutputError(f"a Delta table cannot have the columns of this run: {error}") from error
        table = self._table()
        if table is not None and not replace:
            self._new_fields(table, wanted)

    def commit(
        self,
        files: Sequence[DataFile],
        schema: pa.Schema,
        commit: Commit,
        replace: bool = False,
        removal: Removal | None = None,
    ) -> None:
        """See `Table`."""
        properties = CommitProperties(
            custom_metadata=commit.properties, app_transactions=[Transaction(APPLICATION, commit.number)]
        )
        actions: list[AddAction | RemoveAction] = [_action(file) for file in files]
        table = self._table()
        if table is None:
            create_table_with_add_actions(
                table_uri=self._uri,
                schema=Schema.from_arrow(schema),
                add_actions=[_action(file) for file in files],
                mode="error",
                partition_by=self._partition_by,
                storage_options=self._options,
                commit_properties=properties,
            )
            return
        wanted = Schema.from_arrow(schema)
        new = [] if replace else self._new_fields(table, wanted)
        if new:
            table.alter.add_columns(new)
        if removal and not replace:
            for old, rest in rewrite(self._store, self._root, self.files(), removal, commit.number):
                actions.append(RemoveAction(old, True, _now(), partition_values=partitions_of(old)))
                actions += [_action(rest)] if rest else []
        if replace and _has_local_times(schema) and "timestampNtz" not in (table.protocol().writer_features or []):
            features = TableFeatures.TimestampWithoutTimezone  # an overwrite does not say by itself what it needs
            table.alter.add_feature(features, allow_protocol_versions_increase=True)
        mode = "overwrite" if replace else "append"
        table.create_write_transaction(
            *(actions, mode, wanted if replace else table.schema()),
            partition_by=self._partition_by,
            commit_properties=properties,
        )

    def refresh(self) -> None:
        """Nothing: all readers read the log."""

    def _new_fields(self, table: DeltaTable, schema: Schema) -> list[Field]:
        """The columns that the table lacks.

        Raises:
            OutputError: a column has another type.
        """
        have = {field.name: field for field in table.schema().fields}
        new: list[Field] = []
        for field in schema.fields:
            known = have.get(field.name)
            if known is None:
                new.append(field)
            elif known.type != field.type:
                raise OutputError(
                    f"column {field.name!r} is {known.type} in the table {self._uri} and {field.type} in this run; "
                    "give another output, or --fresh to make the table anew"
                )
        return new

    def _table(self) -> DeltaTable | None:
        try:
            return DeltaTable(self._uri, storage_options=self._options)
        except TableNotFoundError:
            return None


def _has_local_times(kind: pa.Schema | pa.DataType) -> bool:
    """Whether there are times without a zone, at any depth."""
    if isinstance(kind, pa.DataType) and pa.types.is_timestamp(kind):
        return kind.tz is None
    if isinstance(kind, pa.Schema):
        return any(_has_local_times(field.type) for field in kind)
    return any(_has_local_times(kind.field(number).type) for number in range(kind.num_fields))


def _action(file: DataFile) -> AddAction:
    return AddAction(
        path=file.path,
        size=file.size,
        partition_values=partitions_of(file.path),
        modification_time=_now(),
        data_change=True,
        stats=json.dumps({"numRecords": file.rows}),
    )


def _now() -> int:
    """Milliseconds since 1970."""
    return int(time.time() * 1000)
