"""The restore stage: what an actor runs on each table of decoded rows."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import logging
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from filelock import FileLock, Timeout

from pipeline import __version__
from pipeline.errors import ImageTooLarge, PermanentRowError, RowError
from pipeline.imaging.working import eight_bits
from pipeline.imaging.xmp import GENERATED
from pipeline.quality.appraise import Appraiser, Case, Verdict
from pipeline.quality.gate import Decision
from pipeline.recipe import Recipe
from pipeline.restoration.canvas import Restored
from pipeline.restoration.chain import Chain
from pipeline.restoration.colour import coloured
from pipeline.restoration.loading import Maker, load_restorer, picture_maker
from pipeline.restoration.local import cache_folder
from pipeline.restoration.request import Request
from pipeline.restoration.restorer import LARGEST_SIDES, Restorer
from pipeline.schema import RESTORED
from pipeline.stages.large import LargeStage, Publish, Reader
from pipeline.stages.provenance import actions, change_mask, digital_source
from pipeline.stages.table import Row, failure, source_columns, stage_rows, with_columns

log = logging.getLogger(__name__)

Pixels = npt.NDArray[Any]


class RestoreStage:
    """Holds a Restorer for the life of an actor."""

    def __init__(
        self,
        recipe: Recipe,
        device: str,
        threads: tuple[int, int] | None = None,
        decisions: Mapping[str, Decision] | None = None,
        readers: Mapping[str, Reader] | None = None,
        publish: Publish | None = None,
    ) -> None:
        """Load the model.

        Args:
            recipe: model, tiles, rules.
            device: `cpu` or `cuda`.
            threads: CPU threads if there is no GPU, and those for an image that is restored in bands. None: of all
                cores that this process may use.
            decisions: what persons have decided, by `result_id`.
            readers: how files of large images are opened, by the place in the source below which their rows lie.
            publish: where results of large images go; without it they fail.

        Raises:
            ModelError: there is none, or it cannot be loaded.
            RecipeError: a package that scores need is missing.
        """
        self._threads = threads or (len(os.sched_getaffinity(0)),) * 2 if device == "cpu" else None
        if self._threads:
            torch.set_num_threads(self._threads[0])
        options = recipe.restoration
        self._recipe = recipe
        self._restorer = load_restorer(
            options.models,
            device,
            recipe.gate.clean_above,
            recipe.gate.sure_gain,
            tile=max(LARGEST_SIDES) if options.tile == "auto" else options.tile,
            margin=options.margin,
            skip_undamaged=options.skip_undamaged,
            compiled=options.compile,
            half=options.half,
            text_encoder=options.text_encoder,
            downloads=options.downloads,
        )
        tile = self._restorer.tune(options.tile, recipe.resources.decoder_mb).tile
        self._settings = recipe.result_digest() + (f" {tile}" if options.tile == "auto" else "")
        self._made_by = {
            "model": self._restorer.name,
            "model_sha256": self._restorer.digest,
            "model_license": self._restorer.license,
            "software": f"conservator {__version__}, torch {torch.__version__}, numpy {np.__version__}",
            "device": _device_name(self._restorer.device),
        }
        self._maker: Maker | None = None
        if options.lost == "generate":
            compact = self._restorer.judge if isinstance(self._restorer, Chain) else self._restorer
            self._maker = picture_maker(options.generator, compact, downloads=options.downloads)
        self._decisions = decisions or {}
        self._appraiser = Appraiser(recipe, self._restorer.device)
        self._large = None
        if publish is not None and isinstance(self._restorer, Restorer):
            self._large = LargeStage(recipe, self._restorer, self._appraiser, readers or {}, publish)

    def bare_speed(self) -> float | None:
        """Megapixels a second of the model alone, on tiles in memory."""
        return self._restorer.bare_speed()

    def __call__(self, table: pa.Table) -> pa.Table:
        """Restore the rows that decoded; the others pass."""
        cells = stage_rows(table)
        there = [index for index, cell in enumerate(cells) if cell["error_stage"] is None]
        lost = [index for index in there if cells[index]["lost"] is not None]
        large = [index for index in there if cells[index]["large"] is not None]
        good = [index for index in there if index not in {*lost, *large}]
        rows = [{name: cell[name] for name in RESTORED.names if name in cell} for cell in cells]
        for index in good:
            rows[index]["pixels"] = None
        too_large = {index: message for index in good if (message := self._too_large(cells[index]))}
        for index, message in too_large.items():
            rows[index] |= failure("restore", ImageTooLarge(message))
        good = [index for index in good if index not in too_large]
        for index, answer in zip(good, self._restore([cells[index] for index in good]), strict=True):
            rows[index] |= answer
        for index in large:
            rows[index] |= self._restore_large(cells[index])
        for row in rows:
            row |= self._made_by | {name: value for name, value in row.items() if name in self._made_by and value}
        for index, answer in zip(lost, self._generated([cells[index] for index in lost]), strict=True):
            rows[index] |= answer
        for row in rows:
            if row["error_stage"] is not None:
                row |= {"status": "failed", "pixels": None}
        return with_columns(source_columns(table), rows, RESTORED)

    def failed(self, table: pa.Table, error: RowError) -> pa.Table:
        """Rows that could not even be tried."""
        told = {**self._made_by, **failure("restore", error), "status": "failed", "pixels": None}
        rows = [{name: cell[name] for name in RESTORED.names if name in cell} | told for cell in stage_rows(table)]
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
            return [_surprise(error)]
        restored = time.perf_counter()
        both = zip(cells, requests, results, strict=True)
        cases = [self._case(cell, request, result) for cell, request, result in both]
        verdicts = self._appraise(cases)
        scored = time.perf_counter()
        pixels = sum(cell["height"] * cell["width"] for cell in cells)
        answers = []
        now = datetime.datetime.now(datetime.UTC)
        for cell, request, case, verdict in zip(cells, requests, cases, verdicts, strict=True):
            share = cell["height"] * cell["width"] / pixels
            seconds = {"restore_seconds": share * (restored - started), "score_seconds": share * (scored - restored)}
            answer = _answer(request, case, verdict, cell["channels"]) | seconds | self._helped_by(case, verdict)
            notes = [*(cell["notes"] or ()), *case.result.notes]
            answers.append(answer | {"notes": notes, "result_id": self._result_id(cell), "restored_at": now})
        return answers

    def _helped_by(self, case: Case, verdict: Verdict) -> Row:
        """The model's name and licence, if one took part that the recipe does not name."""
        helper = case.result.helper
        if verdict.after is None or helper is None or not isinstance(self._restorer, Chain):
            return {}
        licenses = dict.fromkeys([self._restorer.judge.license, *self._restorer.license.split(", ")])
        return {"model": f"{self._restorer.name} + {helper}", "model_license": ", ".join(licenses)}

    def _too_large(self, cell: Row) -> str:
        """What is wrong with the size that a result would have; empty: nothing."""
        scale, most = self._restorer.scale, self._recipe.limits.max_result_megapixels
        megapixels = cell["height"] * cell["width"] * scale**2 / 1e6
        if scale == 1 or megapixels <= most:
            return ""
        return f"enlarged {scale} times it has {megapixels:.0f} MP, more than limits.max_result_megapixels ({most:g})"

    def _generated(self, cells: Sequence[Row]) -> list[Row]:
        """Pictures of captions in place of images that are lost; if that fails, one by one."""
        if not cells:
            return []
        assert self._maker is not None
        started = time.perf_counter()
        ids = [self._result_id(cell, self._maker.digest) for cell in cells]
        seeds = [int(result_id[:15], 16) for result_id in ids]
        try:
            made = self._maker([cell["caption"] for cell in cells], seeds)
        except Exception as error:  # out of memory
            if len(cells) > 1:
                return [answer for cell in cells for answer in self._generated([cell])]
            return [_surprise(error)]
        seconds, now = time.perf_counter() - started, datetime.datetime.now(datetime.UTC)
        return [
            {
                "pixels": picture.pixels.tobytes(),
                "height": picture.pixels.shape[0],
                "width": picture.pixels.shape[1],
                "channels": 3,
                "depth": 8,
                "status": "generated",
                "reasons": [f"the image is lost ({cell['lost']}); this was made of its caption"],
                "actions": [{"name": "generate", "strength": 1.0}],
                "digital_source": GENERATED,
                "caption_agreement": picture.agreement,
                "seed": seed,
                "result_id": result_id,
                "model": self._maker.name,
                "model_sha256": self._maker.digest,
                "model_license": self._maker.license,
                "restore_seconds": seconds / len(cells),
                "restored_at": now,
            }
            for cell, picture, seed, result_id in zip(cells, made, seeds, ids, strict=True)
        ]

    def _restore_large(self, cell: Row) -> Row:
        if isinstance(self._restorer, Chain):
            message = f"images this large can only be restored by a model of ours alone, not by {self._restorer.name}"
            return failure("restore", PermanentRowError(message))
        if self._large is None:
            return failure("restore", PermanentRowError("images this large have to be written beside a table"))
        request = self._asked(cell, np.zeros((1, 1, 3), np.uint8), None)
        result_id = self._result_id(cell)
        try:
            with self._all_cores():
                answer = self._large(cell, request, self._decisions.get(result_id), self._made_by)
        except Exception as error:  # one image's surprise must not cost the others
            return _surprise(error)
        return answer | {"result_id": result_id}

    @contextlib.contextmanager
    def _all_cores(self) -> Iterator[None]:
        """For a block, threads on all cores, if no other actor has them; a run might end with one at work for hours."""
        with contextlib.ExitStack() as stack:
            if self._threads:
                with contextlib.suppress(OSError, RuntimeError, Timeout):  # no home, or another has them
                    stack.enter_context(FileLock(cache_folder() / "cores.lock", timeout=0))
                    torch.set_num_threads(self._threads[1])
                    stack.callback(torch.set_num_threads, self._threads[0])
            yield

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
            return [Verdict("review", [reason], [], {}, "result", cases[0].result.pixels)]

    def _request(self, cell: Row) -> Request:
        height, width = cell["height"], cell["width"]
        pixels = _array(cell["pixels"], height, width, cell["channels"], cell["depth"])
        pixels = np.repeat(pixels, 3, axis=2) if cell["channels"] == 1 else pixels
        return self._asked(cell, pixels, None if cell["mask"] is None else _mask(cell["mask"], height, width))

    def _asked(self, cell: Row, pixels: Pixels, mask: npt.NDArray[np.bool_] | None) -> Request:
        options = self._recipe.restoration
        return Request(
            pixels=pixels,
            caption=cell["caption"],
            further_captions=tuple(cell["further_captions"] or ()),
            mask=mask,
            only_mask=cell["mask_given"],
            references=tuple(_array(r["pixels"], r["height"], r["width"], 3) for r in cell["references"] or ()),
            colourise=options.colourise,
            keep_luminance=False,
            strength=options.strength,
            strengths={str(name): strength for name, strength in options.strengths.items()},
        )

    def _case(self, cell: Row, request: Request, result: Restored) -> Case:
        truth = cell["truth"]
        return Case(
            before=eight_bits(request.pixels),
            result=result,
            broken=cell["broken"],
            caption=request.caption,
            mask=request.mask if request.only_mask else None,
            truth=None if truth is None else _array(truth, cell["height"], cell["width"], 3),
            coloured=request.colourise and result.damage.grey and not request.keeps_outside,
            decision=self._decisions.get(self._result_id(cell)),
        )

    def _result_id(self, cell: Row, *further: str) -> str:
        follows_from = (cell["inputs_sha256"], self._settings, self._restorer.digest, *further)
        return hashlib.sha256(" ".join(follows_from).encode()).hexdigest()


