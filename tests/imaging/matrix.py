"""What goes in, what comes out and what is kept, file by file: the table in docs/formats.md.

`python -m tests.imaging.matrix` writes it there.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.imaging.decode import decode_image
from pipeline.imaging.encode import encode_image
from pipeline.imaging.original import COLOURS, Original
from pipeline.imaging.working import from_working, to_working
from pipeline.imaging.xmp import ENHANCED, Provenance, with_provenance
from tests.imaging.files import TAGS, read_tags, suffix, write_all

DOCUMENT = Path(__file__).parent.parent.parent / "docs/formats.md"
START, END = "<!-- the table is made by python -m tests.imaging.matrix -->", "<!-- its end -->"
CHANGED = (slice(8, 16), slice(24, 32))
"""Where the picture is changed on its way."""


class Line(NamedTuple):
    """One file's way."""

    name: str
    comes_in: str
    goes_out: str
    samples: str
    blocks: dict[str, str]
    """Of each kind of metadata: kept, none (there was none), or left out (a note says so)."""
    notes: tuple[str, ...]


def restored(data: bytes) -> tuple[Original, Original, Any]:
    """An original, what a small repair makes of it, and the file."""
    original = decode_image(data)
    before = to_working(original).pixels
    after = before.copy()
    after[CHANGED] = after[CHANGED] // 2
    picture, notes = from_working(original, before, after), list[str]()
    told = Provenance("0" * 64, "scan", ENHANCED, "test", ["denoise"])
    xmp = with_provenance(picture.metadata.xmp, told, notes)
    picture = dataclasses.replace(picture, metadata=dataclasses.replace(picture.metadata, xmp=xmp))
    encoded = encode_image(picture)
    return (
        original,
        picture,
        encoded._replace(notes=(*original.notes, *to_working(original).notes, *notes, *encoded.notes)),
    )


def lines() -> list[Line]:
    """All files' ways; exiftool is the witness of what is kept."""
    with tempfile.TemporaryDirectory() as place:
        sources, results = Path(place, "in"), Path(place, "out")
        sources.mkdir(), results.mkdir()
        found = {}
        for name, path in write_all(sources).items():
            original, picture, encoded = restored(path.read_bytes())
            written = results / f"{path.stem}.{suffix(encoded.format)}"
            written.write_bytes(encoded.data)
            found[name] = (path, written, original, picture, encoded)
        before, after = read_tags(sources), read_tags(results)
        return [
            Line(
                name,
                original.layout,
                f"{encoded.format}: {decode_image(encoded.data).layout}",
                _samples(original, picture, decode_image(encoded.data)),
                _blocks(before.get(path.name, {}), after[written.name]),
                encoded.notes,
            )
            for name, (path, written, original, picture, encoded) in found.items()
        ]


def _samples(original: Original, picture: Original, written: Original) -> str:
    """What became of the samples where nothing was changed, and of those behind the colours."""
    untouched = np.ones(original.size, bool)
    untouched[CHANGED] = False
    colours = COLOURS[original.space]
    exact = (picture.samples[untouched] == original.samples[untouched]).all()
    further = (picture.samples[..., colours:] == original.samples[..., colours:]).all()
    assert exact and further, "what was not changed has changed"
    assert (picture.samples[CHANGED] != original.samples[CHANGED]).any()
    if written.white == picture.white and written.samples.dtype == picture.samples.dtype:
        assert (written.samples == picture.samples).all(), "the file holds other samples"
        return "exact"
    scale = written.white / picture.white
    assert (np.rint(written.samples / scale) == picture.samples).all()
    return "exact, scaled"


def _blocks(before: dict[str, Any], after: dict[str, Any]) -> dict[str, str]:
    found = {kind: _kept(kind, before, after) for kind in TAGS}
    for kind, wanted in (("resolution", "XResolution"), ("profile", "ProfileDescription")):
        there, here = _told(before, wanted), _told(after, wanted)
        kept = (
            there and here and all(abs(float(a) - 300) < 0.6 for a in here) if kind == "resolution" else there == here
        )
        found[kind] = "none" if not there else "kept" if kept else "left out"
    return found


def _kept(kind: str, before: dict[str, Any], after: dict[str, Any]) -> str:
    names = [TAGS[kind][place].split(":")[-1] for place in (0, 2)]
    there = [before.get(f"{kind}:{name}") for name in names]
    if not any(there):
        return "none"
    return "kept" if there == [after.get(f"{kind}:{name}") for name in names] else "left out"


def _told(tags: dict[str, Any], wanted: str) -> list[Any]:
    return [value for name, value in tags.items() if name.split(":")[-1] == wanted]


def table(found: list[Line]) -> str:
    """In Markdown."""
    kinds = list(found[0].blocks)
    out = [
        "| file | holds | comes out as | samples not changed | " + " | ".join(kinds) + " | the row's notes |",
        "|---" * (5 + len(kinds)) + "|",
    ]
    for line in found:
        cells = [line.name, line.comes_in, line.goes_out, line.samples, *line.blocks.values(), "; ".join(line.notes)]
        out.append("| " + " | ".join("–" if cell == "none" else cell for cell in cells) + " |")
    return "\n".join(out)


def in_document() -> str:
    """The table as it stands in the document."""
    return DOCUMENT.read_text().partition(START)[2].partition(END)[0].strip()


if __name__ == "__main__":
    text = DOCUMENT.read_text()
    head, _, rest = text.partition(START)
    made = table(lines())
    DOCUMENT.write_text(f"{head}{START}\n\n{made}\n\n{END}{rest.partition(END)[2]}")
    sys.stdout.write(made + "\n")
