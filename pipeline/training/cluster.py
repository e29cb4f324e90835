"""Several workers on Ray: Ray Train starts them and their process group, and each runs the one training loop."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchTrainer

from pipeline.errors import ConservatorError

log = logging.getLogger(__name__)

RETRIES = 3
"""How often a run is started again after a worker was lost; it goes on from its last checkpoint."""


def on_ray(work: Callable[[dict[str, Any]], None], options: dict[str, Any], workers: int, device: str) -> None:
    """Run `work(options)` in so many workers, each with a GPU if `device` is "cuda" (or "auto" and there are enough).

    `options` must hold `output`, a folder that all machines share: Ray Train keeps its own state below it.

    Raises:
        ConservatorError: a worker raised it, such as for a source that is not there.
        TrainingFailedError: workers failed otherwise, after the retries.
    """
    if not ray.is_initialized():
        ray.init(log_to_driver=True)
    gpus = ray.cluster_resources().get("GPU", 0)
    use_gpu = device == "cuda" or (device == "auto" and gpus >= workers)
    options = {name: value for name, value in options.items() if not callable(value)}
    options["device"] = "cuda" if use_gpu else "cpu"
    log.info("%d workers on %s", workers, options["device"])
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