def _device_name(device: torch.device) -> str:
    """What the model runs on, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.backends.cpu.get_cpu_capability()}"


def _surprise(error: Exception) -> Row:
    told = error if isinstance(error, RowError) else PermanentRowError(f"{type(error).__name__}: {error}")
    return failure("restore", told)


def _answer(request: Request, case: Case, verdict: Verdict, channels: int) -> Row:
    """The row's columns, and its pixels if they are taken; `channels` are those that were decoded."""
    row: Row = {
        **verdict.scores,
        "status": verdict.status,
        "reasons": verdict.reasons,
        "subjects": verdict.subjects,
        "grey": case.result.damage.grey,
        "actions": [],
    }
    if verdict.after is not None:
        pixels = _taken(request, case, verdict, channels)
        row |= {
            "pixels": pixels.tobytes(),
            "height": pixels.shape[0],
            "width": pixels.shape[1],
            "channels": pixels.shape[2],
            "actions": actions(case.result, case.coloured, repaired=verdict.taken == "result"),
            "digital_source": digital_source(case.result, case.coloured),
            "seed": case.result.seed,
            "change_mask": change_mask(case.before, verdict.after),
        }
    return row


def _taken(request: Request, case: Case, verdict: Verdict, channels: int) -> Pixels:
    """What goes into the file, in the working space: [H, W, 1 or 3] in the depth of the request, or larger."""
    assert verdict.after is not None
    kind, after = request.pixels.dtype, verdict.after
    if verdict.taken == "result" and (kind == np.uint16 or case.result.enlarged is not None):
        after = case.result.samples(np.uint16 if kind == np.uint16 else np.uint8, full=True)
    elif kind == np.uint16:
        after = coloured(request.pixels, case.result.array)
    return np.ascontiguousarray(after[..., :1]) if channels == 1 and not case.coloured else after


def _array(data: bytes, height: int, width: int, channels: int, depth: int = 8) -> Pixels:
    return np.frombuffer(data, np.uint8 if depth == 8 else np.uint16).reshape(height, width, channels)


def _mask(data: bytes, height: int, width: int) -> npt.NDArray[np.bool_]:
    return np.frombuffer(data, np.bool_).reshape(height, width)
