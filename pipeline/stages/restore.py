"""The restore stage: what an actor runs on each table of decoded rows."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from pipeline.errors import PermanentRowError
from pipeline.imaging.decode import without_alpha
from pipeline.quality.appraise import Appraiser, Case, Verdict
from pipeline.quality.gate import Decision
from pipeline.recipe import Recipe
from pipeline.restoration.canvas import Restored
from pipeline.restoration.request import Request
from pipeline.restoration.restorer import Restorer
from pipeline.schema import RESTORED
from pipeline.stages.table import Row, failure, source_columns, stage_rows, with_columns

log = logging.getLogger(__name__)

Pixels = npt.NDArray[np.uint8]


class RestoreStage:
    """Holds a Restorer for the life of an actor."""

    def __init__(
        self, recipe: Recipe, device: str, threads: int = 0, decisions: Mapping[str, Decision] | None = None
    ) -> None:
        """Load the model.

        Args:
            recipe: model, tiles, rules.
            device: `cpu` or `cuda`.
            threads: CPU threads if there is no GPU; 0: all cores that this process may use.
            decisions: what persons have decided, by `result_id`.

        Raises:
            ModelError: there is none, or it cannot be loaded.
            RecipeError: a package that scores need is missing.
        """
        if device == "cpu":
            torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
        options = recipe.restoration
        self._recipe = recipe
        self._restorer = Restorer.from_pretrained(
            options.model, device=device, tile=options.tile, margin=options.margin
        )
        self._settings = recipe.result_digest()
        self._decisions = decisions or {}
        self._appraiser = Appraiser(recipe, self._restorer.device)

    def bare_speed(self) -> float:
        """Megapixels a second of the model alone, on tiles in memory."""
        return self._restorer.bare_speed()

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
            requests = [self._request(cell) for cell in cells]
            results = self._restorer.restore_batch(requests)
        except Exception as error:  # out of memory, or one image that the model cannot take
            if len(cells) > 1:
                log.warning("restoring %d rows together failed (%s); now one by one", len(cells), error)
                return [answer for cell in cells for answer in self._restore([cell])]
            return [failure("restore", PermanentRowError(f"{type(error).__name__}: {error}"))]
        restored = time.perf_counter()
        both = zip(cells, requests, results, strict=True)
        cases = [self._case(cell, request, result) for cell, request, result in both]
        verdicts = self._appraise(cases)
        scored = time.perf_counter()
        pixels = sum(cell["height"] * cell["width"] for cell in cells)
        answers = []
        for cell, case, verdict in zip(cells, cases, verdicts, strict=True):
            share = cell["height"] * cell["width"] / pixels
            seconds = {"restore_seconds": share * (restored - started), "score_seconds": share * (scored - restored)}
            answers.append(_answer(cell, case, verdict) | seconds | {"result_id": self._result_id(cell)})
        return answers

    def _appraise(self, cases: Sequence[Case]) -> list[Verdict]:
        """Together, or one by one; a result that cannot be scored is for a person to look at."""
        try:
            return self._appraiser(cases)
        except Exception as error:  # out of memory
            if len(cases) > 1:
                log.warning("scoring %d rows together failed (%s); now one by one", len(cases), error)
                return [verdict for case in cases for verdict in self._appraise([case])]
            log.warning("a result could not be scored: %s: %s", type(error).__name__, error)
            reason = f"it could not be scored ({type(error).__name__}: {error})"
            return [Verdict("review", [reason], [], {}, cases[0].result.pixels)]

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

    def _case(self, cell: Row, request: Request, result: Restored) -> Case:
        truth = cell["truth"]
        return Case(
            before=request.pixels,
            result=result,
            caption=request.caption,
            mask=request.mask,
            truth=None if truth is None else _array(truth, cell["height"], cell["width"], 3),
            coloured=request.colourise and result.damage.grey and request.mask is None,
            decision=self._decisions.get(self._result_id(cell)),
        )

    def _result_id(self, cell: Row) -> str:
        follows_from = (cell["inputs_sha256"], self._settings, self._restorer.digest)
        return hashlib.sha256(" ".join(follows_from).encode()).hexdigest()


def _answer(cell: Row, case: Case, verdict: Verdict) -> Row:
    """The row's columns, and its pixels if they are taken."""
    row: Row = {
        **verdict.scores,
        "status": verdict.status,
        "reasons": verdict.reasons,
        "subjects": verdict.subjects,
        "grey": case.result.damage.grey,
    }
    if verdict.after is not None:
        original = _array(cell["pixels"], cell["height"], cell["width"], cell["channels"])
        output = _with_layout(verdict.after, original, case.coloured)
        row |= {"pixels": output.tobytes(), "channels": output.shape[2]}
        if case.coloured and cell["channels"] < 3:
            row["icc"] = None  # it described greys
    return row


def _array(data: bytes, height: int, width: int, channels: int) -> Pixels:
    return np.frombuffer(data, np.uint8).reshape(height, width, channels)


def _mask(data: bytes, height: int, width: int) -> npt.NDArray[np.bool_]:
    return np.frombuffer(data, np.bool_).reshape(height, width)


def _with_layout(rgb: Pixels, original: Pixels, coloured: bool) -> Pixels:
    """The result with as many channels as the original had, its alpha untouched; colours add theirs."""
    channels = original.shape[2]
    colours: Any = rgb[..., :1] if channels < 3 and not coloured else rgb
    if channels in (2, 4):
        return np.concatenate([colours, original[..., -1:]], axis=2)
    return np.ascontiguousarray(colours)
