"""The console command: `conservator COMMAND …`; each command is a module of this package."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from jobs.console import execute, prepare
from pipeline import __version__

COMMANDS = {
    "restore": "restore an archive",
    "submit": "run one of these commands on a Ray cluster, through its job API",
    "train": "train a model on tables of images and captions",
    "evaluate": "measure a model under the field's protocols",
    "damage": "make a damaged archive, with its truth, from undamaged images",
    "models": "show what there is to restore with, and what each can do",
    "runs": "tell what the runs of an output have done",
    "report": "write summary and report of a finished run again",
    "review": "serve a page on which a person decides about the rows marked review",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, run the command, return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="conservator", description="Restores image archives in batches.")
    parser.add_argument("--version", action="version", version=f"conservator {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    asked = next((word for word in words if word in COMMANDS), None)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary.capitalize() + ".")
        if name == asked:  # importing a command brings in PyTorch or Ray: only the one that is wanted
            job = importlib.import_module(f"jobs.{name}")
            prepare(command, job)
            command.set_defaults(run=job.run)
    parsed = parser.parse_args(words)
    return execute(parsed.run, parsed)


if __name__ == "__main__":
    sys.exit(main())
