"""models: what there is to restore with, what each can do, its licence and size."""

from __future__ import annotations

import argparse
import sys

from jobs.console import OK, main, print_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("action", nargs="?", choices=["show"], help="all about one of them")
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="as a recipe names it: compact, a folder, spandrel:FILE"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the list, or one of its entries."""
    from pipeline.errors import RecipeError
    from pipeline.restoration.catalogue import Entry, describe, entries

    if arguments.action:
        if arguments.name is None:
            raise RecipeError("conservator models show NAME: which one?")
        print(describe(arguments.name))
        return OK
    rows = [Entry("name", "kind", "does", "licence", "size", "install first"), *entries()]
    print_table(rows)
    return OK


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__]))
