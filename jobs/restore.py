"""restore: read a damaged archive, repair it, write images with scores and provenance."""

from __future__ import annotations

import argparse
import logging
import sys
from typing import TYPE_CHECKING

from jobs.console import FAILED_ROWS, OK, amount, duration, main, until
from pipeline import logs
from pipeline.recipe import load_recipe, ready_made
from pipeline.redaction import redacted

if TYPE_CHECKING:
    from pipeline.drain import Drain
    from pipeline.plan import Retry, Run
    from pipeline.recipe import Recipe

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument(
        "--source", action="append", metavar="URI", help="Parquet file, folder, glob or URL; may be repeated"
    )
    parser.add_argument("--output", metavar="URI", help="where data/, summary.json, report.html and state/ go")
    parser.add_argument("--recipe", metavar="FILE", help=f"a YAML file, or one of: {', '.join(ready_made())}")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="such as restoration.tile=256")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N rows")
    parser.add_argument(
        "--deadline", type=duration, metavar="TIME", help="end after so long, such as 4h or 90m; the next run goes on"
    )
    parser.add_argument(
        "--until",
        type=until,
        metavar="HH:MM",
        help="end when it is next that time here; as --deadline",
    )
    parser.add_argument(
        "--max-megapixels", type=amount, metavar="N", help="end when about so many are done; the next run goes on"
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--fresh", action="store_true", help="do all rows anew, to replace those in the output")
    which.add_argument(
        "--retry-failed",
        nargs="?",
        const="transient",
        choices=["transient", "all"],
        help="do only rows again that have failed: for reasons that may pass, or all",
    )
    parser.add_argument("--dry-run", action="store_true", help="show what would be done and how long it may take")
    parser.add_argument("--print-recipe", action="store_true", help="print the whole recipe and stop")


def run(arguments: argparse.Namespace) -> int:
    """Restore; 0 if all rows are well, 3 if some failed."""
    recipe = load_recipe(
        arguments.recipe,
        arguments.set,
        source__uri=arguments.source,
        output__uri=arguments.output,
        limits__rows=arguments.limit,
    )
    if arguments.print_recipe:
        print(recipe.to_yaml(), end="")
        return OK
    from pipeline.cluster import start_ray
    from pipeline.drain import Drain
    from pipeline.plan import prepare

    ends = [end for end in (arguments.deadline, arguments.until) if end is not None]
    drain = Drain(recipe.output.grace_seconds, min(ends, default=None), arguments.max_megapixels)

    def found(run: Run) -> None:
        if run.is_needed:
            start_ray(recipe)  # its processes end with the thread that has started them: it must be this one

    run = prepare(recipe, arguments.fresh, arguments.retry_failed, found, early=not arguments.dry_run)
    if arguments.dry_run:
        start_ray(recipe)  # if it was not needed
        return _dry_run(run)
    logs.configure(run_id=run.run_id)
    code = _restore(run, arguments.retry_failed, drain)
    return max(code, _carry_out_decisions(recipe, run, drain)) if arguments.retry_failed is None else code


def _restore(run: Run, retry: Retry | None, drain: Drain) -> int:
    from pipeline import cluster
    from pipeline.lake.output import REPORTS
    from pipeline.reporting.summary import as_text

    digest = run.recipe.digest()[:12]
    rest = ", while the rest of the source is looked through" if run.search else ""
    log.info("run %s: %d rows of %d files, recipe %s%s", run.run_id, run.rows, len(run.source.files), digest, rest)
    if run.duplicates:
        log.warning("%s", run.duplicates)
    if not run.is_needed:
        print(
            "no rows of the source have failed that way"
            if retry
            else f"nothing new: all {len(run.source.finished)} files of the source are finished"
        )
        return OK
    cluster.start_ray(run.recipe)
    from pipeline import flow

    with drain.on_signals():
        summary = flow.restore(run, drain, retry)
    print(as_text(summary))
    place = redacted(run.output.uri).rstrip("/")
    if retry == "reviewed":
        print(f"\nthese are the rows about which persons had decided; {place}/{REPORTS}/{run.run_id}/report.html")
    else:
        print(f"\n{place}/report.html shows the images before and after")
    if summary.by_status.get("review"):
        print(f"conservator review {place} is where a person decides about the rows marked review")
    return FAILED_ROWS if summary.by_status.get("failed") else OK


def _carry_out_decisions(recipe: Recipe, run: Run, drain: Drain) -> int:
    """What persons have decided since about rows of the table."""
    from pipeline.plan import prepare

    if not run.decisions or (run.output.run() or {}).get("decided") == run.decided:
        return OK
    decided = prepare(recipe, retry="reviewed")
    if decided.waiting:
        log.warning("%d rows are decided, but their input files are gone or not finished", decided.waiting)
    if not decided.rows:
        return OK
    log.info("%d rows are decided", decided.rows)
    return _restore(decided, "reviewed", drain.again())


def _dry_run(run: Run) -> int:
    from pipeline.errors import OutputError
    from pipeline.estimate import estimate

    found = estimate(run)
    print(found.as_text())
    if found.sampled and not run.turn.retries:  # rows that have failed are not like others
        try:
            run.output.keep_estimate(found.as_dict())
        except OutputError as error:  # then reports do without
            log.warning("the estimate could not be kept: %s", error)
    return OK


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__]))
