"""runs: tell what the runs of an output have done: when, rows, time, speed, failures, cost."""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from typing import Any

from jobs.console import OK, main, print_table
from jobs.report import add_place, bare_output_at


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    add_place(parser)
    parser.add_argument("--json", action="store_true", help="a JSON object a run and line")


def run(arguments: argparse.Namespace) -> int:
    """Print a line a run, oldest first."""
    output = bare_output_at(arguments.output, arguments.set)
    last = output.run() or {}
    found = [_told(run_id, output.summary(run_id)) for run_id in output.runs()]
    if last.get("state") == "running":  # or killed
        found.append(_unfinished(last["run_id"], output.attempts(last["run_id"])))
    if arguments.json:
        for one in found:
            print(json.dumps(one))
        return OK
    columns = ("run", "began", "state", "rows", "statuses", "MP", "seconds", "MP/s", "device", "cost", "currency")
    print_table([columns, *(tuple(_shown(one.get(name)) for name in columns) for one in found)])
    return OK


def _told(run_id: str, summary: dict[str, Any]) -> dict[str, Any]:
    speed = summary.get("speed")
    return {
        "run": run_id,
        "began": _began(run_id),
        "state": "finished" if summary else "unknown",
        "rows": summary.get("rows"),
        "statuses": summary.get("by_status"),
        "failures": summary.get("failures"),
        "MP": None if summary.get("megapixels") is None else round(summary["megapixels"], 2),
        "seconds": None if summary.get("seconds") is None else round(summary["seconds"], 1),
        "MP/s": None if speed is None else round(speed, 3),
        "device": summary.get("device") or None,
        "cost": None if summary.get("cost") is None else round(summary["cost"], 2),
        "currency": summary.get("currency") or None,
    }


def _unfinished(run_id: str, attempts: list[dict[str, Any]]) -> dict[str, Any]:
    """What its attempts have told that came to an end, such as at a deadline."""
    told: dict[str, Any] = {"run": run_id, "began": _began(run_id), "state": "not finished"}
    if attempts:
        rows, area, seconds = (sum(one[name] for one in attempts) for name in ("rows", "megapixels", "seconds"))
        told |= {"rows": rows, "MP": round(area, 2), "seconds": round(seconds, 1)}
        told["MP/s"] = round(area / seconds, 3) if seconds else None
        told["actor hours"] = round(sum(one["actor_hours"] for one in attempts), 3)
    return told


def _began(run_id: str) -> str | None:
    try:
        began = datetime.datetime.strptime(run_id.split("-")[0], "%Y%m%dT%H%M%SZ")
    except ValueError:
        return None
    return began.strftime("%Y-%m-%d %H:%M:%S UTC")


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name}={count}" for name, count in value.items())
    return "-" if value is None else str(value)


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__]))
