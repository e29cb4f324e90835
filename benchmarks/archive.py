"""Archives of any size to measure on, made of the samples' photographs: the same ones each time."""

from __future__ import annotations

import io
import math
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.restoration.request import as_captions

SAMPLES = Path(__file__).parent.parent / "samples" / "archive"
SCHEMA = pa.schema([("id", pa.string()), ("image", pa.large_binary()), ("caption", pa.string())])


def build(folder: Path, images: int, files: int, sides: tuple[int, int] = (160, 512), seed: int = 0) -> float:
    """Write Parquet files of noisy JPEG images of mixed sizes.

    Args:
        folder: gets `part-00000.parquet` and so on.
        images: how many in all.
        files: in how many files of about equally many rows.
        sides: shortest and longest side in pixels; their logarithms are evenly spread, and so are portrait and
            landscape.
        seed: draws sizes, crops and noise.

    Returns:
        Megapixels in all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures = list(_photographs())
    dice, noise = random.Random(seed), np.random.default_rng(seed)
    megapixels = 0.0
    for number in range(files):
        rows = []
        for index in range(number * images // files, (number + 1) * images // files):
            photo, caption = pictures[index % len(pictures)]
            width, height = (round(math.exp(dice.uniform(*map(math.log, sides)))) for _ in range(2))
            crop = _crop(photo, width, height, dice)
            pixels = np.asarray(crop) + noise.normal(0, dice.uniform(0, 20), (height, width, 3))
            megapixels += width * height / 1e6
            data = io.BytesIO()
            damaged = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            damaged.save(data, "JPEG", quality=dice.randint(60, 90))
            rows.append({"id": f"image-{index:06d}", "image": data.getvalue(), "caption": caption})
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), folder / f"part-{number:05d}.parquet", row_group_size=64)
    return megapixels


def _photographs() -> Iterator[tuple[Image.Image, str]]:
    table = pq.read_table(SAMPLES, columns=["truth", "caption"])
    for row in table.to_pylist():
        if row["truth"] is not None:
            yield Image.open(io.BytesIO(row["truth"])).convert("RGB"), next(iter(as_captions(row["caption"])), "")


def _crop(photo: Image.Image, width: int, height: int, dice: random.Random) -> Image.Image:
    """A random part of a photograph with these proportions, at this size."""
    scale = min(photo.width / width, photo.height / height)
    wide, high = min(photo.width, width * scale), min(photo.height, height * scale)
    left, top = dice.uniform(0, photo.width - wide), dice.uniform(0, photo.height - high)
    box = (left, top, left + wide, top + high)
    return photo.resize((width, height), Image.Resampling.BICUBIC, box=box)
