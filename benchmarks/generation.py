"""What a generator's pictures are worth: do they show what their captions say, and how near are they to photographs?

    python -m benchmarks.generation --generator runs/pictures/model --held-out dev.parquet --train train.parquet \\
        --grid grid.png

Agreement of each picture with its own caption and with the next one's, by the encoders of compact, which has neither
made nor seen them: the pictures are judged as the generator gives them. The sign-flip test says how likely the
difference is by chance. Fréchet distance (arXiv:1706.08500)
between means and covariances of the restorer's image features over pictures and held-out photographs; for comparison,
that of as many other photographs, and of the photographs' mean colours.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import scipy.linalg
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from pipeline.evaluation.tables import read_samples
from pipeline.lake.tables import open_tables
from pipeline.restoration.generation import TOGETHER, PictureMaker
from pipeline.restoration.request import Request
from pipeline.restoration.restorer import Restorer

FLIPS = 20_000
COLUMNS, CELL, TEXT = 6, 128, 34
"""Of the grid: pictures in a row, their side and the height of a caption in pixels."""


def agreements(restorer: Restorer, pictures: list[np.ndarray], captions: list[str]) -> np.ndarray:
    """Of each picture with each caption in the same place."""
    pairs = zip(pictures, captions, strict=True)
    return np.array([restorer.agreement(Request(pixels, caption=caption)) for pixels, caption in pairs])


def chance(differences: np.ndarray) -> float:
    """How likely a mean as high as this is, if each difference might as well have the other sign."""
    signs = np.random.default_rng(0).choice([-1, 1], (FLIPS, len(differences)))
    return float((1 + ((signs * differences).mean(1) >= differences.mean()).sum()) / (1 + FLIPS))


def features(restorer: Restorer, pictures: list[np.ndarray]) -> np.ndarray:
    """[N, C]: the image encoder's coarsest features, averaged; all pictures are seen at the size of the first."""
    side = restorer.config.thumbnail
    found = []
    with torch.inference_mode():
        for pixels in pictures:
            planes = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None].float() / 255
            small = F.interpolate(planes, size=pictures[0].shape[:2], mode="bilinear", antialias=True)
            thumbnail = F.interpolate(small, size=(side, side), mode="bilinear", antialias=True)
            masked = torch.cat([thumbnail, torch.zeros_like(thumbnail[:, :1])], dim=1).to(restorer.device)
            found.append(restorer._model.image_encoder(masked)[-1].float().mean((2, 3))[0].cpu().numpy())
    return np.stack(found)


def frechet(one: np.ndarray, other: np.ndarray) -> float:
    """Distance between two sets of features, [N, C] and [M, C]."""
    shift = np.square(one.mean(0) - other.mean(0)).sum()
    covariances = [np.cov(part, rowvar=False) for part in (one, other)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1])
    return float(shift + np.trace(covariances[0] + covariances[1] - 2 * np.real(root)))


def grid(path: Path, pictures: list[np.ndarray], captions: list[str]) -> None:
    """Pictures with their captions below."""
    rows = -(-len(pictures) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * CELL, rows * (CELL + TEXT)), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (pixels, caption) in enumerate(zip(pictures, captions, strict=True)):
        left, top = index % COLUMNS * CELL, index // COLUMNS * (CELL + TEXT)
        sheet.paste(Image.fromarray(pixels).resize((CELL, CELL)), (left, top))
        words, lines = caption.split(), [""]
        for word in words:
            if len(lines[-1]) + len(word) > 22:
                lines.append("")
            lines[-1] += f" {word}"
        draw.text((left + 2, top + CELL + 1), "\n".join(lines[:3]), fill="black", font_size=9)
    sheet.save(path)


def main() -> None:
    """Measure, and print Markdown and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generator", required=True)
    parser.add_argument("--held-out", required=True, help="photographs with captions that nothing was trained on")
    parser.add_argument("--train", required=True, help="other photographs, to compare distances with")
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--grid", type=Path, help="a PNG of the first 24 pictures")
    options = parser.parse_args()
    restorer = Restorer.from_pretrained()
    held_out = [sample for sample in read_samples(open_tables([options.held_out]), options.limit) if sample.captions]
    others = [sample.pixels for sample in read_samples(open_tables([options.train]), options.limit)]
    captions = [sample.captions[0] for sample in held_out]
    maker = PictureMaker.from_pretrained(options.generator, restorer)
    pictures = []
    for start in range(0, len(captions), TOGETHER):
        some = captions[start : start + TOGETHER]
        planes = maker.small(some, range(start, start + len(some)))
        pictures += list((planes * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy())
    own = agreements(restorer, pictures, captions)
    wrong = agreements(restorer, pictures, captions[1:] + captions[:1])
    photographs = [sample.pixels for sample in held_out]
    real = features(restorer, [pictures[0], *photographs])[1:]
    seen = features(restorer, pictures)
    flat = [np.broadcast_to(pixels.mean((0, 1)).astype(np.uint8), pixels.shape) for pixels in photographs]
    found = {
        "pictures": len(pictures),
        "own caption": float(own.mean()),
        "another's": float(wrong.mean()),
        "own is higher": float((own > wrong).mean()),
        "p": chance(own - wrong),
        "photographs, own caption": float(agreements(restorer, photographs, captions).mean()),
        "Fréchet distance": frechet(seen, real),
        "of other photographs": frechet(features(restorer, [pictures[0], *others])[1:], real),
        "of flat colours": frechet(features(restorer, [pictures[0], *flat])[1:], real),
    }
    if options.grid:
        grid(options.grid, pictures[:24], captions[:24])
    lines = ["| | |", "|---|---|", *(f"| {name} | {value:.4g} |" for name, value in found.items())]
    sys.stdout.write("\n".join(lines) + "\n\n" + json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
