"""Several workers on Ray: Ray Train starts them and their process group, and each runs the one training loop."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchTrainer

from pipeline.errors import ConservatorError, RecipeError

log = logging.getLogger(__name__)

RETRIES = 3
"""How often a run is started again after a worker was lost; it goes on from its last checkpoint."""


def on_ray(work: Callable[[dict[str, Any]], None], options: dict[str, Any], workers: int, device: str) -> None:
    """Run `work(options)` in so many workers, each with a GPU if `device` is "cuda" (or "auto" and there are enough).

    Ray must be running.

    `options` must hold `output`, a folder that all machines share: Ray Train keeps its own state below it.

    Raises:
        RecipeError: the cluster is smaller than that.
        ConservatorError: a worker raised it.
        TrainingFailedError: workers failed otherwise, after the retries.
    """
    found = ray.cluster_resources()
    use_gpu = device == "cuda" or (device == "auto" and found.get("GPU", 0) >= workers)
    kind = "GPU" if use_gpu else "CPU"
    if found.get(kind, 0) < workers:
        raise RecipeError(f"{workers} workers need as many {kind}s; the cluster has {found.get(kind, 0):g}: --workers")
    options = {**options, "device": "cuda" if use_gpu else "cpu"}
    log.info("%d workers, each with a %s", workers, kind)
    trainer = TorchTrainer(
        work,
        train_loop_config=options,
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=use_gpu),
        run_config=RunConfig(
            name="ray", storage_path=str(options["output"]), failure_config=FailureConfig(max_failures=RETRIES)
        ),
    )
    try:
        trainer.fit()
    except WorkerGroupError as error:
        foreseen = [cause for cause in error.worker_failures.values() if isinstance(cause, ConservatorError)]
        if foreseen:
            raise foreseen[0] from error
        raise
