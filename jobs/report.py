"""report: write summary.json and report.html of a finished run again, from its table."""

from __future__ import annotations

import argparse
import dataclasses
import sys

from jobs.console import OK, main
from pipeline.errors import OutputError
from pipeline.imaging.cells import redacted
from pipeline.lake.output import open_output
from pipeline.recipe import parse_recipe
from pipeline.reporting.summary import as_text, summarise


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("output", metavar="OUTPUT", help="what --output was in the run")


def run(arguments: argparse.Namespace) -> int:
    """Write both files, and print the summary."""
    from pipeline.flow import report

    output = open_output(arguments.output)
    last = output.run()
    if last is None or last["state"] != "finished":
        raise OutputError(f"{redacted(arguments.output)} holds no finished run; give what --output was")
    recipe = parse_recipe(output.recipe())
    output = open_output(arguments.output, recipe.output)
    dataset = output.dataset(output.table(), last["run_id"])
    summary = summarise(dataset, last["run_id"], recipe.output.prefix)
    summary = dataclasses.replace(summary, **last["measured"])
    report(output, dataset, summary, recipe)
    print(as_text(summary))
    return OK


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__]))
