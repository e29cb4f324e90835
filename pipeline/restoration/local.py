"""Files of models on this machine: what lies in a store is copied once, for all workers of a machine."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec
from filelock import FileLock

from pipeline.errors import ModelError
from pipeline.redaction import redacted, without_secrets

IDENTITY = ("ETag", "etag", "LastModified", "last_modified", "mtime", "updated", "size")
"""What stores tell of a file that is another when the file is."""


def cache_folder() -> Path:
    """Where this user's copies lie: below `$XDG_CACHE_HOME`, or `~/.cache`.

    Raises:
        RuntimeError: the user has no home.
    """
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path("~/.cache").expanduser()) / "conservator"


def said(error: Exception) -> str:
    """What a library raised, in short, without secrets."""
    return f"{type(error).__name__}: {without_secrets(str(error))[:200]}"


def is_local(place: str) -> bool:
    """Whether a path or URI is on this machine."""
    return urlsplit(place).scheme in ("", "file")


def local_path(place: str) -> str:
    """A `file:` URI as a path; others as they are."""
    return urlsplit(place).path if place.startswith("file:") else place


OptionsOf = Callable[[str], dict[str, Any]]
_OPTIONS: ContextVar[OptionsOf] = ContextVar("_OPTIONS", default=lambda protocol: {})


@contextlib.contextmanager
def stores_reached(options_of: OptionsOf) -> Iterator[None]:
    """For a block, files of models are fetched with these options of a store, by its protocol."""
    token = _OPTIONS.set(options_of)
    try:
        yield
    finally:
        _OPTIONS.reset(token)


def store_of(place: str) -> tuple[Any, str]:
    """The fsspec file system of a URI, and the path there. Raises whatever its driver raises."""
    protocol = urlsplit(place).scheme
    options = {} if protocol in ("http", "https") else _OPTIONS.get()(protocol)  # those of a store are not for the web
    store, root = fsspec.core.url_to_fs(place, **options)
    return store, root


def local_copy(place: str, names: Sequence[str] | None = None) -> Path:
    """A file or folder at a path or a URI, on this machine. Raises whatever its store raises.

    Args:
        place: from a store it is copied to the cache, and again only when it has changed there.
        names: of a folder, only these files; None: all.

    Raises:
        FileNotFoundError: nothing is there.
    """
    if is_local(place):
        path = Path(local_path(place))
        for needed in [path / name for name in names or ()] or [path]:
            needed.stat()
        return path
    store, root = store_of(place)
    root = root.rstrip("/")
    if names is None:
        found = {path: info for path, info in store.find(root, detail=True).items() if info["type"] == "file"}
    else:
        found = {f"{root}/{name}": store.info(f"{root}/{name}") for name in names}
    if not found:
        raise FileNotFoundError(f"nothing at {redacted(place)}")
    inside = {path: path[len(root) :].lstrip("/") or Path(root).name for path in found}
    if any(".." in name.split("/") or "\\" in name for name in inside.values()):
        raise ValueError(f"{redacted(place)} holds names that lead elsewhere")
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


def from_hub(name: str, downloads: bool) -> Path:
    """A model of the Hugging Face hub, without code and pickles. Raises whatever the hub's library raises.

    `downloads`: it may be fetched; else it must have been, once.
    """
    from huggingface_hub import snapshot_download

    kinds = ["*.json", "*.txt", "*.model", "*.safetensors"]
    return Path(snapshot_download(name, allow_patterns=kinds, local_files_only=not downloads))


def whole(kind: Any, folder: Path, optional: Sequence[str] = (), **options: Any) -> Any:
    """A model of transformers from safetensors, in single precision. Raises whatever transformers raises.

    Args:
        kind: its class.
        folder: where it lies.
        optional: beginnings of names of weights that may be drawn at random.
        options: for its `from_pretrained`.

    Raises:
        ModelError: the weights are broken, or some are lacking, which transformers would draw at random.
    """
    import torch  # what asks where copies lie does without
    from safetensors import SafetensorError

    try:
        model, loaded = kind.from_pretrained(
            str(folder),
            use_safetensors=True,
            local_files_only=True,
            dtype=torch.float32,
            output_loading_info=True,
            **options,
        )
    except (SafetensorError, RuntimeError) as error:  # torn off, or of another shape
        raise ModelError(f"the weights in {folder} cannot be read ({said(error)})") from error
    lacking = sorted(name for name in loaded["missing_keys"] if not name.startswith(tuple(optional)))
    lacking += sorted(str(name) for name in loaded["mismatched_keys"])
    if lacking:
        raise ModelError(f"the weights in {folder} are of another model: {', '.join(lacking[:3])} … are not there")
    return model


def files_sha256(paths: Sequence[Path]) -> str:
    """SHA-256 over the contents of files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()
