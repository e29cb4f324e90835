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
        ([(2, 24, 0)], (), Pool("cpu", 2, 1, 2)),
        ([(16, 15, 0)], (), Pool("cpu", 3, 5, 16)),  # memory for three
        ([(1, 2, 0)], ("resources.task_cpus=0.25",), Pool("cpu", 1, 1, 1)),
        ([(8, 64, 0), (4, 64, 0), (0, 8, 0)], (), Pool("cpu", 12, 1, 8)),  # a head without CPUs has none
        ([(8, 64, 0)], ("resources.actors=1",), Pool("cpu", 1, 8, 8)),
        ([(8, 64, 0)] * 2, ("resources.actors=1",), Pool("cpu", 1, 8, 8)),  # threads do not reach to other machines
        ([(8, 64, 0)], ("resources.threads=4",), Pool("cpu", 8, 4, 8)),
        ([(8, 64, 0)], ("restoration.model=spandrel:a.pth",), Pool("cpu", 1, 8, 8)),
        ([(8, 64, 0)] * 2, ('restoration.model=["compact", "swin2sr:a"]',), Pool("cpu", 2, 8, 8)),
        ([(8, 64, 2), (8, 64, 2)], (), Pool("cuda", 4, 0, 0)),
        ([(8, 64, 2)], ("restoration.device=cpu",), Pool("cpu", 8, 1, 8)),
    ],
)
def test_a_cluster_has_as_many_actors_as_it_can_feed(
    machines: Machines, cluster: list[tuple[int, int, int]], overrides: tuple[str, ...], expected: Pool
) -> None:
    machines(*cluster)
    assert pool_of(load_recipe(overrides=overrides)) == expected


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
    recipe = load_recipe(overrides=["restoration.device=cuda", "resources.actors=4"])
    assert pool_of(recipe) == Pool("cuda", 4, 0, 0)
