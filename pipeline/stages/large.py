"""The restore stage for images too large to be in memory: from file to file, band by band."""

from __future__ import annotations

import dataclasses
import datetime
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.errors import RowError, StoreUnavailable, UnsupportedImage
from pipeline.imaging.encode import encode_preview
from pipeline.imaging.large import LargeTiff, file_sha256
from pipeline.imaging.original import Original, broken_note
from pipeline.imaging.tags import Tag, add_tags
from pipeline.imaging.tiff import TiffPages, Unsupported
from pipeline.imaging.working import from_working, rgb_of, to_working
from pipeline.imaging.xmp import with_provenance
from pipeline.quality.appraise import Appraiser, Case, Verdict
from pipeline.quality.gate import Decision
from pipeline.recipe import Recipe
from pipeline.restoration.canvas import LEAST_ERROR, Band, Restored, error_before
from pipeline.restoration.request import Request
from pipeline.restoration.restorer import Restorer, View
from pipeline.restoration.rows import Whole
from pipeline.stages.provenance import actions, change_mask, digital_source, provenance
from pipeline.stages.table import Row

GRID = 4
"""Windows a side by which a large image is scored, at full resolution."""
SIDE = 512
"""Pixels a side of a window, at most."""


class Reader(Protocol):
    """Opens files that a source's rows name."""

    def open(self, uri: str) -> IO[bytes]:
        """A file to be read in parts; raises a RowError if it must not or cannot be."""

    def place(self, uri: str) -> str:
        """Where it lies, as it may be shown."""


class Publish(Protocol):
    """Writes a local file beside the table, given its SHA-256 and ending, and returns its URI."""

    def __call__(self, local: Path, sha256: str, ending: str) -> str:
        """Raises a RowError if it cannot be written."""


@dataclasses.dataclass(frozen=True)
class LargeStage:
    """Restores large TIFF files, which rows name by URI."""

    recipe: Recipe
    restorer: Restorer
    appraiser: Appraiser
    readers: Mapping[str, Reader]
    """How files are opened, by the place in the source below which their rows lie."""
    publish: Publish

    def __call__(self, cell: Row, request: Request, decision: Decision | None, made_by: Mapping[str, str]) -> Row:
        """The columns that restoring adds, and those of the file, which is written already.

        Args:
            cell: the row, as decoding gave it.
            request: what is asked, without pixels and mask.
            decision: a person has seen this very result.
            made_by: model and software.

        Raises:
            RowError: the file cannot be read or written.
        """
        try:
            with self.readers[cell["root"]].open(cell["large"]) as file, TiffPages(file) as pages:
                return self._restored(cell, LargeTiff(pages), request, decision, made_by)
        except RowError:
            raise
        except Unsupported as error:
            raise UnsupportedImage(f"the image file cannot be read: {error}") from error
        except OSError as error:
            raise StoreUnavailable(
                f"the image could not be read or written ({type(error).__name__}: {error})"
            ) from error

    def _restored(
        self, cell: Row, image: LargeTiff, request: Request, decision: Decision | None, made_by: Mapping[str, str]
    ) -> Row:
        started = time.perf_counter()
        view = self.restorer.look_at(image, request)
        coloured = request.colourise and view.damage.grey
        with tempfile.TemporaryDirectory(prefix="conservator-") as folder:
            path, account = Path(folder, "restored.tif"), _Account(image.size, self.recipe.output.previews)
            with path.open("w+b") as file:
                bands = self._bands(
                    image, request, view, account, one_channel=image.proto.space == "grey" and not coloured
                )
                pixels_sha256, layout = image.write(file, bands, coloured)
                result = account.result(self.restorer, view, request)
                restored = time.perf_counter()
                case = Case(
                    *(account.before, result),
                    broken=account.broken,
                    caption=request.caption,
                    coloured=coloured,
                    decision=decision,
                )
                (verdict,) = self.appraiser([case])
                notes = [*(cell["notes"] or ()), *([account.broken] if account.broken else []), *result.notes]
                row = _told(verdict) | {"grey": view.damage.grey, "notes": notes}
                if verdict.after is not None:
                    row["actions"] = actions(result, coloured, repaired=True)
                    row["digital_source"] = digital_source(result, coloured)
                    if self.recipe.output.provenance:
                        told = provenance({**cell, **row, **made_by})
                        xmp = with_provenance(image.proto.metadata.xmp, told, notes)
                        add_tags(file, {0x02BC: Tag(1, len(xmp), xmp)})
            if verdict.after is None:
                row |= self._original(cell, account)
            else:
                with path.open("rb") as written:
                    sha256, size = file_sha256(written)
                row |= {
                    "image_uri": self.publish(path, sha256, "tif"),
                    "image_bytes": size,
                    "image_sha256": sha256,
                    "image_pixels_sha256": pixels_sha256,
                    "image_layout": layout,
                    "change_mask": account.change_mask(),
                    "after_preview": account.preview("after"),
                }
        scored = time.perf_counter()
        return row | {
            "image_format": "tiff",
            "before_preview": account.preview("before"),
            "restore_seconds": restored - started,
            "score_seconds": scored - restored,
            "restored_at": datetime.datetime.now(datetime.UTC),
        }

    def _bands(
        self, image: LargeTiff, request: Request, view: View, account: _Account, one_channel: bool
    ) -> Iterator[Original]:
        """Restored rows in the original's own numbers."""
        for band in self.restorer.restore_rows(image, request, view):
            original = image.band(band.top, band.top + len(band.array))
            before = to_working(original).pixels
            after = np.rint(band.array.clip(0, 1) * np.iinfo(before.dtype).max).astype(before.dtype)
            account.add(band, rgb_of(before), original.missing)
            yield from_working(original, before, after[..., :1] if one_channel else after)

    def _original(self, cell: Row, account: _Account) -> Row:
        """What was kept stays where it is."""
        with self.readers[cell["root"]].open(cell["large"]) as file:
            size = file.seek(0, 2)
        return {
            "image_uri": self.readers[cell["root"]].place(cell["large"]),
            "after_preview": account.preview("before"),
            "image_bytes": size,
            "image_sha256": cell["source_sha256"],
            "image_pixels_sha256": cell["source_pixels_sha256"],
            "image_layout": cell["source_layout"],
        }


