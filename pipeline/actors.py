"""What runs in Ray's restoring actors."""

from __future__ import annotations

import ctypes
import logging
import os
from typing import Any, NamedTuple

import pyarrow as pa

from pipeline.cluster import Pool
from pipeline.lake.fetch import UriReader
from pipeline.lake.images import ImageWriter
from pipeline.metrics import ActorMeter
from pipeline.plan import Run, stores_of_models
from pipeline.quality.gate import Decision
from pipeline.recipe import Recipe
from pipeline.restoration.local import OptionsOf, stores_reached
from pipeline.workers import guard_of, tell_logs, whole

log = logging.getLogger(__name__)

SETTLED = 2
"""The call ahead of which the bare model's speed is measured: not while rows wait to begin, nor while all starts."""


KERNELS = 512
"""Kernels that oneDNN keeps: one for every layer and shape, and scores see as many shapes as there are images. The
decoder needs some 300; what is kept beyond them takes 0.1 MB each."""


class RestoreSettings(NamedTuple):
    """What restoring actors are told of a run."""

    recipe: Recipe
    decisions: dict[str, Decision]
    readers: dict[str, UriReader]
    """By the place in the source below which rows lie."""
    images: ImageWriter
    """Where large results go."""
    stores: OptionsOf
    """How stores of models are reached."""
    run_id: str

    @classmethod
    def of(cls, run: Run) -> RestoreSettings:
        """Of this run."""
        readers = {root: run.reader(root) for root in {file.root for file in run.source.files}}
        images, stores = run.output.image_writer(run.turn.generation), stores_of_models(run.recipe)
        return cls(run.recipe, run.decisions, readers, images, stores, run.run_id)


class Restore:
    """What an actor of the cluster holds."""

    def __init__(self, settings: RestoreSettings, pool: Pool, desk: Any = None) -> None:
        """`desk`: see `workers.Decode`."""
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KERNELS))  # read when the first kernel is made
        from pipeline.stages.restore import RestoreStage  # imports torch, which drivers do without

        tell_logs(settings.run_id, "restore")
        recipe = settings.recipe
        decisions, readers, publish = settings.decisions, settings.readers, settings.images.file
        with stores_reached(settings.stores):
            self._stage = RestoreStage(recipe, pool.device, pool.threads_here(), decisions, readers, publish)
        self._desk, self._calls = desk, 0
        self._meter = ActorMeter("restore")
        self._guard = guard_of(desk, "restore", recipe, self._stage.failed)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Decoded rows, restored."""
        self._calls += 1
        if self._calls == SETTLED and self._desk is not None:
            self._tell_speed()
        with self._meter.working():
            done = whole(self._guard, table, self._stage)
            give_back()
            return done

    def _tell_speed(self) -> None:
        try:
            speed = self._stage.bare_speed()
        except RuntimeError as error:  # then the report does without
            log.warning("the bare model's speed cannot be measured: %s", error)
            return
        if speed is not None:
            self._desk.found_speed.remote(speed)


def give_back() -> None:
    """Give the system memory that is free: of images of all sizes, glibc keeps gaps, and ever more of them."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):  # another C library
        log.debug("this C library keeps what is free")
