"""evaluate: measure a model on test sets, under the protocols that the field's papers use."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

from jobs.console import OK, main, positive
from pipeline.errors import SourceError

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument(
        "data",
        nargs="+",
        metavar="PATH",
        help="a Parquet file of undamaged images, or a folder of them (one level down too); kodak24, live1 and set5 "
        "get the published protocols, others every kind of damage, colours from captions and references, and holes",
    )
    parser.add_argument("--model", default="compact", help="a shipped model's name, a folder, or a URI")
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="write evaluation.md, evaluation.json and figures there"
    )
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N images of each set")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")


def run(arguments: argparse.Namespace) -> int:
    """Evaluate on every set that is found."""
    from pipeline.evaluation import baselines, figures
    from pipeline.evaluation.report import as_markdown
    from pipeline.evaluation.suite import evaluate
    from pipeline.evaluation.tables import read_samples
    from pipeline.restoration.restorer import Restorer

    for module, what in ((baselines, "comparisons with OpenCV"), (figures, "figures")):
        if not module.available():
            log.warning("%s are left out; to have them: pip install 'conservator[evaluation]'", what)
    sets = {name: read_samples(path)[: arguments.limit] for name, path in find_sets(arguments.data).items()}
    empty = [name for name, samples in sets.items() if not samples]
    if empty:
        raise SourceError(f"there are no images in {', '.join(empty)}")
    restorer = Restorer.from_pretrained(arguments.model, device=arguments.device)
    evaluation = evaluate(restorer, sets)
    text = as_markdown(evaluation)
    print(text)
    if arguments.output:
        arguments.output.mkdir(parents=True, exist_ok=True)
        (arguments.output / "evaluation.md").write_text(text)
        content = {"model": restorer.name, "model_sha256": restorer.digest, **evaluation.as_json()}
        (arguments.output / "evaluation.json").write_text(json.dumps(content, indent=1) + "\n")
        if figures.available():
            figures.draw(evaluation, arguments.output)
    return OK


def find_sets(places: list[str]) -> dict[str, Path]:
    """Parquet files by their names without ending.

    Raises:
        SourceError: a place does not exist or holds none, or two files have one name.
    """
    sets: dict[str, Path] = {}
    for place in map(Path, places):
        found = [place] if place.is_file() else sorted([*place.glob("*.parquet"), *place.glob("*/*.parquet")])
        if not found:
            raise SourceError(f"no Parquet file at {place}")
        for path in found:
            if sets.setdefault(path.stem, path).resolve() != path.resolve():
                raise SourceError(f"{sets[path.stem]} and {path} are both {path.stem}; evaluate one at a time")
    return sets


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__]))