class _Account:
    """What is kept of a large result while it passes: sums, windows at full resolution, and small pictures."""

    def __init__(self, size: tuple[int, int], preview: int) -> None:
        self._size = size
        height, width = size
        tall, wide = (min(SIDE, max(1, length // GRID)) for length in size)
        self._window = tall, wide
        self._tops, self._lefts = (
            [int((i + 0.5) / GRID * n) - s // 2 for i in range(GRID)] for n, s in zip(size, self._window, strict=True)
        )
        shape = (GRID * tall, GRID * wide)
        self.before = np.zeros((*shape, 3), np.uint8)
        """The windows of what was, side by side, [h, w, 3]."""
        self._after = np.zeros((*shape, 3), np.float32)
        self._uncertainty = np.zeros(shape, np.float16)
        self._lost = np.zeros(shape, np.bool_)
        self._sums = np.zeros(6)
        self._preview = preview
        self._scale = min(1.0, 1024 / max(height, width))
        self._small: dict[str, list[npt.NDArray[np.uint8]]] = {"before": [], "after": []}
        self._missing = 0

    def add(self, band: Band, before: npt.NDArray[np.uint8], missing: npt.NDArray[np.bool_] | None) -> None:
        """Restored rows, and what they were."""
        self._sums += band.sums
        self._missing += 0 if missing is None else int(missing.sum())
        whole = (
            (self.before, before),
            (self._after, band.array),
            (self._uncertainty, band.uncertainty),
            (self._lost, band.lost),
        )
        tall, wide = self._window
        for i, top in enumerate(self._tops):
            first, last = max(top, band.top), min(top + tall, band.top + len(before))
            if first >= last:
                continue
            for j, left in enumerate(self._lefts):
                target = (slice(i * tall + first - top, i * tall + last - top), slice(j * wide, (j + 1) * wide))
                source = (slice(first - band.top, last - band.top), slice(left, left + wide))
                for mosaic, rows in whole:
                    mosaic[target] = rows[source]
        after = np.rint(band.array.clip(0, 1) * 255).astype(np.uint8)
        for name, rows in (("before", before), ("after", after)):
            small = (max(1, round(rows.shape[1] * self._scale)), max(1, round(len(rows) * self._scale)))
            self._small[name].append(np.asarray(Image.fromarray(rows).resize(small, Image.Resampling.BOX)))

    @property
    def broken(self) -> str | None:
        """What is wrong with the file."""
        share = self._missing / (self._size[0] * self._size[1])
        return broken_note(share) if share else None

    def result(self, restorer: Restorer, view: View, request: Request) -> Restored:
        """The windows as a result, with what was found in the whole image."""
        area = self._size[0] * self._size[1]
        error, _, change, lost, doubt, withheld = means = [float(total) / area for total in self._sums]
        both = Whole(self._picture("before")), Whole(self._picture("after"))
        expected = restorer.expect(*both, means, view, request)
        return Restored(
            array=self._after,
            damage=dataclasses.replace(view.damage, missing=lost),
            clean=view.clean,
            uncertainty=self._uncertainty,
            lost=self._lost,
            expected_psnr=expected.psnr,
            mean_error=max(error + withheld, LEAST_ERROR),
            agreement=view.agreement,
            references_ignored=view.references_ignored,
            input_error=error_before(error, change, doubt),
            worse=expected.worse,
        )

    def preview(self, name: str) -> bytes | None:
        """A small JPEG."""
        return encode_preview(self._picture(name), self._preview)

    def change_mask(self) -> bytes:
        """How much of each place was visibly changed, as far as small pictures show it."""
        return change_mask(self._picture("before"), self._picture("after"))

    def _picture(self, name: str) -> npt.NDArray[np.uint8]:
        """All of it, small."""
        return np.concatenate(self._small[name])


def _told(verdict: Verdict) -> Row:
    return {
        **verdict.scores,
        "status": verdict.status,
        "reasons": verdict.reasons,
        "subjects": verdict.subjects,
        "actions": [],
        "pixels": None,
    }
