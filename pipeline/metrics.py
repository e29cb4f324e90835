"""Metrics for Prometheus, through Ray: rows and megapixels by status, failures, seconds by stage, busy actors."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.exceptions import RayError
from ray.util.metrics import Counter, Gauge

from pipeline.schema import megapixels

log = logging.getLogger(__name__)

STATUSES = ("restored", "kept", "review", "generated", "failed")
INTERVAL = 10.0
"""Seconds between two looks at a run."""
MINUTE = 60.0


class RunMeter:
    """Of a run, by its driver: tells while its block runs what is done, how much is left, and how safe its lease is.

    Counters of workers begin with what they first count, which Prometheus does not see as an increase; what alerts go
    by is told here.
    """

    def __init__(
        self,
        run_id: str,
        rows_left: Callable[[], int],
        lease_left: Callable[[], float],
        statuses: Callable[[], dict[str, int]],
        heartbeat: Callable[[RunMeter], None] | None = None,
    ) -> None:
        """What is told, and whom to ask.

        Args:
            run_id: stands at all that is told.
            rows_left: for rows.
            lease_left: for the share of the lease's time that is left, 0..1.
            statuses: for rows done, by status.
            heartbeat: is called every minute with this meter.
        """
        self._statuses, self._heartbeat = statuses, heartbeat
        self._done = self._gauge("conservator_run_rows", "Rows that the run has done.", run_id, "status")
        self._asked = (
            (self._gauge("conservator_run_rows_left", "Rows that the run has yet to do.", run_id), rows_left),
            (
                self._gauge("conservator_lease_left_share", "Share of its time after which the lease expires.", run_id),
                lease_left,
            ),
        )
        self._looks: list[dict[str, float]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._tell, name="run meter", daemon=True)

    def __enter__(self) -> RunMeter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._asked[0][0].set(0)  # what comes after the flow makes no rows

    @staticmethod
    def _gauge(name: str, description: str, run_id: str, *tags: str) -> Gauge:
        gauge = Gauge(name, description, tag_keys=("run_id", *tags))
        gauge.set_default_tags({"run_id": run_id})
        return gauge

    def there(self, resource: str) -> float:
        """How many of a resource, such as `CPU`, were there in the mean of all looks: machines come and go."""
        looks = [look.get(resource, 0.0) for look in list(self._looks)]
        return sum(looks) / len(looks) if looks else 0.0

    def _tell(self) -> None:
        beaten = time.monotonic()
        while True:
            try:
                self._looks.append(ray.cluster_resources())
                for gauge, ask in self._asked:
                    gauge.set(ask())
                for status, rows in {**dict.fromkeys(STATUSES, 0), **self._statuses()}.items():
                    self._done.set(rows, tags={"status": status})
            except RayError as error:  # for show only
                log.debug("what is told of the run is not known now: %s", error)
            if self._heartbeat is not None and time.monotonic() - beaten > MINUTE:
                beaten = time.monotonic()
                self._heartbeat(self)
            if self._stop.wait(INTERVAL):
                return


class StageMeter:
    """Of one stage in one worker; Ray exports what each says."""

    def __init__(self, stage: str) -> None:
        self._tags = {"stage": stage}
        self._seconds = Counter(
            "conservator_stage_seconds", "Seconds that a stage has worked, over all workers.", tag_keys=("stage",)
        )

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Counts the time that its block takes."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._worked(max(time.monotonic() - started, 1e-9))

    def _worked(self, seconds: float) -> None:
        self._seconds.inc(seconds, tags=self._tags)


class ActorMeter(StageMeter):
    """Of a stage that has an actor to itself, which should never wait."""

    def __init__(self, stage: str) -> None:
        super().__init__(stage)
        self._busy = Gauge("conservator_restorer_busy_share", "Share of its life that a restoring actor has worked.")
        self._started = time.monotonic()
        self._sum = 0.0
        threading.Thread(target=self._tell, name="actor meter", daemon=True).start()

    def _worked(self, seconds: float) -> None:
        super()._worked(seconds)
        self._sum += seconds
        self._set()

    def _set(self) -> None:
        self._busy.set(min(1.0, self._sum / max(time.monotonic() - self._started, 1e-9)))

    def _tell(self) -> None:
        """Also of an actor that waits, and for ever."""
        while True:
            time.sleep(INTERVAL)
            self._set()


class RowMeter:
    """Of rows as they come out."""

    def __init__(self) -> None:
        self._rows = Counter("conservator_rows", "Rows that came out.", tag_keys=("status",))
        self._megapixels = Counter("conservator_megapixels", "Megapixels that came out.", tag_keys=("status",))
        self._failures = Counter("conservator_failures", "Rows that failed.", tag_keys=("stage", "type"))

    def count(self, table: pa.Table, prefix: str) -> None:
        """Count a table of the output's columns."""
        rows = pa.table({"status": table[prefix + "status"], "area": megapixels(table, prefix)}).group_by("status")
        for row in rows.aggregate([([], "count_all"), ("area", "sum")]).to_pylist():
            self._rows.inc(row["count_all"], tags={"status": row["status"]})
            if row["area_sum"]:
                self._megapixels.inc(row["area_sum"], tags={"status": row["status"]})
        names = [prefix + "error_stage", prefix + "error_type"]
        failed = table.filter(pc.equal(table[prefix + "status"], "failed")).select(names)
        for row in (
            failed.rename_columns(["stage", "type"])
            .group_by(["stage", "type"])
            .aggregate([([], "count_all")])
            .to_pylist()
        ):
            self._failures.inc(row.pop("count_all"), tags=row)
