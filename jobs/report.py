"""report: write summary.json and report.html of a finished run again, from its table."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence

from jobs.console import OK, main
from pipeline.errors import OutputError
from pipeline.lake.output import REPORTS, Output, open_output
from pipeline.recipe import Recipe, load_recipe, parse_recipe
from pipeline.redaction import redacted
from pipeline.reporting.summary import Summary, as_text
from pipeline.reporting.survey import survey


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    add_place(parser)
    parser.add_argument(
        "--run", dest="run_id", metavar="RUN_ID", help="a run before the last; its rows as the table has them now"
    )


def add_place(parser: argparse.ArgumentParser) -> None:
    """Where the table is."""
    parser.add_argument("output", metavar="TABLE", help="what --output was in the run, or its data folder")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="options of its store, such as output.storage.…"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write both files, and print the summary."""
    from pipeline.flow import report

    output, recipe = output_at(arguments.output, arguments.set)
    main_run = output.main_run()
    run_id = arguments.run_id or main_run
    if run_id is None:
        raise OutputError(f"{redacted(output.uri)} holds no finished run; run conservator restore again")
    rows = output.scan(output.table(), run_id)
    seen = survey(rows, run_id, recipe.output.prefix)
    if not seen.summary.rows and arguments.run_id:
        raise OutputError(
            f"{redacted(output.uri)} holds no rows of run {run_id}; there are reports of: "
            f"{', '.join(output.runs()) or 'none'}"
        )
    known = {field.name for field in dataclasses.fields(Summary)} & seen.summary.measured.keys()
    measured = {name: value for name, value in output.measured(run_id).items() if name in known}
    seen = dataclasses.replace(seen, summary=dataclasses.replace(seen.summary, **measured))
    report(output, rows, seen, recipe, is_main=run_id == main_run)
    print(as_text(seen.summary))
    print(f"\n{redacted(output.uri).rstrip('/')}/{REPORTS}/{run_id}/report.html")
    return OK


def output_at(place: str, options: Sequence[str]) -> tuple[Output, Recipe]:
    """The output at a place with its recipe; `options` set what of it is needed to reach the place.

    Raises:
        OutputError: there is none.
    """
    output = bare_output_at(place, options)
    recipe = parse_recipe(output.recipe())
    storage = output.settings.storage or recipe.output.storage
    return open_output(output.uri, recipe.output.model_copy(update={"storage": storage})), recipe


def bare_output_at(place: str, options: Sequence[str]) -> Output:
    """The same without its recipe: enough for what stands beside the table.

    Raises:
        OutputError: there is none.
    """
    settings = load_recipe(overrides=options).output
    output = open_output(place, settings)
    if output.run() is None and place.rstrip("/").endswith("/data"):
        output = open_output(place.rstrip("/").removesuffix("/data"), settings)
    if output.run() is None:
        raise OutputError(f"{redacted(place)} holds no finished run; give what --output was")
    return output


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__]))
