"""runs: tell what the runs of an output have done: when, rows, time, speed, failures, cost."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import sys
from typing import Any

from jobs.console import OK, main, print_table
from jobs.report import add_place, bare_output_at
from pipeline.errors import ConservatorError
from pipeline.lake.output import Output
from pipeline.recipe import parse_recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    add_place(parser)
    parser.add_argument("--json", action="store_true", help="a JSON object a run and line")


def run(arguments: argparse.Namespace) -> int:
    """Print a line a run, oldest first."""
    output = bare_output_at(arguments.output, arguments.set)
    last = output.run() or {}
    found = [_told(run_id, output.summary(run_id)) for run_id in output.runs()]
    if last.get("state") == "running":
        found.append(_unfinished(output, last["run_id"]))
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


def _unfinished(output: Output, run_id: str) -> dict[str, Any]:
    """A run that is at work, has ended early, as at a deadline, or was killed; with what its attempts have told."""
    attempts, held = output.attempts(run_id), output.lease(run_id).last()
    told: dict[str, Any] = {"run": run_id, "began": _began(run_id), "state": "not finished"}
    if held and held[0].run_id == run_id:
        holder, lives = held
        told |= {"state": "running" if lives else "stopped" if holder.released else "died", "host": holder.host}
    if attempts:
        rows, area, seconds = (sum(one[name] for one in attempts) for name in ("rows", "megapixels", "seconds"))
        told |= {"rows": rows, "MP": round(area, 2), "seconds": round(seconds, 1), "attempts": attempts}
        told["MP/s"] = round(area / seconds, 3) if seconds else None
        actors, cores = (sum(one[f"{name}_hours"] for one in attempts) for name in ("actor", "core"))
        told |= {"actor hours": round(actors, 3), "core hours": round(cores, 3)}
        with contextlib.suppress(ConservatorError):  # a recipe of another version
            prices = parse_recipe(output.recipe()).resources.prices
            cost = prices.cost(actors, cores)
            told |= {} if cost is None else {"cost": round(cost, 2), "currency": prices.currency}
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
