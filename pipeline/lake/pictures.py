"""A folder of image files as a source: a row a file, with what a captions file tells of it."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
from collections.abc import Mapping
from typing import Any

import fsspec
import pyarrow as pa

from pipeline.errors import SourceError
from pipeline.imaging.cells import redacted
from pipeline.lake.find import Files
from pipeline.lake.inputs import ImageFile
from pipeline.lake.places import explained, join, open_store
from pipeline.lake.storage import Options
from pipeline.recipe import Columns

log = logging.getLogger(__name__)

NAME = "file_name"
"""The column with a file's name, as Hugging Face's image folders have it; other usual names are taken too."""
_NAMES = (NAME, "filename", "file", "path", "image", "name")
_CAPTIONS = tuple(f"{name}.{ending}" for name in ("metadata", "captions") for ending in ("csv", "jsonl", "ndjson"))


def image_files(files: Files, columns: Columns, captions: str | None, storage: Options) -> list[ImageFile]:
    """The images that were found, sorted, each with its row.

    Its id is the file's path below the folder, unless the captions file has a column for it.

    Args:
        files: what was found.
        columns: the names that the id and the image get, as the recipe wants them.
        captions: URI of a captions file; None: one in the folder, if there is one.
        storage: options of the store.

    Raises:
        SourceError: the captions file cannot be read, or names no files.
    """
    told: dict[str, dict[str, Any]] = {}
    for root in dict.fromkeys(found.root for found in files.found.values()):
        told |= _told(files.store, root, captions, storage)
    rows = []
    for path in sorted(files.found):
        name = path.removeprefix(files.found[path].root).lstrip("/")
        row = {columns.id: name, columns.image: name, NAME: name} | told.pop(path, {})
        rows.append(row)
    if told:
        some = ", ".join(redacted(path) for path in list(told)[:5])
        log.warning("%d images that the captions file names are not in the folder, such as %s", len(told), some)
    keys = list(dict.fromkeys(name for row in rows for name in row))
    schema = pa.Table.from_pylist([{key: row.get(key) for key in keys} for row in rows]).schema
    return [
        ImageFile(path, found.root, found.size, found.version + _digest(row), row, schema)
        for (path, found), row in zip(sorted(files.found.items()), rows, strict=True)
    ]


def _digest(row: Mapping[str, Any]) -> str:
    return "-" + hashlib.sha256(json.dumps(row, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _told(
    store: fsspec.AbstractFileSystem, root: str, captions: str | None, storage: Options
) -> dict[str, dict[str, Any]]:
    """The rows of a captions file, by the paths of the images."""
    if captions is None:
        present = [join(root, name) for name in _CAPTIONS if store.exists(join(root, name))]
        if not present:
            return {}
        place, shown = present[0], present[0]
    else:
        shown = captions
        store, place = open_store(captions, storage)
    with explained(shown, SourceError):
        try:
            text = store.cat_file(place).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise SourceError(f"{redacted(shown)} is not UTF-8 text: {error}") from error
    rows = _csv(text) if place.lower().endswith(".csv") else _json_lines(text, shown)
    key = next((name for name in _NAMES if rows and name in rows[0]), None)
    if rows and key is None:
        raise SourceError(
            f"{redacted(shown)} has no column {NAME!r} that names the images (its columns: {', '.join(rows[0])})"
        )
    return {join(root, str(row[key])): {n: v for n, v in row.items() if n != key} for row in rows if key and row[key]}


def _csv(text: str) -> list[dict[str, Any]]:
    """Rows of text: numbers with leading zeros stay what they are."""
    rows = csv.DictReader(io.StringIO(text, newline=""), restkey="", restval=None)
    return [{name: value or None for name, value in row.items() if name} for row in rows]


def _json_lines(text: str, place: str) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise SourceError(f"line {number} of {redacted(place)} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise SourceError(f"line {number} of {redacted(place)} is no JSON object")
        rows.append(row)
    return rows
