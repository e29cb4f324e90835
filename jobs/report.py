"""report: write summary.json and report.html of a finished run again, from its table."""

from __future__ import annotations

import argparse
import dataclasses
import sys

from jobs.console import OK, main
from pipeline.errors import OutputError
from pipeline.imaging.cells import redacted
from pipeline.lake.output import REPORTS, Output, open_output
from pipeline.recipe import Recipe, parse_recipe
from pipeline.reporting.summary import Summary, as_text
from pipeline.reporting.survey import survey


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("output", metavar="TABLE", help="what --output was in the run, or its data folder")
    parser.add_argument(
        "--run", dest="run_id", metavar="RUN_ID", help="a run before the last; its rows as the table has them now"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write both files, and print the summary."""
    from pipeline.flow import report

    output, recipe, last = finished_output(arguments.output)
    run_id = arguments.run_id or last
    dataset = output.dataset(output.table(), run_id)
    seen = survey(dataset, run_id, recipe.output.prefix)
    if not seen.summary.rows and arguments.run_id:
        raise OutputError(
            f"{redacted(output.uri)} holds no rows of run {run_id}; there are reports of: "
            f"{', '.join(output.runs()) or 'none'}"
        )
    known = {field.name for field in dataclasses.fields(Summary)} & seen.summary.measured.keys()
    measured = {name: value for name, value in output.measured(run_id).items() if name in known}
    seen = dataclasses.replace(seen, summary=dataclasses.replace(seen.summary, **measured))
    report(output, dataset, seen, recipe, is_last=run_id == last)
    print(as_text(seen.summary))
    print(f"\n{redacted(output.uri).rstrip('/')}/{REPORTS}/{run_id}/report.html")
    return OK


def finished_output(place: str) -> tuple[Output, Recipe, str]:
    """The output at a place with its recipe and the id of its last run, which is finished.

    Raises:
        OutputError: there is none.
    """
    output = open_output(place)
    last = output.run()
    if last is None and place.rstrip("/").endswith("/data"):
        place = place.rstrip("/").removesuffix("/data")
        output = open_output(place)
        last = output.run()
    if last is None or last["state"] != "finished":
        raise OutputError(f"{redacted(place)} holds no finished run; give what --output was")
    recipe = parse_recipe(output.recipe())
    return open_output(place, recipe.output), recipe, last["run_id"]


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__]))
