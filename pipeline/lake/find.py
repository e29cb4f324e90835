"""Finds the files behind paths, folders, globs and URLs."""

from __future__ import annotations

import dataclasses
import logging
import posixpath
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import pyarrow as pa
from fsspec.utils import get_protocol, glob_translate

from pipeline.errors import SourceError
from pipeline.lake.inputs import Found
from pipeline.lake.places import explained, is_local, open_store
from pipeline.lake.table import partitions_of
from pipeline.redaction import redacted

log = logging.getLogger(__name__)

PARQUET = (".parquet", ".parq", ".pq")
"""What Parquet files of a folder or glob end with, in any case."""
IMAGES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".tif", ".tiff", ".webp", ".jp2", ".j2k", ".jpx", ".avif"),
    *(".bmp", ".gif", ".pnm", ".ppm", ".pgm", ".pbm"),
)
"""What image files of a folder end with, in any case."""

CAPTIONS = tuple(f"{name}.{ending}" for name in ("metadata", "captions") for ending in ("csv", "jsonl", "ndjson"))
"""Names of files that tell of the images beside them; of several, the first counts."""

_KINDS = {PARQUET: "Parquet", IMAGES: "image"}


class Files(NamedTuple):
    """What was found."""

    store: fsspec.AbstractFileSystem
    found: dict[str, Found]
    """By path."""
    patterns: tuple[str, ...]
    """Regular expressions of what was asked for."""
    table: str | None = None
    """The folder of a Delta or Iceberg table, whose files take each other's place."""
    captions: tuple[str, ...] = ()
    """Files that tell of the images beside them."""


def find_files(
    uris: Sequence[str],
    endings: tuple[str, ...] = PARQUET,
    storage: Mapping[str, Any] | None = None,
    most: int | None = None,
) -> Files:
    """Find the files behind paths, folders, globs and URLs.

    Args:
        uris: where to look.
        endings: of the names of files that count.
        storage: options of the store.
        most: about so many names are looked at, the first, in a time that does not grow with the source. Nothing is
            found of several URIs, of globs, and in stores that name all files of a folder or none.

    Raises:
        SourceError: nothing is there, or the URIs lie in different stores.
    """
    if not uris:
        raise SourceError("no source is given: --source PATH_OR_URL")
    protocols = {get_protocol(uri) for uri in uris}
    if len(protocols) > 1:
        raise SourceError(f"all sources of a run must lie in one store, not in {' and '.join(sorted(protocols))}")
    store, _ = open_store(uris[0], storage)
    if most is not None and len(uris) > 1:
        return Files(store, {}, ())
    found: dict[str, Found] = {}
    patterns: list[str] = []
    captions: list[str] = []
    for uri in uris:
        if not uri.strip():
            raise SourceError("a source is empty; give a Parquet file, a folder, a glob or a URL")
        with explained(uri, SourceError):
            root, files, pattern, telling = _find(store, open_store(uri, storage)[1], endings, most)
        patterns.append(pattern)
        captions += telling
        if not files and most is None:
            raise SourceError(
                f"nothing at {redacted(uri)} ends as {_KINDS.get(endings, 'Parquet or image')} files do "
                f"({', '.join(endings)}); give a file, a folder with some, or a glob"
            )
        for name, info in files.items():
            if name not in found:
                known = Found(root, int(info["size"]), version_of(info))
                values = _partitions(root, name)
                found[name] = dataclasses.replace(known, constants=values) if values else known
    return Files(store, found, tuple(patterns), captions=tuple(dict.fromkeys(captions)))


def version_of(info: Mapping[str, Any]) -> str:
    """What a store calls this state of a file."""
    for name in ("ETag", "etag", "md5Hash", "content_md5", "LastModified", "last_modified", "updated", "mtime"):
        if info.get(name):
            return str(info[name]).strip('"')
    return ""


def _find(
    store: fsspec.AbstractFileSystem, path: str, endings: tuple[str, ...], most: int | None
) -> tuple[str, dict[str, Any], str, list[str]]:
    """The root, the files below it with what the store says of them, a pattern of their paths, and captions files."""
    if any(mark in path for mark in "*?[") and not store.exists(path):
        entries, pattern = store.glob(path, detail=True) if most is None else {}, glob_translate(path)
        first = min(path.find(mark) for mark in "*?[" if mark in path)
        root = path[:first].rpartition("/")[0]
    elif store.isdir(path):
        root = path.rstrip("/")
        entries = store.find(path, detail=True) if most is None else _first(store, root, most)
        pattern = re.escape(root) + "/"
    else:
        return path.rpartition("/")[0], {path: store.info(path)}, re.escape(path) + "$", []
    files, left, captions = {}, Counter[str](), []
    for name, info in entries.items():
        known = _followed(store, info)
        if known["type"] != "file" or _is_hidden(name.removeprefix(root)):
            continue
        if name.lower().endswith(endings):
            files[name] = known
        elif posixpath.basename(name) in CAPTIONS:
            captions.append(name)
        else:
            left[posixpath.splitext(name)[1].lower() or posixpath.basename(name)] += 1
    if files and left and most is None:
        named = ", ".join(f"{count} {ending}" for ending, count in left.most_common(5))
        log.info("%d files in %s are not read, for what their names end with: %s", left.total(), redacted(root), named)
    return root, files, pattern, captions


def _first(store: fsspec.AbstractFileSystem, root: str, most: int) -> dict[str, Any]:
    """About so many files below a folder, as `find` tells of them: of S3 in the order of their names, of local folders
    whole ones; elsewhere none."""
    entries: dict[str, Any] = {}
    if is_local(store):
        for _, _, files in store.walk(root, detail=True):
            entries |= {info["name"]: info for info in files.values()}
            if len(entries) >= most:
                break
    elif hasattr(store, "call_s3"):
        bucket, key, _ = store.split_path(root)
        asked: dict[str, Any] = {"Bucket": bucket, "Prefix": f"{key}/" if key else "", **store.req_kw}
        while len(entries) < most:
            page = store.call_s3("list_objects_v2", **asked)
            for info in page.get("Contents", []):
                name = f"{bucket}/{info['Key']}"
                entries[name] = info | {"name": name, "size": info["Size"], "type": "file"}
            if not page.get("IsTruncated"):
                break
            asked["ContinuationToken"] = page["NextContinuationToken"]
    return entries


def _followed(store: fsspec.AbstractFileSystem, info: dict[str, Any]) -> dict[str, Any]:
    """What a store says of a file; of a link to one, what it says of the file."""
    if not (is_local(store) and info.get("islink") and Path(info["name"]).is_file()):
        return info
    target = Path(info["name"]).stat()
    return info | {"type": "file", "size": target.st_size, "mtime": target.st_mtime}


def _is_hidden(path: str) -> bool:
    """Whether a path below the folder that was asked for is no archive's; but names of images may begin with `_`."""
    *folders, name = path.split("/")
    marks = "." if name.lower().endswith(IMAGES) else ("_", ".")
    return name.startswith(marks) or any(folder.startswith(("_", ".")) for folder in folders)


def _partitions(root: str, path: str) -> dict[str, pa.Scalar]:
    """The Hive partitions between the root and the file."""
    values = partitions_of(path.removeprefix(root))
    return {name: pa.scalar(value, pa.string()) for name, value in values.items()}
