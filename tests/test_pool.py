"""How many restoring actors a run has, by the machines that Ray tells of."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import ray

from pipeline.cluster import Pool, pool_of
from pipeline.errors import RecipeError
from pipeline.recipe import load_recipe

Machines = Callable[..., None]

GB = 1_000_000_000
EACH = 4 * GB
"""Bytes for an actor and an image of 100 MP."""


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch) -> Machines:
    """A cluster of these machines: CPUs, GB of memory and GPUs of each."""

    def tell(*all: tuple[int, int, int]) -> None:
        nodes = [{"Alive": True, "Resources": {"CPU": c, "memory": m * GB, "GPU": g}} for c, m, g in all]
        monkeypatch.setattr(ray, "nodes", lambda: [*nodes, {"Alive": False, "Resources": {"CPU": 64.0}}])
        sums = {name: sum(node["Resources"][name] for node in nodes) for name in ("CPU", "GPU")}
        monkeypatch.setattr(ray, "cluster_resources", lambda: sums)

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return tell


@pytest.mark.parametrize(
    ("cluster", "overrides", "expected"),
    [
        ([(2, 24, 0)], (), Pool("cpu", 2, 1, EACH)),
        ([(16, 15, 0)], (), Pool("cpu", 3, 5, EACH)),  # memory for three
        ([(2, 3, 0)], (), Pool("cpu", 1, 2)),  # not even for one
        ([(8, 64, 0), (4, 64, 0), (0, 8, 0)], (), Pool("cpu", 12, 1, EACH)),  # a head without CPUs has none
        ([(16, 64, 0), (16, 8, 0)], (), Pool("cpu", 18, 1, EACH)),
        ([(8, 64, 0)], ("resources.actors=1",), Pool("cpu", 1, 8)),
        ([(8, 64, 0)], ("resources.threads=4",), Pool("cpu", 2, 4, EACH)),
        ([(8, 64, 0)], ("limits.max_megapixels=400",), Pool("cpu", 4, 2, 13 * GB)),
        ([(8, 64, 0)], ("restoration.model=spandrel:a.pth",), Pool("cpu", 1, 8, int(0.6 * 64 * GB))),
        ([(8, 64, 0)], ("restoration.lost=generate",), Pool("cpu", 8, 1, EACH)),
        (
            [(8, 64, 0)],
            ("restoration.lost=generate", "restoration.generator=diffusers:a"),
            Pool("cpu", 1, 8, int(0.6 * 64 * GB)),
        ),
        ([(8, 64, 0), (8, 32, 0)], ('restoration.model=["compact", "swin2sr:a"]',), Pool("cpu", 2, 8, int(19.2 * GB))),
        ([(8, 64, 2), (8, 64, 2)], (), Pool("cuda", 4)),
        ([(8, 64, 2)], ("restoration.device=cpu",), Pool("cpu", 8, 1, EACH)),
    ],
)
def test_a_cluster_has_as_many_actors_as_it_can_feed(
    machines: Machines, cluster: list[tuple[int, int, int]], overrides: tuple[str, ...], expected: Pool
) -> None:
    machines(*cluster)
    assert pool_of(load_recipe(overrides=overrides)) == expected


def test_few_rows_have_few_actors_with_more_threads(machines: Machines) -> None:
    machines((8, 64, 0))
    assert pool_of(load_recipe(), rows=3) == Pool("cpu", 3, 2, EACH)
    assert pool_of(load_recipe(), rows=0) == Pool("cpu", 1, 8, EACH)
    machines((8, 64, 4))
    assert pool_of(load_recipe(), rows=3) == Pool("cuda", 3)


@pytest.mark.parametrize(
    ("cluster", "override", "message"),
    [
        ((2, 24, 0), "resources.actors=3", "resources.actors"),
        ((2, 24, 0), "resources.task_cpus=1", "resources.task_cpus"),
        ((2, 24, 0), "restoration.device=cuda", "no GPU"),
    ],
)
def test_what_does_not_fit_is_refused(
    machines: Machines, cluster: tuple[int, int, int], override: str, message: str
) -> None:
    machines(cluster)
    with pytest.raises(RecipeError, match=message):
        pool_of(load_recipe(overrides=[override]))


def test_a_cluster_may_still_grow(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    machines((2, 24, 0))
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert pool_of(load_recipe(overrides=["restoration.device=cuda", "resources.actors=4"])) == Pool("cuda", 4)
    machines((0, 8, 0))  # nor are threads counted before there is a machine to have them
    assert pool_of(load_recipe(overrides=["resources.actors=4"])) == Pool("cpu", 4)


@pytest.mark.usefixtures("ray_session")
def test_actors_take_no_more_threads_than_their_machine_has() -> None:
    cores = int(ray.cluster_resources()["CPU"])

    def threads(wanted: int) -> tuple[int, int] | None:
        return ray.get(ray.remote(lambda: Pool("cpu", 1, wanted).threads_here()).remote())

    assert threads(0) == threads(64) == (cores, cores)
    assert threads(1) == (1, cores)
    assert Pool("cuda", 1).threads_here() is None
