"""The restore stage: what an actor runs on each table of decoded rows."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from PIL import Image

from pipeline.errors import PermanentRowError
from pipeline.imaging.decode import without_alpha
from pipeline.quality.gate import Evidence, Rules, decide
from pipeline.quality.scores import decibels, mean_squared_error, psnr, ssim
from pipeline.recipe import Recipe
from pipeline.restoration.canvas import Restored
from pipeline.restoration.colour import colour_onto
from pipeline.restoration.request import Request
from pipeline.restoration.restorer import Restorer
from pipeline.schema import RESTORED
from pipeline.stages.table import Row, failure, source_columns, stage_rows, with_columns

log = logging.getLogger(__name__)

Pixels = npt.NDArray[np.uint8]


class RestoreStage:
    """Holds a Restorer for the life of an actor."""

    def __init__(self, recipe: Recipe, device: str, threads: int = 0) -> None:
        """Load the model.

        Args:
            recipe: model, tiles, rules.
            device: `cpu` or `cuda`.
            threads: CPU threads if there is no GPU; 0: all cores that this process may use.

        Raises:
            ModelError: there is none, or it cannot be loaded.
        """
        if device == "cpu":
            torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
        options = recipe.restoration
        self._recipe = recipe
        self._rules = Rules(**recipe.scoring.model_dump(exclude={"truth"}))
        self._restorer = Restorer.from_pretrained(
            options.model, device=device, tile=options.tile, margin=options.margin
        )

    def __call__(self, table: pa.Table) -> pa.Table:
        """Restore the rows that decoded; the others pass."""
        cells = stage_rows(table)
        good = [index for index, cell in enumerate(cells) if cell["error_stage"] is None]
        rows = [{name: cell[name] for name in RESTORED.names if name in cell} for cell in cells]
        for index in good:
            rows[index]["pixels"] = None
        for index, answer in zip(good, self._restore([cells[index] for index in good]), strict=True):
            rows[index] |= answer
        for row in rows:
            row |= {"model": self._restorer.name, "model_sha256": self._restorer.digest}
            if row["error_stage"] is not None:
                row |= {"status": "failed", "pixels": None}
        return with_columns(source_columns(table), rows, RESTORED)

    def _restore(self, cells: Sequence[Row]) -> list[Row]:
        """All rows together; if that fails, one by one, so that the others do not share the fate of one."""
        if not cells:
            return []
        started = time.perf_counter()
        try:
            results = self._restorer.restore_batch([self._request(cell) for cell in cells])
            judged = [self._judge(cell, result) for cell, result in zip(cells, results, strict=True)]
        except Exception as error:  # out of memory, or one image that the model cannot take
            if len(cells) > 1:
                log.warning("restoring %d rows together failed (%s); now one by one", len(cells), error)
                return [answer for cell in cells for answer in self._restore([cell])]
            return [failure("restore", PermanentRowError(f"{type(error).__name__}: {error}"))]
        seconds = time.perf_counter() - started
        pixels = sum(cell["height"] * cell["width"] for cell in cells)
        return [
            row | {"restore_seconds": seconds * cell["height"] * cell["width"] / pixels}
            for cell, row in zip(cells, judged, strict=True)
        ]

    def _request(self, cell: Row) -> Request:
        height, width = cell["height"], cell["width"]
        mask = cell["mask"]
        return Request(
            pixels=without_alpha(_array(cell["pixels"], height, width, cell["channels"])),
            caption=cell["caption"],
            mask=None if mask is None else _mask(mask, height, width),
            references=tuple(_array(r["pixels"], r["height"], r["width"], 3) for r in cell["references"] or ()),
            colourise=self._recipe.restoration.colourise,
            keep_luminance=False,
        )

    def _judge(self, cell: Row, result: Restored) -> Row:
        """Scores, decision, and the pixels if they are taken."""
        height, width, channels = cell["height"], cell["width"], cell["channels"]
        original = _array(cell["pixels"], height, width, channels)
        before, after = without_alpha(original), result.pixels
        coloured = self._recipe.restoration.colourise and result.damage.grey and cell["mask"] is None
        plain = _grey(after) if coloured else after  # the repair is judged without the colours
        mask = None if cell["mask"] is None else _mask(cell["mask"], height, width)
        evidence = Evidence(
            damage=result.damage,
            clean=result.clean,
            change_psnr=decibels(mean_squared_error(plain, before)),
            expected_psnr=result.expected_psnr,
            mean_error=result.mean_error,
            masked=None if mask is None else float(mask.mean()),
        )
        status, reasons = decide(evidence, self._rules)
        if coloured:
            after = after if status != "kept" else _onto(before, after)
            status, reasons = "review", [*reasons, "colours are invented"]
        taken = status != "kept"
        damage = result.damage
        row: Row = {
            "status": status,
            "reasons": reasons,
            "noise_sigma": damage.noise_sigma,
            "jpeg_quality": damage.jpeg_quality,
            "blur_sigma": damage.blur_sigma,
            "downscale": damage.downscale,
            "fading": damage.fading,
            "missing": damage.missing,
            "grey": damage.grey,
            "clean_probability": result.clean,
            "caption_agreement": result.agreement,
            "expected_psnr": evidence.expected_psnr,
            "change_psnr": evidence.change_psnr,
        }
        if taken:
            output = _with_layout(after, original, coloured)
            row |= {"pixels": output.tobytes(), "channels": output.shape[2]}
            if coloured and channels < 3:
                row["icc"] = None  # it described greys
        if cell["truth"] is not None:
            truth = _array(cell["truth"], height, width, 3)
            row |= {"psnr_before": psnr(before, truth), "ssim_before": ssim(before, truth)}
            row |= {"psnr_after": row["psnr_before"], "ssim_after": row["ssim_before"]}
            if taken:
                row |= {"psnr_after": psnr(after, truth), "ssim_after": ssim(after, truth)}
        return row


def _array(data: bytes, height: int, width: int, channels: int) -> Pixels:
    return np.frombuffer(data, np.uint8).reshape(height, width, channels)


def _mask(data: bytes, height: int, width: int) -> npt.NDArray[np.bool_]:
    return np.frombuffer(data, np.bool_).reshape(height, width)


def _grey(rgb: Pixels) -> Pixels:
    """[H, W, 3] without its colours."""
    return np.repeat(np.asarray(Image.fromarray(rgb).convert("L"))[..., None], 3, axis=2)


def _onto(before: Pixels, coloured: Pixels) -> Pixels:
    """The colours of one picture on the luminance of another, grey one; both [H, W, 3]."""
    planes = [torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255 for pixels in (before, coloured)]
    both = colour_onto(planes[0][:1], planes[1])
    return (both.permute(1, 2, 0) * 255).round().byte().numpy()


def _with_layout(rgb: Pixels, original: Pixels, coloured: bool) -> Pixels:
    """The result with as many channels as the original had, its alpha untouched; colours add theirs."""
    channels = original.shape[2]
    colours: Any = rgb[..., :1] if channels < 3 and not coloured else rgb
    if channels in (2, 4):
        return np.concatenate([colours, original[..., -1:]], axis=2)
    return np.ascontiguousarray(colours)
