"""What Prometheus gets to see, and whether the dashboard asks for nothing else."""

from __future__ import annotations

import json
import re
import threading
import time
from typing import Any

import pyarrow as pa
import pytest
from ray.exceptions import RayError

from pipeline import metrics
from tests.conftest import ROOT


class Recorder:
    """Stands for Ray's metrics, which only a cluster with an agent exports."""

    found: dict[str, list[tuple[float, dict[str, str]]]]

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...] = ()) -> None:
        assert description
        self._name, self._keys = name, set(tag_keys)

    def set_default_tags(self, tags: dict[str, str]) -> None:
        self._keys -= set(tags)
        self.found.setdefault("default tags", []).append(tags)  # type: ignore[arg-type]

    def inc(self, value: float, tags: dict[str, str] | None = None) -> None:
        assert value >= 0 and set(tags or {}) == self._keys
        self.found.setdefault(self._name, []).append((value, tags or {}))

    set = inc


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    Recorder.found = {}
    monkeypatch.setattr(metrics, "Counter", Recorder)
    monkeypatch.setattr(metrics, "Gauge", Recorder)
    return Recorder.found


def test_rows_megapixels_and_failures_are_counted_by_what_became_of_them(recorded: dict[str, Any]) -> None:
    table = pa.table(
        {
            "x_status": ["kept", "failed", "kept", "failed"],
            "x_image_width": pa.array([1000, None, 500, None], pa.int32()),
            "x_image_height": pa.array([1000, None, 400, None], pa.int32()),
            "x_error_stage": [None, "decode", None, "encode"],
            "x_error_type": [None, "UnreadableImage", None, "PermanentRowError"],
        }
    )
    metrics.RowMeter().count(table, "x_")
    metrics.RowMeter().count(table.slice(0, 0), "x_")
    statuses = {(count, tags["status"]) for count, tags in recorded["conservator_rows"]}
    assert statuses == {(2, "failed"), (2, "kept")}
    assert recorded["conservator_megapixels"] == [(pytest.approx(1.2), {"status": "kept"})]
    kinds = {(count, tags["stage"], tags["type"]) for count, tags in recorded["conservator_failures"]}
    assert kinds == {(1, "decode", "UnreadableImage"), (1, "encode", "PermanentRowError")}


def test_an_actor_tells_how_busy_it_is(recorded: dict[str, Any]) -> None:
    meter = metrics.ActorMeter("restore")
    with meter.working():
        pass
    (seconds, tags), (share, _) = (
        recorded["conservator_stage_seconds"][0],
        recorded["conservator_restorer_busy_share"][0],
    )
    assert tags == {"stage": "restore"} and seconds > 0 and 0 < share <= 1


def test_a_run_tells_what_is_left_and_how_many_cores_it_has(
    recorded: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    cores = iter([4.0, 12.0])
    beats: list[float] = []
    looked = threading.Event()

    def resources() -> dict[str, float]:
        try:
            return {"CPU": next(cores)}
        except StopIteration:
            looked.set()
            raise RayError("the cluster does not answer") from None

    monkeypatch.setattr(metrics.ray, "cluster_resources", resources)
    monkeypatch.setattr(metrics, "INTERVAL", 0.01)
    monkeypatch.setattr(metrics, "MINUTE", 0.0)
    beat = lambda meter: beats.append(meter.there("CPU"))  # noqa: E731
    with metrics.RunMeter("r1", lambda: 7, lambda: 0.8, lambda: {"kept": 3}, beat) as meter:
        assert looked.wait(10)
    assert meter.there("CPU") == 8 and meter.there("GPU") == 0
    assert beats[:2] == [4, 8]
    assert recorded["conservator_run_rows_left"] == [(7, {}), (7, {}), (0, {})], "none when the flow has ended"
    assert recorded["conservator_lease_left_share"] == [(0.8, {}), (0.8, {})]
    assert recorded["default tags"] == [{"run_id": "r1"}] * 3
    done = {tags["status"]: rows for rows, tags in recorded["conservator_run_rows"]}
    assert done == {"restored": 0, "kept": 3, "review": 0, "generated": 0, "failed": 0}


def test_an_actor_that_waits_is_told_to(recorded: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "INTERVAL", 0.01)
    metrics.ActorMeter("restore")
    deadline = time.monotonic() + 10
    while "conservator_restorer_busy_share" not in recorded and time.monotonic() < deadline:
        time.sleep(0.01)
    assert recorded["conservator_restorer_busy_share"][0] == (0, {})


def test_the_dashboard_asks_for_metrics_that_there_are(recorded: dict[str, Any]) -> None:
    dashboard = json.loads((ROOT / "deploy/kubernetes/dashboard.json").read_text())
    asked = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"ray_conservator_\w+", target["expr"])
    }
    source = (ROOT / "pipeline/metrics.py").read_text()
    counters = {f"ray_{name}_total" for name in re.findall(r'Counter\(\s*"(\w+)"', source)}
    gauges = {f"ray_{name}" for name in re.findall(r'[Gg]auge\(\s*"(\w+)"', source)}
    assert asked == counters | gauges
