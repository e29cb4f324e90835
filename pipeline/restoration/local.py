"""Files of models on this machine: what lies in a store is copied once, for all workers of a machine."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec
from filelock import FileLock

IDENTITY = ("ETag", "etag", "LastModified", "last_modified", "mtime", "updated", "size")
"""What stores tell of a file that is another when the file is."""


def cache_folder() -> Path:
    """Where this user's copies lie: below `$XDG_CACHE_HOME`, or `~/.cache`.

    Raises:
        RuntimeError: the user has no home.
    """
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path("~/.cache").expanduser()) / "conservator"


def is_local(place: str) -> bool:
    """Whether a path or URI is on this machine."""
    return urlsplit(place).scheme in ("", "file")


def local_copy(place: str, names: Sequence[str] | None = None) -> Path:
    """A file or folder at a path or a URI, on this machine. Raises whatever its store raises.

    Args:
        place: from a store it is copied to the cache, and again only when it has changed there.
        names: of a folder, only these files; None: all.

    Raises:
        FileNotFoundError: nothing is there.
    """
    if is_local(place):
        path = Path(urlsplit(place).path if place.startswith("file:") else place)
        for needed in [path / name for name in names or ()] or [path]:
            needed.stat()
        return path
    store, root = fsspec.core.url_to_fs(place)
    root = root.rstrip("/")
    if names is None:
        found = {path: info for path, info in store.find(root, detail=True).items() if info["type"] == "file"}
    else:
        found = {f"{root}/{name}": store.info(f"{root}/{name}") for name in names}
    if not found:
        raise FileNotFoundError(f"nothing at {place}")
    inside = {path: path[len(root) :].lstrip("/") or Path(root).name for path in found}
    key = repr([place, *sorted((inside[path], _identity(info)) for path, info in found.items())])
    copy = cache_folder() / "models" / hashlib.sha256(key.encode()).hexdigest()[:32]
    copy.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{copy}.lock"):
        if not copy.exists():
            fresh = copy.with_name(f"{copy.name}.{uuid.uuid4().hex}")
            try:
                for path, name in inside.items():
                    (fresh / name).parent.mkdir(parents=True, exist_ok=True)
                    store.get_file(path, str(fresh / name))
                fresh.rename(copy)
            finally:
                shutil.rmtree(fresh, ignore_errors=True)
    alone = list(inside.values())
    return copy / alone[0] if list(found) == [root] else copy


def _identity(info: dict[str, Any]) -> str:
    return repr([str(info[name]) for name in IDENTITY if info.get(name) is not None])


def files_sha256(paths: Sequence[Path]) -> str:
    """SHA-256 over the contents of files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()
