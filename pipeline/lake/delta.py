"""A Delta Lake table (deltalake): a commit carries an application transaction, which guards against repetition."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Field, Schema, Transaction, write_deltalake
from deltalake.exceptions import TableNotFoundError
from deltalake.transaction import AddAction, create_table_with_add_actions

from pipeline.errors import OutputError
from pipeline.lake.places import as_uri, join
from pipeline.lake.storage import Options, for_delta
from pipeline.lake.table import KEY_DIGITS, Commit, DataFile, Removal

APPLICATION = "conservator"
ROWS = 64
"""Read at a time where rows are copied."""


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
        paths: list[str] = actions.column("path").to_pylist()
        return paths

    def commit(
        self,
        files: Sequence[DataFile],
        schema: pa.Schema,
        commit: Commit,
        replace: bool = False,
        removal: Removal | None = None,
    ) -> None:
        """See `Table`. Files that replace rows are copied into new ones: the library registers no others with that."""
        properties = CommitProperties(
            custom_metadata=commit.properties, app_transactions=[Transaction(APPLICATION, commit.number)]
        )
        actions = [_action(file) for file in files]
        table = self._table()
        if table is None:
            create_table_with_add_actions(
                table_uri=self._uri,
                schema=Schema.from_arrow(schema),
                add_actions=actions,
                mode="error",
                partition_by=self._partition_by,
                storage_options=self._options,
                commit_properties=properties,
            )
            return
        self._widen(table, schema)
        if removal and not replace:
            self._exchange(table, files, schema, removal, properties)
            return
        mode = "overwrite" if replace else "append"
        table.create_write_transaction(
            actions, mode=mode, schema=table.schema(), partition_by=self._partition_by, commit_properties=properties
        )

    def _exchange(
        self,
        table: DeltaTable,
        files: Sequence[DataFile],
        schema: pa.Schema,
        removal: Removal,
        properties: CommitProperties,
    ) -> None:
        """Put the rows of `files` in the place of others; the library wants the new ones to fit the condition too."""
        keys = set(removal.rows)
        for file in files:
            with self._store.open(join(self._root, file.path), "rb") as opened:
                keys.update(pq.ParquetFile(opened).read(columns=[removal.column])[removal.column].to_pylist())
        column = '"' + removal.column.replace('"', '""') + '"'
        conditions = []
        if removal.files:
            conditions.append(f"substr({column}, 1, {KEY_DIGITS}) IN ({_literals(removal.files)})")
        if keys:
            conditions.append(f"{column} IN ({_literals(sorted(keys))})")
        write_deltalake(
            table,
            pa.RecordBatchReader.from_batches(schema, self._batches(files, schema)),
            mode="overwrite",
            predicate=" OR ".join(conditions),
            commit_properties=properties,
        )

    def _batches(self, files: Sequence[DataFile], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        for file in files:
            with self._store.open(join(self._root, file.path), "rb") as opened:
                for batch in pq.ParquetFile(opened).iter_batches(ROWS):
                    yield from pa.Table.from_batches([batch]).select(schema.names).cast(schema).to_batches()

    def refresh(self) -> None:
        """Nothing: all readers read the log."""

    def _widen(self, table: DeltaTable, schema: pa.Schema) -> None:
        """Add the columns that the table lacks.

        Raises:
            OutputError: a column has another type.
        """
        have = {field.name: field for field in table.schema().fields}
        new: list[Field] = []
        for field in Schema.from_arrow(schema).fields:
            known = have.get(field.name)
            if known is None:
                new.append(field)
            elif known.type != field.type:
                raise OutputError(
                    f"column {field.name!r} is {known.type} in the table {self._uri} and {field.type} in this run; "
                    "give another output, or --fresh to make the table anew"
                )
        if new:
            table.alter.add_columns(new)

    def _table(self) -> DeltaTable | None:
        try:
            return DeltaTable(self._uri, storage_options=self._options)
        except TableNotFoundError:
            return None


def _action(file: DataFile) -> AddAction:
    return AddAction(
        path=file.path,
        size=file.size,
        partition_values={},
        modification_time=int(time.time() * 1000),
        data_change=True,
        stats=json.dumps({"numRecords": file.rows}),
    )


def _literals(texts: Sequence[str]) -> str:
    return ", ".join("'" + text.replace("'", "''") + "'" for text in texts)
