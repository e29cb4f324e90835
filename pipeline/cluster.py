"""The cluster: joined or started, what of it the model uses, and small actors on the driver's machine."""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline import logs
from pipeline.errors import RecipeError, RunError
from pipeline.recipe import Recipe
from pipeline.restoration.names import DIFFUSERS, is_other


def start_ray(recipe: Recipe) -> None:
    """Join the cluster that the environment names, else start Ray on this machine."""
    if ray.is_initialized():
        return
    address, as_json = os.environ.get("RAY_ADDRESS"), logs.wants_json()
    if address:
        _check_address(address)
        told = {} if not as_json or _is_told() else {"env_vars": {logs.FORMAT: "json"}}
        # lines for collectors are in the files of Ray's workers, whole; here they would get a prefix
        ray.init(logging_level=logging.WARNING, runtime_env=told or None, log_to_driver=not as_json)
    else:
        os.environ.setdefault("RAY_DATA_PARQUET_FOOTER_NUM_ACTORS", "1")  # else 32 for every group of files
        with ThreadPoolExecutor(1, "import") as beside:
            beside.submit(importlib.import_module, "ray.data")  # takes a second, and Ray's start is mostly waiting
            ray.init(
                address="local",  # not one that somebody else has left running here
                num_cpus=max(2, len(os.sched_getaffinity(0))),
                include_dashboard=False,
                object_store_memory=recipe.resources.object_store_mb * 1_000_000,
                logging_level=logging.WARNING,
                log_to_driver=False,
            )


def _is_told() -> bool:
    """Whether the submitted job that this is has told its workers already how their lines are to look."""
    config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    return logs.FORMAT in (config.get("runtime_env") or {}).get("env_vars", {})


def _check_address(address: str) -> None:
    """Refuse what Ray would try for minutes.

    Raises:
        RecipeError: it is not the address of a cluster's control store.
        RunError: nothing answers there now.
    """
    if "://" in address:
        raise RecipeError(
            f"RAY_ADDRESS={address} is for clients; send the job to the cluster with ray job submit, "
            "or give the address that ray start printed, such as 10.0.0.1:6379"
        )
    host, separator, port = address.rpartition(":")
    if separator and port.isdecimal():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            raise RunError(
                f"no Ray cluster answers at RAY_ADDRESS={address} ({error}); start it, or unset the variable", True
            ) from error


ACTOR_CPUS = 0.4
"""What Ray reserves for a restoring actor on CPUs, so that tasks find room beside one actor a core."""
ACTOR_BYTES, MEGAPIXEL_BYTES = 1_000_000_000, 30_000_000
"""What such an actor takes: libraries and models, and by the megapixel of its largest image."""


class Pool(NamedTuple):
    """The restoring actors of a run."""

    device: str
    """Where they run the model: `cpu` or `cuda`."""
    actors: int
    threads: int = 0
    """CPU threads of each, where there is no GPU; 0: as many as its machine has cores."""
    memory: int = 0
    """Bytes of it that Ray reserves for each."""

    @property
    def demands(self) -> dict[str, float | None]:
        """What Ray reserves for each."""
        if self.device == "cuda":
            return {"num_cpus": 1, "num_gpus": 1, "memory": None}
        return {"num_cpus": ACTOR_CPUS, "num_gpus": 0, "memory": self.memory or None}

    def threads_here(self) -> tuple[int, int] | None:
        """In one of them: its threads, and those for an image that is restored in bands. None: it has a GPU."""
        if self.device == "cuda":
            return None
        cores = max(1, int(resources_here().get("CPU", 0)))
        return min(self.threads or cores, cores), cores


def resources_here() -> dict[str, float]:
    """What the machine of this worker has, as Ray counts it."""
    here = ray.get_runtime_context().get_node_id()
    return next(node["Resources"] for node in ray.nodes() if node["NodeID"] == here)


def pool_of(recipe: Recipe, rows: int | None = None) -> Pool:
    """The actors that a run may have of the cluster; no more than rows.

    On CPUs one a core with a single thread: threads of one actor wait for each other, in every layer, whenever
    anything else needs a core. Where memory does not do there are fewer, with more threads. Models of others may be
    large, and have one actor a machine.

    Raises:
        RecipeError: there is no GPU, or there are not as many CPUs as this takes.
    """
    wanted, actors = recipe.restoration.device, recipe.resources.actors
    gpus = int(ray.cluster_resources().get("GPU", 0))
    cpus = ray.cluster_resources().get("CPU", 0)
    most = sys.maxsize if rows is None else max(1, rows)
    if wanted == "cuda" and not gpus and not os.environ.get("RAY_ADDRESS"):
        raise RecipeError("restoration.device is cuda, but this machine has no GPU; use auto or cpu")
    if wanted == "cuda" or (wanted == "auto" and gpus):  # a cluster may start its GPU machines when they are asked for
        return Pool("cuda", min(actors or max(gpus, 1), most))
    resources = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    machines = [(int(has["CPU"]), int(has.get("memory", 0))) for has in resources]
    memory = 0
    if not actors:
        actors, memory = _share_out(machines, recipe)
    actors = min(actors, most)
    taken, task_cpus = actors * ACTOR_CPUS, recipe.resources.task_cpus
    if taken + 2 * task_cpus > cpus and not os.environ.get("RAY_ADDRESS"):
        raise RecipeError(
            f"resources.actors ({actors}, of {ACTOR_CPUS} CPUs) and twice resources.task_cpus ({task_cpus:g}) are more "
            f"than the {cpus:g} CPUs; set one of them lower"
        )
    threads = recipe.resources.threads or max(1, int(cpus // actors)) if machines else 0  # or they are still to come
    return Pool("cpu", actors, threads, memory)


def _share_out(machines: Sequence[tuple[int, int]], recipe: Recipe) -> tuple[int, int]:
    """How many actors machines with so many cores and bytes have, and the bytes of each."""
    options = recipe.restoration
    generators = [options.generator] if options.lost == "generate" else []
    if any(is_other(name) or name.startswith(DIFFUSERS) for name in (*options.models, *generators)):
        return max(1, len(machines)), int(0.6 * min((memory for _, memory in machines), default=0))  # no two on one
    each = ACTOR_BYTES + int(MEGAPIXEL_BYTES * recipe.limits.max_megapixels)
    actors = sum(min(max(1, cores // (recipe.resources.threads or 1)), memory // each) for cores, memory in machines)
    return (actors, each) if actors else (max(1, len(machines)), 0)


def cause_of(error: BaseException) -> BaseException:
    """What lies at the bottom of an error that came through Ray."""
    deeper = getattr(error, "cause", None) or error.__cause__
    return cause_of(deeper) if isinstance(deeper, BaseException) else error


@contextlib.contextmanager
def beside_driver(kind: type) -> Iterator[Any]:
    """An actor of this class, without a CPU, that is lost with no other machine than the driver's; for a block."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(num_cpus=0, scheduling_strategy=here)(kind).remote()
    try:
        yield actor
    finally:
        ray.kill(actor)
