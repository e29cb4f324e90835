"""What `--dry-run` estimates beside what the run takes, on the sample archive many times over.

python -m benchmarks.estimate [--times 50] [--set KEY=VALUE …]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

SAMPLES = Path(__file__).parents[1] / "samples"
FILES = 5
"""Parquet files that the rows come in."""


def build(folder: Path, times: int) -> int:
    """So many copies of the sample archive's rows with ids of their own; how many rows there are."""
    rows = pq.read_table(SAMPLES / "archive/archive.parquet")
    folder.mkdir(parents=True)
    for part in range(FILES):
        copies = []
        for copy in range(part, times, FILES):
            ids = pa.array([f"{copy:03d}-{name}" for name in rows["id"].to_pylist()])
            copies.append(rows.set_column(rows.column_names.index("id"), "id", ids))
        if copies:
            pq.write_table(pa.concat_tables(copies), folder / f"part-{part}.parquet", row_group_size=50)
    return times * rows.num_rows


def main() -> None:
    """Measure, and print Markdown and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        source, output = Path(place, "source"), Path(place, "out")
        rows = build(source, options.times)
        job = [sys.executable, "-m", "jobs.cli", "restore", "--recipe", str(SAMPLES / "recipe.yaml")]
        job += ["--source", str(source), "--output", str(output)]
        job += [part for override in options.overrides for part in ("--set", override)]
        plan = subprocess.run([*job, "--dry-run"], check=True, capture_output=True, text=True).stdout
        sys.stderr.write(plan)
        done = subprocess.run(job, check=False, capture_output=True, text=True)
        if not (output / "summary.json").exists():
            raise SystemExit(f"the run failed: {done.stderr[-2000:]}")
        summary = json.loads((output / "summary.json").read_text())
    estimated, taken = summary["estimate"]["core_hours"], summary["core_hours"]
    lines = ["| rows | hours of cores, estimated | taken | estimated / taken |", "|---|---|---|---|"]
    lines.append(f"| {rows} | {estimated:.4f} | {taken:.4f} | {estimated / taken:.3f} |")
    told = {name: summary[name] for name in ("estimate", "actor_hours", "core_hours", "flow_seconds", "speed")}
    sys.stdout.write("\n".join(lines) + "\n\n" + json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
