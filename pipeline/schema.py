"""The columns: what the stages hand on, and what stands in the output table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

Status = Literal["restored", "kept", "review", "generated", "failed"]
INTERNAL = "__conservator_"
"""What the names of a stage's columns begin with, until the last stage gives them their own."""
ROW_KEY = INTERNAL + "source_row"
"""The column of the rows' keys on the way from the source to the last stage."""

STATUSES: tuple[Status, ...] = ("restored", "kept", "review", "generated", "failed")
"""restored: repaired. kept: the original bytes, since nothing needed repair or the gate preferred them.
review: repaired, but a person should look. generated: made from the caption. failed: see the error columns."""

BLIND_SCORES = ("noise", "blockiness", "sharpness", "contrast", "clipped", "colourfulness", "brisque", "clip_score")
"""Scores of one image alone, before and after; see docs/scores.md for what each means."""
TRUTH_SCORES = ("psnr", "ssim", "ms_ssim", "haarpsi", "mdsi", "ciede2000", "lpips", "dists")
"""Scores against the truth, before and after."""
FIDELITY_SCORES = ("change_psnr", "changed_share", "colour_shift", "redamaged_psnr")
"""How far the result that was proposed is from the input, whether it was taken or not."""
FOUND = ("noise_sigma", "jpeg_quality", "blur_sigma", "downscale", "fading", "missing", "stained")
"""What the model found to be wrong."""
EXPECTED = ("clean_probability", "caption_agreement", "expected_psnr", "expected_gain", "worse_probability")
"""What the model thinks of image and result."""


def paired(names: Sequence[str]) -> tuple[str, ...]:
    """The columns of scores that are told before and after."""
    return tuple(f"{name}_{when}" for name in names for when in ("before", "after"))


EVIDENCE = (*FOUND, *EXPECTED, *FIDELITY_SCORES, *paired(BLIND_SCORES))
"""The numbers that the gate's rules may go by. It never sees the truth."""

ACTION = pa.struct([("name", pa.string()), ("strength", pa.float32())])
"""Something that was done, with the measure of the damage that called for it, in the unit of its column."""

OUTPUT = pa.schema(
    [
        pa.field("image", pa.large_binary()),  # the image file; null if failed, or if image_uri names it
        pa.field("image_uri", pa.string()),  # of the image file, with output.images: files
        pa.field("image_bytes", pa.int64()),  # its size
        pa.field("image_format", pa.string()),  # png, jpeg, …
        pa.field("image_width", pa.int32()),  # pixels
        pa.field("image_height", pa.int32()),  # pixels
        pa.field("image_sha256", pa.string()),  # of the output file
        pa.field("image_pixels_sha256", pa.string()),  # of the samples in it, upright
        pa.field("image_layout", pa.string()),  # channels and depth of the output file, such as rgb+alpha, 16 bits
        pa.field("encoding_psnr", pa.float32()),  # dB, of the file against what it was to hold; null: lossless, or kept
        pa.field("source_sha256", pa.string()),  # of the input file
        pa.field("source_pixels_sha256", pa.string()),  # of the samples in it, upright
        pa.field("source_layout", pa.string()),  # channels and depth of the input file
        pa.field("source_uri", pa.string()),  # where the row named one
        pa.field("result_id", pa.string()),  # SHA-256 of all that the result follows from: inputs, settings, model
        pa.field("source_row", pa.string()),  # unique: 16 digits that stand for the input file, a dash, its row number
        pa.field("status", pa.string()),  # one of STATUSES
        pa.field("reasons", pa.list_(pa.string())),  # why the gate decided so
        pa.field("notes", pa.list_(pa.string())),  # what else was done or left out, such as what a file cannot hold
        pa.field("error_stage", pa.string()),  # decode, restore or encode
        pa.field("error_type", pa.string()),  # a name from pipeline/errors.py
        pa.field("error_message", pa.string()),
        pa.field("attempts", pa.int32()),  # how often the failing step was tried
        pa.field("noise_sigma", pa.float32()),  # found, of 0..255
        pa.field("jpeg_quality", pa.float32()),  # found, 1..100
        pa.field("blur_sigma", pa.float32()),  # found, pixels
        pa.field("downscale", pa.float32()),  # found, factor
        pa.field("fading", pa.float32()),  # found, share 0..1
        pa.field("missing", pa.float32()),  # share 0..1: of the mask given, else found
        pa.field("stained", pa.float32()),  # found, share 0..1 of the area
        pa.field("grey", pa.bool_()),  # the input had no colours
        pa.field("clean_probability", pa.float32()),  # 0..1
        pa.field("caption_agreement", pa.float32()),  # 0..1; null without a caption
        pa.field("expected_psnr", pa.float32()),  # dB, of the result, in the likely case, by the model
        pa.field("expected_gain", pa.float32()),  # dB, of the PSNR, from input to result
        pa.field("worse_probability", pa.float32()),  # 0..1, that the result is farther from the truth than the input
        pa.field("change_psnr", pa.float32()),  # dB, the result against the input; 100 if equal
        pa.field("changed_share", pa.float32()),  # 0..1, of the pixels, visibly
        pa.field("colour_shift", pa.float32()),  # CIEDE2000, of colours over a coarse grid
        pa.field("redamaged_psnr", pa.float32()),  # dB, the input against the result with the damage put back
        pa.field("subjects", pa.list_(pa.string())),  # face, text: likely; looked for where it matters
        *(pa.field(name, pa.float32()) for name in paired(BLIND_SCORES)),  # of input and output
        *(pa.field(name, pa.float32()) for name in paired(TRUTH_SCORES)),  # of input and output; null without a truth
        pa.field("actions", pa.list_(ACTION)),  # what was done to get the output; empty if it was kept
        pa.field("digital_source", pa.string()),  # IPTC's name of what kind of picture the output is; null if kept
        pa.field("change_mask", pa.binary()),  # small grey PNG: how much of each place was visibly changed
        pa.field("seed", pa.int64()),  # of what was drawn at random; null: nothing was
        pa.field("restore_seconds", pa.float32()),  # of the model; the row's share of its batch, by pixels
        pa.field("score_seconds", pa.float32()),  # of scores and gate; its share likewise
        pa.field("before_preview", pa.binary()),  # small JPEG
        pa.field("after_preview", pa.binary()),  # small JPEG
        pa.field("model", pa.string()),
        pa.field("model_sha256", pa.string()),
        pa.field("model_license", pa.string()),
        pa.field("software", pa.string()),  # names and versions
        pa.field("device", pa.string()),
        pa.field("restored_at", pa.timestamp("us", "UTC")),
        pa.field("recipe_digest", pa.string()),
        pa.field("run_id", pa.string()),
    ]
)
"""The columns that conservator adds; the source's own come before them."""

