"""damage: make a damaged archive, with its truth and a record of what was done, from undamaged images."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from jobs.console import OK, main, positive
from pipeline.damage.archive import damage_file
from pipeline.damage.mixture import KINDS
from pipeline.damage.sheet import sheet
from pipeline.errors import RecipeError, SourceError
from pipeline.evaluation.tables import Sample, read_samples
from pipeline.lake.tables import open_tables

USUAL = "noise,jpeg,blur,low_resolution,fading,grey,holes,scratches,worn,noise+jpeg,clean"
PASSED = ("source", "license", "attribution")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument(
        "--source", action="append", required=True, metavar="PATH_OR_URL", help="undamaged images; may be repeated"
    )
    made = parser.add_mutually_exclusive_group(required=True)
    made.add_argument("--output", type=Path, metavar="FILE", help="Parquet table to write")
    made.add_argument(
        "--sheet", type=Path, metavar="FILE", help="a picture of every kind at three strengths, of the first image"
    )
    parser.add_argument(
        "--kinds",
        default=USUAL,
        help=f"what happens to the images in turn; of {', '.join(KINDS)}, several joined by + ({USUAL})",
    )
    parser.add_argument("--ids", default="", help="only these rows, in this order; separated by commas")
    parser.add_argument("--max-side", type=int, default=0, metavar="PIXELS", help="shrink larger images first")
    parser.add_argument("--hide-masks", action="store_true", help="do not write masks, as archives have none")
    parser.add_argument(
        "--references", action="store_true", help="give greys and holes another crop of the same picture"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N images")


def run(arguments: argparse.Namespace) -> int:
    """Write the damaged table."""
    kinds = [entry.split("+") for entry in arguments.kinds.split(",")]
    unknown = sorted({kind for entry in kinds for kind in entry} - set(KINDS))
    if unknown:
        raise RecipeError(f"--kinds: unknown {', '.join(unknown)}; known are {', '.join(KINDS)}")
    samples = read_samples(open_tables(arguments.source))
    if arguments.ids:
        by_id = {sample.id: sample for sample in samples}
        missing = [name for name in arguments.ids.split(",") if name not in by_id]
        if missing:
            raise RecipeError(f"--ids: the source has no {', '.join(missing)}")
        samples = [by_id[name] for name in arguments.ids.split(",")]
    if not samples:
        raise SourceError(f"there are no images in {', '.join(arguments.source)}")
    samples = samples[: arguments.limit]
    if arguments.sheet:
        if arguments.sheet.suffix.lower() not in Image.registered_extensions():
            raise RecipeError(f"--sheet {arguments.sheet}: give it the ending of an image format, such as .png")
        arguments.sheet.parent.mkdir(parents=True, exist_ok=True)
        sheet(samples[0].pixels, arguments.seed).save(arguments.sheet)
        print(f"the sheet is in {arguments.sheet}")
        return OK
    rows = [_row(sample, kinds[number % len(kinds)], arguments) for number, sample in enumerate(samples)]
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, _schema(rows)), arguments.output, compression="zstd")
    print(f"{len(rows)} damaged images in {arguments.output} ({arguments.output.stat().st_size / 1e6:.1f} MB)")
    return OK


def _row(sample: Sample, kinds: list[str], arguments: argparse.Namespace) -> dict[str, Any]:
    pixels = sample.pixels
    if arguments.max_side and max(pixels.shape[:2]) > arguments.max_side:
        picture = Image.fromarray(pixels)
        picture.thumbnail((arguments.max_side, arguments.max_side), Image.Resampling.LANCZOS)
        pixels = np.asarray(picture)
    done = damage_file(pixels, kinds, f"{arguments.seed}/{sample.id}")
    with Image.open(io.BytesIO(done.image)) as image:
        width, height = image.size
    return {
        "id": sample.id,
        "image": done.image,
        "width": width,
        "height": height,
        "caption": list(sample.captions),
        "mask": None if arguments.hide_masks else done.mask,
        "references": _references(done.truth) if arguments.references and {"grey", "holes"} & set(kinds) else None,
        "truth": done.truth,
        "damage": json.dumps({"kinds": kinds, **dataclasses.asdict(done.record)}),
        **{name: sample.row.get(name) for name in PASSED},
    }


def _references(truth: bytes) -> list[bytes]:
    """The lower right part of the picture, in colour, as another photo of the same subject might show it."""
    with Image.open(io.BytesIO(truth)) as picture:
        width, height = picture.size
        crop = picture.crop((width * 3 // 10, height * 3 // 10, width, height))
    file = io.BytesIO()
    crop.save(file, "JPEG", quality=85)
    return [file.getvalue()]


def _schema(rows: list[dict[str, Any]]) -> pa.Schema:
    kinds = {"image": pa.binary(), "mask": pa.binary(), "truth": pa.binary(), "caption": pa.list_(pa.string())}
    kinds |= {"references": pa.list_(pa.binary())}
    kinds |= {"width": pa.int32(), "height": pa.int32()}
    names = list(rows[0])
    return pa.schema([(name, kinds.get(name, pa.string())) for name in names])


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__]))
