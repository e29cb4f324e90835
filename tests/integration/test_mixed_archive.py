"""An archive as they are: from stamps to maps, with broken files among them."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.conftest import ROOT, encoded, noise
from tests.imaging.hostile import png as bomb

SIZES = [(64, 64), (64, 200), (150, 100), (300, 400), (512, 384), (333, 777), (900, 600), (64, 1500), (1, 1), (5, 900)]
LARGE = [(1500, 2000), (2400, 1800), (4000, 6000), (6000, 4000), (3000, 3000)]
GIGABYTE = 1e9


def _large(height: int, width: int) -> np.ndarray:
    return np.asarray(
        Image.fromarray(noise(height // 8, width // 8)).resize((width, height), Image.Resampling.BILINEAR)
    )


def _rows() -> list[dict[str, Any]]:
    good = [encoded(_large(*size), "JPEG", quality=80) for size in LARGE]
    while len(good) < 380:
        size = SIZES[len(good) % len(SIZES)]
        good.append(encoded(noise(*size, len(good)), ["JPEG", "PNG", "WEBP", "TIFF"][len(good) % 4]))
    whole = encoded(noise(200, 200), "GIF"), encoded(noise(200, 200), "WEBP")
    broken: list[tuple[bytes | None, str]] = [
        *((data[: len(data) * share // 100], "UnreadableImage") for data in whole for share in (10, 50, 95)),
        (None, "MissingImage"),
        (None, "MissingImage"),
        (b"", "MissingImage"),
        (b"", "MissingImage"),
        (b"<html>not found</html>", "UnreadableImage"),
        (b"%PDF-1.7 a document", "UnreadableImage"),
        (bytes(4000), "UnreadableImage"),
        (bomb(60000, 60000), "ImageTooLarge"),
        (bomb(2**31 - 1, 2), "ImageTooLarge"),
        (b"\xff\xd8\xff\xe0" + bytes(range(256)), "UnreadableImage"),
    ]
    rows = [{"id": f"good-{n}", "image": image} for n, image in enumerate(good)]
    rows += [{"id": f"{kind}-{n}", "image": image} for n, (image, kind) in enumerate(broken)]
    return [rows[n] for n in np.random.default_rng(1).permutation(len(rows))]


def _used() -> float:
    """Bytes in use on this machine, shared memory among them."""
    facts = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return (int(facts["MemTotal"].split()[0]) - int(facts["MemAvailable"].split()[0])) * 1024.0


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="memory is read from Linux's /proc")
def test_four_hundred_rows_of_all_sizes_lose_none_and_stay_within_memory(tmp_path: Path) -> None:
    rows = _rows()
    kind = pa.schema([("id", pa.string()), ("image", pa.binary())])
    (tmp_path / "source").mkdir()
    for part in range(4):
        table = pa.Table.from_pylist(rows[part::4], kind)
        pq.write_table(table, tmp_path / f"source/{part}.parquet")
    typed = [{"id": f"UnsupportedColumn-{n}", "image": n} for n in range(4)]
    pq.write_table(pa.Table.from_pylist(typed), tmp_path / "source/typed.parquet")
    assert len(rows) + len(typed) == 400

    before, peak, stop = _used(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not stop.wait(0.2):
            peak = max(peak, _used() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    command = [
        sys.executable,
        "-m",
        "jobs.restore",
        "--source",
        str(tmp_path / "source"),
        "--output",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    stop.set()
    watcher.join()
    assert done.returncode == 3, done.stderr
    out = pq.read_table(tmp_path / "out/data", columns=["id", "status", "error_stage", "error_type", "error_message"])
    table = out.to_pylist()
    assert sorted(row["id"] for row in table) == sorted(row["id"] for row in rows + typed)
    failed = [row for row in table if row["status"] == "failed"]
    assert Counter(row["id"].split("-")[0] for row in failed) == Counter(row["error_type"] for row in failed)
    assert len(failed) == 20
    assert all(row["error_stage"] == "decode" and len(row["error_message"]) > 15 for row in failed)
    assert peak < 8 * GIGABYTE, f"peak memory {peak / GIGABYTE:.1f} GB"
