"""A damaged archive from undamaged images: files with their truth, and the record of what was done."""

from __future__ import annotations

import dataclasses
import io
import random
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from pipeline.damage.mixture import damage_one
from pipeline.damage.planes import Pixels, as_pixels, as_planes
from pipeline.damage.record import Damage
from pipeline.damage.strengths import Strengths


class DamagedFile(NamedTuple):
    """One image as an archive would hold it."""

    image: bytes  # PNG, or JPEG where that was the last damage
    truth: bytes  # JPEG; its pixels are exactly what was damaged
    mask: bytes | None  # PNG, white where the picture is lost
    record: Damage


def damage_file(pixels: Pixels, kinds: list[str], seed: str, strengths: Strengths | None = None) -> DamagedFile:
    """Damage one image [H, W, 3].

    Args:
        pixels: the undamaged image.
        kinds: what happens to it, in order; names from `KINDS`.
        seed: the same text gives the same damage.
        strengths: how strong; the defaults are those of training.
    """
    dice = random.Random(seed)
    generator = torch.Generator().manual_seed(dice.getrandbits(62))
    truth = _file(pixels, "JPEG", quality=93)
    shown = np.asarray(Image.open(io.BytesIO(truth)).convert("RGB"))
    saved_as_jpeg = kinds[-1:] == ["jpeg"]
    drawn = kinds[:-1] if saved_as_jpeg else kinds
    image, mask, record = damage_one(as_planes(shown), drawn, dice, generator, strengths)
    damaged = as_pixels(image)
    if saved_as_jpeg:
        quality = round(dice.uniform(*(strengths or Strengths()).jpeg_quality))
        file = _file(damaged, "JPEG", quality=quality)
        record = dataclasses.replace(record, jpeg_quality=min(float(quality), record.jpeg_quality))
    else:
        file = _file(damaged[..., 0] if record.grey else damaged, "PNG", optimize=True)
    lost = (mask[0, 0].numpy() * 255).astype(np.uint8)
    return DamagedFile(file, truth, _file(lost, "PNG", optimize=True) if lost.any() else None, record)


def _file(pixels: Pixels, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, **options)
    return file.getvalue()
