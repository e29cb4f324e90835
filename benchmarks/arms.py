"""Ways to restore the same images with the same model, each in its own process: `python -m benchmarks.arms ARM …`."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.work import BATCH, Marks, Restore, Row, decode, encode

Measured = dict[str, Any]


def run(arm: str, source: Path, place: Path, *options: str) -> Measured:
    """One arm in a process of its own: `speed` (megapixels a second in steady state), `first` (seconds from its start
    to its first rows), `seconds` in all, `rows`.

    Raises:
        RuntimeError: it failed.
    """
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    if arm == "conservator":
        job = [*("restore", "--source", str(source), "--output", str(place / "out"), "--set", "scoring.truth=false")]
        command = [sys.executable, "-m", "jobs.cli", *job, *options]
    else:
        command = [sys.executable, "-m", "benchmarks.arms", arm, str(source), str(place)]
    started, clock = time.time(), time.monotonic()
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    seconds = time.monotonic() - clock
    if done.returncode:
        raise RuntimeError(f"{arm} failed: {(done.stdout + done.stderr)[-2000:]}")
    if arm == "conservator":
        summary = json.loads((place / "out" / "summary.json").read_text())
        first = None if summary["first_at"] is None else summary["first_at"] - started
        return {"speed": summary["steady_speed"], "first": first, "seconds": seconds, "rows": summary["rows"]}
    speed, first_at, rows = Marks(place / "marks").steady()
    return {"speed": speed, "first": first_at - started, "seconds": seconds, "rows": rows}


def loop(source: Path, place: Path) -> None:
    """One process, one batch after the other."""
    restore = Restore()
    _write(place, (restore([decode(row) for row in rows]) for rows in batches(source)))


def ray_data(source: Path, place: Path) -> None:
    """As Ray's documentation shows it: batch inference with an actor pool."""
    import os

    import ray

    ray.init(address="local", include_dashboard=False, logging_level="warning", log_to_driver=False)
    marks = Marks(place / "marks")

    class Predictor:
        def __init__(self) -> None:
            self.restore = Restore(len(os.sched_getaffinity(0)))

        def __call__(self, batch: pa.Table) -> pa.Table:
            return pa.Table.from_pylist(self.restore(batch.to_pylist()))

    def finish(row: Row) -> Row:
        done = encode(row)
        marks.done([done])
        return done

    (
        ray.data.read_parquet(str(source))
        .map(decode)
        .map_batches(
            Predictor, batch_size=BATCH, batch_format="pyarrow", compute=ray.data.ActorPoolStrategy(size=1), num_cpus=1
        )
        .map(finish)
        .write_parquet(str(place / "out"))
    )


def huggingface(source: Path, place: Path) -> None:
    """`datasets.map` over batches."""
    import datasets

    datasets.disable_progress_bars()
    restore, marks = Restore(), Marks(place / "marks")

    def work(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        done = [encode(row) for row in restore([decode(row) for row in rows])]
        marks.done(done)
        return {name: [row[name] for row in done] for name in done[0]}

    files = sorted(str(path) for path in source.glob("*.parquet"))
    images = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(place / "cache"))
    images = images.map(work, batched=True, batch_size=BATCH, new_fingerprint="restored")
    images.to_parquet(str(place / "out.parquet"))


def loader(source: Path, place: Path) -> None:
    """A torch DataLoader decodes in a process beside the model's."""
    from torch.utils.data import DataLoader, IterableDataset

    class Images(IterableDataset[Row]):
        def __iter__(self) -> Iterator[Row]:
            for rows in batches(source):
                yield from map(decode, rows)

    _write(place, map(Restore(), DataLoader(Images(), batch_size=BATCH, num_workers=1, collate_fn=list)))


def daft(source: Path, place: Path) -> None:
    """Daft with a class that holds the model."""
    import daft as df
    from daft import DataType, Series

    marks = Marks(place / "marks")

    @df.udf(return_dtype=DataType.binary(), batch_size=BATCH)
    class Images:
        def __init__(self) -> None:
            self.restore = Restore()

        def __call__(self, ids: Series, images: Series, captions: Series) -> list[bytes]:
            columns = {"id": ids.to_pylist(), "image": images.to_pylist(), "caption": captions.to_pylist()}
            rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
            done = [encode(row) for row in self.restore([decode(row) for row in rows])]
            marks.done(done)
            return [row["image"] for row in done]

    images = df.read_parquet(str(source / "*.parquet"))
    restored = Images.with_concurrency(1)(images["id"], images["image"], images["caption"])
    images.with_column("restored", restored).write_parquet(str(place / "out"))


def _write(place: Path, restored: Iterable[list[Row]]) -> None:
    """Encode restored rows and write them, batch by batch."""
    marks, writer = Marks(place / "marks"), None
    for rows in restored:
        done = [encode(row) for row in rows]
        table = pa.Table.from_pylist(done)
        writer = writer or pq.ParquetWriter(place / "out.parquet", table.schema)
        writer.write_table(table)
        marks.done(done)
    assert writer is not None
    writer.close()


def batches(source: Path) -> Iterator[list[Row]]:
    """The source's rows, as they are."""
    for path in sorted(source.glob("*.parquet")):
        for batch in pq.ParquetFile(path).iter_batches(BATCH):
            yield batch.to_pylist()


ARMS: dict[str, Callable[[Path, Path], None]] = {
    "loop": loop,
    "ray": ray_data,
    "daft": daft,
    "datasets": huggingface,
    "loader": loader,
}


def main() -> None:
    """Run one arm here."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("arm", choices=ARMS)
    parser.add_argument("source", type=Path)
    parser.add_argument("place", type=Path)
    options = parser.parse_args()
    ARMS[options.arm](options.source, options.place)


if __name__ == "__main__":
    main()
