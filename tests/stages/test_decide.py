"""Rows of the table become what persons have decided."""

from __future__ import annotations

import hashlib

import pyarrow as pa
import pytest

from pipeline.errors import ForbiddenURI
from pipeline.quality.gate import Decision
from pipeline.recipe import load_recipe
from pipeline.schema import OUTPUT, ROW_KEY
from pipeline.stages.decide import DecideStage
from tests.conftest import encoded, noise

ORIGINAL, RESULT = encoded(noise(20, 24), "JPEG"), encoded(noise(20, 24, 1))
ACCEPTED, REJECTED = Decision(True, "Ada on 2026-05-04"), Decision(False, "Ada on 2026-05-04 (too smooth)")


def _row(key: str) -> dict[str, object]:
    return {
        "image": RESULT,
        "image_format": "png",
        "image_width": 24,
        "image_height": 20,
        "image_bytes": len(RESULT),
        "image_sha256": hashlib.sha256(RESULT).hexdigest(),
        "source_sha256": hashlib.sha256(ORIGINAL).hexdigest(),
        "source_row": key,
        "result_id": f"result of {key}",
        "status": "review",
        "reasons": ["uncertain"],
        "noise_before": 12.0,
        "noise_after": 2.0,
        "psnr_before": 20.0,
        "psnr_after": 25.0,
        "change_psnr": 22.0,
        "before_preview": b"before",
        "after_preview": b"after",
        "run_id": "first",
        "attempts": 1,
    }


def _decided(decision: Decision, original: object, prefix: str = "") -> tuple[dict[str, object], dict[str, object]]:
    """A row before and after; the source holds `original`."""
    before = _row("a-0")
    schema = pa.schema([pa.field("id", pa.string()), *(field.with_name(prefix + field.name) for field in OUTPUT)])
    table = pa.Table.from_pylist([{"id": "x", **{prefix + name: value for name, value in before.items()}}], schema)

    def fetch(uri: str) -> bytes:
        raise ForbiddenURI(f"{uri} is gone")

    stage = DecideStage(
        *(load_recipe(overrides=[f"output.prefix={prefix!r}"]), "second", "image", {"result of a-0": decision}),
        lookup=lambda keys: table.take(pa.array([0] * len(keys))),
        fetch=fetch,
    )
    source = pa.table({"image": pa.array([original]), ROW_KEY: ["a-0"]})
    out = stage(source)
    assert out.schema == schema
    (row,) = out.to_pylist()
    assert row["id"] == "x"
    return before, {name: row[prefix + name] for name in OUTPUT.names}


@pytest.mark.parametrize("original", [ORIGINAL, "s3://bucket/gone.jpg", None])
def test_an_accepted_row_keeps_what_was_seen_whatever_became_of_its_source(original: object) -> None:
    before, after = _decided(ACCEPTED, original)
    changed = {"status": "restored", "run_id": "second", "reasons": ["accepted by Ada on 2026-05-04", "uncertain"]}
    assert after == dict.fromkeys(OUTPUT.names) | before | changed


@pytest.mark.parametrize("prefix", ["", "restored_"])
def test_a_rejected_row_gets_its_original_bytes_back(prefix: str) -> None:
    _, after = _decided(REJECTED, ORIGINAL, prefix)
    assert after["image"] == ORIGINAL and after["image_format"] == "jpeg" and after["image_bytes"] == len(ORIGINAL)
    assert after["image_sha256"] == after["source_sha256"] == hashlib.sha256(ORIGINAL).hexdigest()
    assert after["status"] == "kept" and after["reasons"][0] == "rejected by Ada on 2026-05-04 (too smooth)"  # type: ignore[index]
    assert after["noise_after"] == after["noise_before"] == 12.0 and after["psnr_after"] == 20.0
    assert after["after_preview"] == after["before_preview"] == b"before"
    assert after["change_psnr"] == 22.0  # of the result that was proposed


@pytest.mark.parametrize("original", ["s3://bucket/gone.jpg", None, RESULT])
def test_a_rejected_row_whose_original_cannot_be_had_stays_as_it_was(original: object) -> None:
    before, after = _decided(REJECTED, original)
    assert after == dict.fromkeys(OUTPUT.names) | before
