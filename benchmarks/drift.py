"""How far restoring moves the colours of pictures that have not faded.

    python -m benchmarks.drift kodak24.parquet [--limit 8] [--model compact]

Mean CIEDE2000 over a grid of 16 x 16 cells, from what goes in to what comes out, and of both from the truth. Noise
alone moves the cells of small pictures: take large ones.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from pipeline.lake.tables import open_tables
from pipeline.quality.fidelity import colour_shift
from pipeline.restoration.request import Request
from pipeline.restoration.restorer import Restorer

Pixels = np.ndarray


def noisy(sigma: float) -> Callable[[Pixels], Pixels]:
    """Adds noise, clipped."""
    dice = np.random.default_rng(0)
    return lambda picture: np.rint((picture + dice.normal(0, sigma, picture.shape)).clip(0, 255)).astype(np.uint8)


def compressed(picture: Pixels) -> Pixels:
    """As JPEG of quality 20."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=20)
    return np.asarray(Image.open(file))


def halved(picture: Pixels) -> Pixels:
    """At half the resolution, enlarged again."""
    image = Image.fromarray(picture)
    small = image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC)
    return np.asarray(small.resize(image.size, Image.Resampling.BICUBIC))


CASES: dict[str, Callable[[Pixels], Pixels]] = {
    "undamaged": lambda picture: picture,
    "noise, sigma 10": noisy(10),
    "noise, sigma 25": noisy(25),
    "JPEG, quality 20": compressed,
    "low resolution, x2": halved,
}


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images")
    parser.add_argument("--limit", type=int, default=8)
    parser.add_argument("--model", default="compact")
    options = parser.parse_args()
    pictures = []
    for table in open_tables([options.images]):
        for row in table.rows(["image"]):
            if len(pictures) < options.limit:
                pictures.append(table.decode(row, "image"))
    restorer = Restorer.from_pretrained(options.model)
    sys.stdout.write(
        "| damage | input to result, mean (largest) | truth to input | truth to result |\n|---|---|---|---|\n"
    )
    for name, damage in CASES.items():
        found = []
        for truth in pictures:
            damaged = damage(truth)
            result = restorer.restore_batch([Request(damaged)])[0].pixels
            three = [torch.from_numpy(part.copy())[None] for part in (truth, damaged, result)]
            pairs = ((three[1], three[2]), (three[0], three[1]), (three[0], three[2]))
            found.append([float(colour_shift(*pair)) for pair in pairs])
        moved, before, after = np.asarray(found).T
        sys.stdout.write(
            f"| {name} | {moved.mean():.2f} ({moved.max():.2f}) | {before.mean():.2f} | {after.mean():.2f} |\n"
        )


if __name__ == "__main__":
    main()
