"""evaluate: measure a model on test sets, under the protocols that the field's papers use."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import PurePosixPath

from jobs.console import OK, local_folder, main, positive
from pipeline.errors import SourceError
from pipeline.evaluation.tables import PUBLISHED
from pipeline.imaging.tables import ImageTable
from pipeline.lake.tables import open_tables
from pipeline.redaction import redacted

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument(
        "data",
        nargs="+",
        metavar="PATH_OR_URL",
        help="Parquet files of undamaged images, or a folder of them; kodak24, live1 and set5 get the published "
        "protocols, others every kind of damage, colours from captions and references, and holes",
    )
    parser.add_argument(
        "--model",
        action="append",
        help="as restoration.model: a shipped model's name (compact), a folder, a URI, or spandrel:FILE and the like; "
        "repeated, one takes what the other gives",
    )
    parser.add_argument(
        "--output", type=local_folder, metavar="FOLDER", help="write evaluation.md, evaluation.json and figures there"
    )
    parser.add_argument(
        "--limit", type=positive, default=200, metavar="N", help="only the first N images of each set (200)"
    )
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")


def run(arguments: argparse.Namespace) -> int:
    """Evaluate on every set that is found."""
    from pipeline.evaluation import baselines, figures
    from pipeline.evaluation.report import as_markdown
    from pipeline.evaluation.suite import evaluate
    from pipeline.evaluation.tables import read_samples
    from pipeline.recipe import Recipe
    from pipeline.restoration.loading import load_restorer

    for module, what in ((baselines, "comparisons with OpenCV"), (figures, "figures")):
        if not module.available():
            log.warning("%s are left out; to have them: pip install '.[evaluation]'", what)
    sets = {name: read_samples(tables, arguments.limit) for name, tables in find_sets(arguments.data).items()}
    empty = [name for name, samples in sets.items() if not samples]
    if empty:
        raise SourceError(f"there are no images in {', '.join(empty)}")
    gate = Recipe().gate  # in a chain, what is judged undamaged goes on as it is
    restorer = load_restorer(arguments.model or "compact", arguments.device, gate.clean_above, gate.sure_gain)
    evaluation = evaluate(restorer, sets)
    text = f"Model: {restorer.name}, SHA-256 {restorer.digest}\n\n{as_markdown(evaluation)}"
    print(text)
    if arguments.output:
        arguments.output.mkdir(parents=True, exist_ok=True)
        (arguments.output / "evaluation.md").write_text(text)
        content = {"model": restorer.name, "model_sha256": restorer.digest, **evaluation.as_json()}
        (arguments.output / "evaluation.json").write_text(json.dumps(content, indent=1) + "\n")
        if figures.available():
            figures.draw(evaluation, arguments.output)
    return OK


def find_sets(places: list[str]) -> dict[str, list[ImageTable]]:
    """The tables of each set: those with a published protocol by their file's name, others by their place.

    Raises:
        SourceError: a place does not exist or holds no tables, or two sets have one name.
    """
    sets: dict[str, list[ImageTable]] = {}
    for place in places:
        tables = open_tables([place])
        others = [table for table in tables if table.name not in PUBLISHED]
        name = others[0].name if len(others) == 1 else PurePosixPath(redacted(place).rstrip("/")).name
        found = {table.name: [table] for table in tables if table.name in PUBLISHED}
        for key, members in {**found, **({name: others} if others else {})}.items():
            if key in sets and [table.path for table in sets[key]] != [table.path for table in members]:
                both = f"{sets[key][0].path} and {members[0].path}"
                raise SourceError(f"{both} are both {key}; evaluate one at a time")
            sets[key] = members
    return sets


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__]))
