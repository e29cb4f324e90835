"""What a user's own script would do with Conservator's model: decode, restore, score, encode."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import torch
from PIL import Image

from pipeline.imaging.tiff_output import DEFLATE_LEVEL
from pipeline.quality.appraise import Appraiser, Case
from pipeline.recipe import Recipe
from pipeline.restoration.request import Request
from pipeline.restoration.restorer import Restorer

BATCH = 16
"""Images restored together."""
SCORES = ("clean_probability", "expected_psnr", "expected_gain", "change_psnr", "noise_before", "noise_after")
"""Those that are written."""
Row = dict[str, Any]


def decode(row: Row) -> Row:
    """Pixels of an image file."""
    with Image.open(io.BytesIO(row["image"])) as image:
        pixels = np.asarray(image.convert("RGB"))
    return {
        "id": row["id"],
        "caption": row["caption"],
        "file": row["image"],
        "pixels": pixels.tobytes(),
        "height": pixels.shape[0],
        "width": pixels.shape[1],
    }


class Restore:
    """The model, its scores and the gate."""

    def __init__(self, threads: int | None = None) -> None:
        """On a GPU if there is one, else on so many threads (all cores)."""
        torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
        self._restorer = Restorer.from_pretrained("compact")
        self._appraiser = Appraiser(Recipe(), self._restorer.device)

    def __call__(self, rows: Sequence[Row]) -> list[Row]:
        """Decoded rows -> rows with the pixels that are to be written, a status and scores."""
        pixels = [np.frombuffer(row["pixels"], np.uint8).reshape(row["height"], row["width"], 3) for row in rows]
        captions = [row["caption"] for row in rows]
        requests = [Request(image, caption=caption) for image, caption in zip(pixels, captions, strict=True)]
        results = self._restorer.restore_batch(requests)
        cases = [
            Case(before=image, result=result, caption=caption)
            for image, result, caption in zip(pixels, results, captions, strict=True)
        ]
        out = []
        for row, image, verdict in zip(rows, pixels, self._appraiser(cases), strict=True):
            after = image if verdict.after is None else verdict.after
            told = verdict.scores
            scores = {name: float("nan") if told.get(name) is None else told[name] for name in SCORES}
            out.append(row | {"pixels": after.tobytes(), "status": verdict.status} | scores)
        return out


def encode(row: Row) -> Row:
    """The image as a PNG file in place of its pixels, as fast as the job makes it; what is kept stays as it was."""
    image = row["file"]
    if row["status"] != "kept":
        pixels = np.frombuffer(row["pixels"], np.uint8).reshape(row["height"], row["width"], 3)
        image = bytes(imagecodecs.png_encode(pixels, DEFLATE_LEVEL))
    return {name: value for name, value in row.items() if name not in ("pixels", "file")} | {"image": image}


class Marks:
    """When how much was done, written down by any number of processes."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def done(self, rows: Sequence[Row]) -> None:
        """These rows are."""
        megapixels = sum(row["height"] * row["width"] for row in rows) / 1e6
        with self._path.open("a") as file:
            file.write(f"{time.time()} {megapixels} {len(rows)}\n")

    def steady(self) -> tuple[float, float, int]:
        """Megapixels a second from the first mark to the last; when the first was, by the clock; rows in all."""
        marks = [tuple(map(float, line.split())) for line in self._path.read_text().splitlines()]
        marks.sort()
        (first, begun, _), last = marks[0], marks[-1][0]
        return (sum(done for _, done, _ in marks) - begun) / (last - first), first, int(sum(mark[2] for mark in marks))
