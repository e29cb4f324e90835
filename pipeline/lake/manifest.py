"""A plain Parquet dataset with a manifest: numbered lists of files, each created once."""

from __future__ import annotations

import io
import json
import posixpath
from collections.abc import Sequence
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import OutputError
from pipeline.lake.places import as_uri, join, make_folder, names_in, put, put_new
from pipeline.lake.rewriting import rewrite
from pipeline.lake.table import Commit, DataFile, Removal, read_schema, schema_text
from pipeline.redaction import redacted

FOLDER = "_manifest"
HIVE = "_symlink_format_manifest/manifest"
"""The list as Hive, Trino, Athena and Redshift read it (SymlinkTextInputFormat)."""
COLUMNS = "columns_"
"""How the name of a file begins that holds a table's columns and no rows."""
WHOLE_EVERY = 20
"""Every so many commits the whole list is written, in between only what changed."""


class ManifestTable:
    """The manifests below a folder of Parquet files."""

    def __init__(self, store: fsspec.AbstractFileSystem, root: str) -> None:
        self._store, self._root = store, root

    def last_commit(self) -> int:
        """The number of the last commit; 0 before the first."""
        numbers = self._numbers()
        return int(self._read(numbers[-1])["commit"]) if numbers else 0

    def files(self) -> list[str]:
        """Paths of the data files that a reader sees now, relative to the table's folder."""
        return [file["path"] for file in self._files(self._numbers())]

    def schema(self) -> pa.Schema | None:
        """Of the table; None before the first commit."""
        numbers = self._numbers()
        return read_schema(self._read(numbers[-1])["columns"]) if numbers else None

    def check(self, schema: pa.Schema, replace: bool = False) -> None:
        """See `Table`."""
        self._united(schema, replace)

    def commit(
        self,
        files: Sequence[DataFile],
        schema: pa.Schema,
        commit: Commit,
        replace: bool = False,
        removal: Removal | None = None,
    ) -> None:
        """See `Table`."""
        columns = self._united(schema, replace)
        numbers = self._numbers()
        before = self._files(numbers)
        added = [_entry(file) for file in files]
        removed: list[str] = []
        if removal and not replace:
            for old, new in rewrite(self._store, self._root, [file["path"] for file in before], removal, commit.number):
                removed.append(old)
                added += [_entry(new)] if new else []
        after = added if replace else _changed(before, removed, added)
        if not any(file["rows"] for file in after):
            after = added = [self._columns(columns, commit.number)]
        number = (numbers[-1] if numbers else 0) + 1
        content: dict[str, Any] = {
            "version": number,
            "commit": commit.number,
            "operation": "replace" if replace else "overwrite" if removed else "append",
            **commit.properties,
            "added": added,
            "removed": removed,
            "rows": sum(file["rows"] for file in after),
            "columns": schema_text(columns),
        }
        if replace or number % WHOLE_EVERY == 1:
            content["files"] = after
        make_folder(self._store, join(self._root, FOLDER))
        if not put_new(self._store, self._path(number), json.dumps(content, indent=1).encode()):
            raise OutputError(f"{self._path(number)} was written by somebody else: two runs write to one output")
        self._write_hive(after)

    def _united(self, schema: pa.Schema, replace: bool) -> pa.Schema:
        """The table's columns, and those that are new to it."""
        have = None if replace else self.schema()
        if have is None:
            return schema
        try:
            return pa.unify_schemas([have, schema])
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise OutputError(
                f"the table in {redacted(as_uri(self._store, self._root))} has other types ({error}); give another "
                "output, or --fresh to make the table anew"
            ) from error

    def refresh(self) -> None:
        """Write the list for Hive again."""
        numbers = self._numbers()
        if numbers:
            self._write_hive(self._files(numbers))

    def _columns(self, schema: pa.Schema, number: int) -> dict[str, Any]:
        """A file without rows, for readers that take a table's columns from its files."""
        path = f"{COLUMNS}{number:08d}.parquet"
        data = io.BytesIO()
        pq.write_table(schema.empty_table(), data)
        make_folder(self._store, self._root)
        put(self._store, join(self._root, path), data.getvalue())
        return _entry(DataFile(path, len(data.getvalue()), 0))

    def _write_hive(self, files: Sequence[dict[str, Any]]) -> None:
        make_folder(self._store, join(self._root, posixpath.dirname(HIVE)))
        uris = [as_uri(self._store, join(self._root, file["path"])) for file in files]
        put(self._store, join(self._root, HIVE), "".join(f"{uri}\n" for uri in uris).encode())

    def _files(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        changes: list[dict[str, Any]] = []
        files: list[dict[str, Any]] = []
        for number in reversed(numbers):
            content = self._read(number)
            if "files" in content:
                files = content["files"]
                break
            changes.append(content)
        for change in reversed(changes):
            files = _changed(files, change["removed"], change["added"])
        return files

    def _numbers(self) -> list[int]:
        names = names_in(self._store, join(self._root, FOLDER))
        return [int(name[:-5]) for name in names if name.endswith(".json")]

    def _path(self, number: int) -> str:
        return join(self._root, FOLDER, f"{number:08d}.json")

    def _read(self, number: int) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self._store.cat_file(self._path(number)))
        return content


def _entry(file: DataFile) -> dict[str, Any]:
    return {"path": file.path, "size": file.size, "rows": file.rows}


def _changed(
    files: Sequence[dict[str, Any]], removed: Sequence[str], added: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    gone = set(removed)
    after = [*(file for file in files if file["path"] not in gone), *added]
    return [file for file in after if file["rows"] or not file["path"].startswith(COLUMNS)] or after
