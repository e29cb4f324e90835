"""A folder of image files as a source: a row a file, with what captions files tell of it."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import posixpath
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import fsspec
import pyarrow as pa

from pipeline.errors import SourceError
from pipeline.lake.find import CAPTIONS, Files
from pipeline.lake.inputs import ImageFile
from pipeline.lake.places import explained, join, open_store
from pipeline.lake.storage import Options
from pipeline.recipe import Columns
from pipeline.redaction import redacted

log = logging.getLogger(__name__)

NAME = "file_name"
"""The column with a file's name, as Hugging Face's image folders have it; other usual names are taken too."""
SEVERAL = "all_captions"
"""The column with the captions of images that have more than one."""
_NAMES = (NAME, "filename", "file", "path", "image", "name")

Row = dict[str, Any]


def image_files(
    files: Files, columns: Columns, captions: str | None, storage: Options, are_all: bool = True
) -> list[ImageFile]:
    """The images that were found, sorted, each with its row.

    Its id is the file's path below the folder, unless a captions file has a column for it.

    Args:
        files: what was found.
        columns: the names that the id and the image get, as the recipe wants them.
        captions: URI of a captions file, with names below the folder; None: those that lie beside the images.
        storage: options of the store.
        are_all: whether these are all files of the folder; else they are the first, and what captions files tell of
            others counts in the columns' types.

    Raises:
        SourceError: a captions file cannot be read, or names no files.
    """
    told = _told(files, captions, storage, columns.caption or "caption", are_all)
    rows = []
    for path, found in sorted(files.found.items()):
        _check_name(path)
        name = path.removeprefix(found.root).lstrip("/")
        own = {columns.image: name, NAME: name}  # whatever a captions file has under these names
        rows.append({columns.id: name} | own | told.pop(path, {}) | own)
    if told and are_all:
        some = ", ".join(redacted(path) for path in list(told)[:5])
        log.warning("%d images that captions files name are not in the folder, such as %s", len(told), some)
    every = rows if are_all else [*rows, *told.values()]
    names = list(dict.fromkeys(name for row in every for name in row))
    schema = pa.schema([(name, _type([row.get(name) for row in every], name)) for name in names])
    texts = [field.name for field in schema if field.type == pa.string()]
    for row in rows:
        row |= {name: _text(row[name]) for name in texts if name in row}
    return [
        ImageFile(path, found.root, found.size, found.version + _digest(row), row, schema)
        for (path, found), row in zip(sorted(files.found.items()), rows, strict=True)
    ]


def _check_name(path: str) -> None:
    try:
        path.encode()
    except UnicodeEncodeError as error:
        shown = path.encode(errors="replace").decode()
        raise SourceError(f"the name of the file {shown} is not UTF-8 text; rename it") from error


def _type(values: Sequence[Any], name: str) -> pa.DataType:
    """The type of a column; text, where numbers and text are mixed."""
    present = [value for value in values if value is not None]
    if all(isinstance(value, str) for value in present):
        return pa.string()
    try:
        return pa.array(present).type
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        if any(isinstance(value, list | dict) for value in present):
            raise SourceError(
                f"captions files have lists or objects as {name!r} of some images, and other values of others"
            ) from None
        return pa.string()


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)


def _digest(row: Mapping[str, Any]) -> str:
    return "-" + hashlib.sha256(json.dumps(row, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _told(files: Files, captions: str | None, storage: Options, caption: str, are_all: bool) -> dict[str, Row]:
    """What is told of the images, by their paths; the first caption counts, and further ones are kept beside it."""
    rows: dict[str, list[Row]] = defaultdict(list)
    if captions is None:
        for place in _beside(files, are_all):
            for name, row in _read(files.store, place, place):
                rows[_path(posixpath.dirname(place), name)].append(row)
    else:
        listed = list(_read(*open_store(captions, storage), captions))
        for root in dict.fromkeys(found.root for found in files.found.values()):
            for name, row in listed:
                rows[_path(root, name)].append(row)
    told = {path: {name: value for row in several for name, value in row.items()} for path, several in rows.items()}
    for path, several in rows.items():
        captions_of = [row[caption] for row in several if row.get(caption) is not None]
        if len(captions_of) > 1:
            told[path] |= {caption: captions_of[0], SEVERAL: captions_of}
    return told


def _path(folder: str, name: str) -> str:
    scheme, separator, path = join(folder, name).rpartition("://")
    return scheme + separator + posixpath.normpath(path)


def _beside(files: Files, are_all: bool) -> list[str]:
    """The captions files that lie in the folders of the images; in each, one of the usual names."""
    chosen: dict[str, str] = {}
    roots = {found.root for found in files.found.values()}
    if not are_all and files.found:  # some of the folders of the last may not have been seen to their ends
        last = next(reversed(files.found))
        roots |= {folder for root in roots for folder in _between(root, last)}
    near = [join(root, name) for root in sorted(roots) for name in CAPTIONS]
    listed = {posixpath.dirname(path) for path in files.captions}
    present = [*files.captions, *(path for path in near if posixpath.dirname(path) not in listed)]
    for path in sorted(present, key=lambda path: CAPTIONS.index(posixpath.basename(path))):
        folder = posixpath.dirname(path)
        if folder not in chosen and (folder in listed or files.store.exists(path)):
            chosen[folder] = path
    return [chosen[folder] for folder in sorted(chosen)]


def _between(root: str, path: str) -> Iterator[str]:
    """The folders between a root and a file."""
    folder = posixpath.dirname(path)
    while folder.startswith(root + "/"):
        yield folder
        folder = posixpath.dirname(folder)


def _read(store: fsspec.AbstractFileSystem, path: str, shown: str) -> Iterator[tuple[str, Row]]:
    """The names of images in a captions file, and what it tells of each."""
    with explained(shown, SourceError):
        try:
            text = store.cat_file(path).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise SourceError(f"{redacted(shown)} is not UTF-8 text: {error}") from error
    rows = _csv(text) if path.lower().endswith(".csv") else _json_lines(text, shown)
    key = next((name for name in _NAMES if rows and name in rows[0]), None)
    if rows and key is None:
        raise SourceError(
            f"{redacted(shown)} has no column {NAME!r} that names the images (its columns: {', '.join(rows[0])})"
        )
    for row in rows:
        if key and row.get(key):
            yield str(row[key]), {name: value for name, value in row.items() if name != key}


def _csv(text: str) -> list[Row]:
    """Rows of text: numbers with leading zeros stay what they are. Commas, semicolons or tabs divide the columns."""
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    rows = csv.DictReader(io.StringIO(text, newline=""), restkey="", restval=None, delimiter=delimiter)
    return [{name: value or None for name, value in row.items() if name} for row in rows]


def _json_lines(text: str, place: str) -> list[Row]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines, which divides within strings
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
