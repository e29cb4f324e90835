"""What is told of how a result came about."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.imaging.xmp import COMPOSITE, ENHANCED, GENERATED, Provenance
from pipeline.quality.gate import CHANGED, LEAST_FILL

if TYPE_CHECKING:
    from pipeline.restoration.canvas import Restored

MASK_SIDE = 160
"""Longest side in pixels of a mask of what was changed."""
STEP = 17
"""Of its greys: it has 16, and is small."""
STRIP = 512
"""Rows that are compared at a time."""
_ACTIONS = (
    ("denoise", "noise_sigma", 1.0),
    ("deblock", "jpeg_loss", 5.0),
    ("sharpen", "blur_sigma", 0.3),
    ("add detail", "downscale", 0.1),
    ("restore tones", "fading", 0.03),
    ("remove stains", "stained", 0.0001),
)
"""What is said to have been done where so much of a damage was found."""


def actions(result: Restored, coloured: bool, repaired: bool) -> list[dict[str, Any]]:
    """What was done, each with the measure of the damage that called for it.

    Args:
        result: what came of an image.
        coloured: whether it was given colours.
        repaired: whether anything else of the result was taken.
    """
    damage = result.damage
    found = {
        "noise_sigma": damage.noise_sigma,
        "jpeg_loss": 100 - damage.jpeg_quality,
        "blur_sigma": damage.blur_sigma,
        "downscale": damage.downscale - 1,
        "fading": damage.fading,
        "stained": damage.stained,
    }
    ours = repaired and result.repaired
    done = [(name, found[measure]) for name, measure, least in _ACTIONS if ours and found[measure] >= least]
    done += result.others if repaired else ()
    if repaired and damage.missing > 0:
        done.append(("fill", damage.missing))
    if coloured:
        done.append(("colourise", 1.0))
    return [{"name": name, "strength": strength} for name, strength in done]


def digital_source(result: Restored, coloured: bool) -> str:
    """IPTC's name for what the picture is: improved, or partly made up, where parts were filled or colours invented."""
    made_up = coloured or result.seed is not None or result.damage.missing >= LEAST_FILL
    return COMPOSITE if made_up else ENHANCED


def provenance(cell: Mapping[str, Any]) -> Provenance:
    """What is said of a row's result in its file; the row is restored."""
    source = (None, None) if cell["digital_source"] == GENERATED else (cell["source_sha256"], cell["source_uri"])
    return Provenance(
        source_sha256=source[0],
        source_uri=source[1],
        digital_source=cell["digital_source"],
        software=f"{cell['software']}, model {cell['model']} {cell['model_sha256'][:16]}",
        actions=[f"{action['name']} ({action['strength']:.3g})" for action in cell["actions"]],
    )


def change_mask(before: npt.NDArray[np.uint8], after: npt.NDArray[np.uint8]) -> bytes:
    """A small grey PNG: how much of each place was visibly changed; both [H, W, 3]."""
    height, width = before.shape[:2]
    marked = np.empty((height, width), np.uint8)
    for top in range(0, height, STRIP):
        one, other = (image[top : top + STRIP].astype(np.int16) for image in (before, after))
        marked[top : top + STRIP] = 255 * (np.abs(one - other) > CHANGED).any(2)
    image = Image.fromarray(marked)
    scale = min(1.0, MASK_SIDE / max(height, width))
    image = image.resize((max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.BOX)
    image = image.point([STEP * round(value / STEP) for value in range(256)])
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()