ERROR_FIELDS = [OUTPUT.field(name) for name in ("error_stage", "error_type", "error_message", "attempts")]


def megapixels(table: pa.Table, prefix: str = "") -> pa.ChunkedArray:
    """Of each row of an output table; null without an image."""
    width, height = (table[prefix + name].cast(pa.float64()) for name in ("image_width", "image_height"))
    return pc.divide(pc.multiply(width, height), 1e6)


_REFERENCE = pa.struct([("pixels", pa.large_binary()), ("height", pa.int32()), ("width", pa.int32())])

DECODED = pa.schema(
    [
        pa.field("file", pa.large_binary()),  # the image file as it came
        pa.field("format", pa.string()),
        pa.field("pixels", pa.large_binary()),  # in the working space, height x width x channels
        pa.field("height", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("channels", pa.int32()),  # 1 grey, 3 RGB
        pa.field("depth", pa.int32()),  # 8 or 16: bits of a sample of `pixels`
        pa.field("mask", pa.large_binary()),  # bool, height x width, where lost: as given, and where the file is broken
        pa.field("mask_given", pa.bool_()),
        pa.field("broken", pa.string()),  # what is wrong with the file
        pa.field("lost", pa.string()),  # why there is no image, where one is to be made of the caption
        pa.field("large", pa.string()),  # URI of a file that is restored from there: its bytes and pixels are not here
        pa.field("root", pa.string()),  # the place in the source below which such a row lies
        pa.field("truth", pa.large_binary()),  # uint8, height x width x 3
        pa.field("references", pa.list_(_REFERENCE)),  # uint8 RGB
        pa.field("caption", pa.string()),
        pa.field("further_captions", pa.list_(pa.string())),
        pa.field("notes", pa.list_(pa.string())),
        pa.field("before_preview", pa.binary()),
        pa.field("source_row", pa.string()),
        pa.field("source_uri", pa.string()),
        pa.field("source_sha256", pa.string()),
        pa.field("source_pixels_sha256", pa.string()),
        pa.field("source_layout", pa.string()),
        pa.field("inputs_sha256", pa.string()),  # of image, mask, references and captions
        *ERROR_FIELDS,
    ]
)
"""What decoding hands to restoring, beside the source's own columns. One row an image."""

_LEFT_BEHIND = (
    *("mask", "mask_given", "broken", "lost", "large", "root"),
    *("truth", "references", "caption", "further_captions", "inputs_sha256"),
)

RESTORED = pa.schema(
    [
        *(DECODED.field(name) for name in DECODED.names if name not in _LEFT_BEHIND),
        *(
            OUTPUT.field(name)
            for name in OUTPUT.names
            if name
            in (
                *(
                    "status",
                    "reasons",
                    "image_uri",
                    "image_bytes",
                    "image_format",
                    "image_sha256",
                    "image_pixels_sha256",
                    "image_layout",
                    "after_preview",
                    "grey",
                    "result_id",
                    "subjects",
                    "actions",
                    "digital_source",
                    "change_mask",
                    "seed",
                    "restore_seconds",
                    "score_seconds",
                    "model",
                    "model_sha256",
                    "model_license",
                    "software",
                    "device",
                    "restored_at",
                ),
                *EVIDENCE,
                *paired(TRUTH_SCORES),
            )
        ),
    ]
)
"""What restoring hands to encoding; `pixels` now holds the restored ones, null where the original is kept."""
