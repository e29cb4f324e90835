"""Ids that come twice: within the files that are read now, or with those that were read before.

All rows come out in any case; what is wrong is the source, and the run says so. The ledger keeps the ids that are
finished as 64 bits each, and they are gone through piece by piece: 100 million take 800 MB there, not in memory.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from pipeline.lake.source import ParquetFile

READERS = 16
"""Files whose ids are read at a time."""
SHOWN = 5
"""Examples that are named."""

Hashes = npt.NDArray[np.uint64]


@dataclasses.dataclass(frozen=True)
class Duplicates:
    """Ids that more than one row has."""

    count: int
    """Of such ids."""
    examples: tuple[str, ...]

    def __str__(self) -> str:
        shown = ", ".join(map(repr, self.examples))
        return f"{self.count} ids come more than once in the source, such as {shown}; all of their rows are restored"


def read_ids(store: fsspec.AbstractFileSystem, files: Sequence[ParquetFile], column: str) -> dict[str, list[str]]:
    """The ids of files by the files' keys; those of a file without such a column are none. Reads nothing else."""

    def read(file: ParquetFile) -> list[str]:
        if column in file.partitions or column not in file.schema.names:
            return []
        with store.open(file.path, "rb") as opened:
            values = pq.ParquetFile(opened).read(columns=[column])[column]
        return [str(value) for value in values.to_pylist() if value is not None]

    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip((file.key for file in files), pool.map(read, files), strict=True))


def find_duplicates(ids: Mapping[str, Sequence[str]], before: Iterable[Hashes]) -> Duplicates | None:
    """What comes twice.

    Args:
        ids: of the files that are read now, by file.
        before: ids that are finished, in pieces.
    """
    texts = [text for found in ids.values() for text in found]
    hashes = hashed(texts)
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    twice = np.zeros(len(texts), np.bool_)
    twice[order[1:]] = ordered[1:] == ordered[:-1]
    for piece in before:
        twice[order[np.isin(ordered, piece)]] = True
    if not twice.any():
        return None
    names = list(dict.fromkeys(text for text, is_twice in zip(texts, twice.tolist(), strict=True) if is_twice))
    return Duplicates(len(names), tuple(names[:SHOWN]))


def hashed(texts: Sequence[str]) -> Hashes:
    """64 bits of each text."""
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, np.uint64)
