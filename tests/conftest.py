"""Pictures, tables and a Ray that the tests share."""

from __future__ import annotations

import io
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.lake import search
from pipeline.lake.find import Files
from pipeline.lake.source import find
from pipeline.recipe import Source
from tests.seaweed import Seaweed

ROOT = Path(__file__).parent.parent
ONE_ACTOR = "resources.actors=1"
"""Enough for a few small rows: each takes seconds to start."""


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is measured and copied here stays out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def archive() -> pa.Table:
    """The sample archive."""
    return pq.read_table(ROOT / "samples/archive")


@pytest.fixture(scope="session")
def photo(archive: pa.Table) -> np.ndarray:
    """An undamaged colour photo [H, W, 3], uint8."""
    row = next(row for row in archive.to_pylist() if row["id"] == "coco-285")
    return np.asarray(Image.open(io.BytesIO(row["truth"])).convert("RGB"))


def encoded(pixels: np.ndarray, format: str = "PNG", **options: Any) -> bytes:
    """An image file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, **options)
    return file.getvalue()


def free_port() -> int:
    """One on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A coloured picture of large blots with a little noise, [H, W, 3], uint8."""
    dice = np.random.default_rng(seed)
    small = Image.fromarray(dice.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    blots = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    return (blots + dice.integers(-12, 13, (height, width, 3))).clip(0, 255).astype(np.uint8)


@pytest.fixture
def write_table(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows to a Parquet file below the test's folder."""

    def write(rows: list[dict[str, Any]], name: str = "source/part-0.parquet", schema: pa.Schema | None = None) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, schema), path)
        return path

    return write


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """The listing of a whole source takes until this is set."""
    event = threading.Event()

    def slow(kind: str, uris: Sequence[str], settings: Source, most: int | None = None) -> tuple[str, Files]:
        if most is None:
            event.wait(120)
        return find(kind, uris, settings, most)

    monkeypatch.setattr(search, "find", slow)
    yield event
    event.set()


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    """An S3 server."""
    server = Seaweed(tmp_path_factory.mktemp("seaweed"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One Ray for all tests that need it, started as the job does."""
    import ray

    from pipeline.cluster import start_ray
    from pipeline.recipe import Recipe

    start_ray(Recipe())
    yield
    ray.shutdown()
