"""evaluate: measure a model on test sets, under the protocols that the field's papers use."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path

from jobs.console import OK, main, positive
from pipeline.errors import SourceError
from pipeline.evaluation.protocols import Result, colourise, denoise, jpeg, upscale
from pipeline.evaluation.tables import Sample, read_samples
from pipeline.restoration.restorer import Restorer

log = logging.getLogger(__name__)

Protocol = Callable[[Restorer, list[Sample]], list[Result]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    sets = ", ".join(f"{name}.parquet" for name in PROTOCOLS)
    parser.add_argument("data", nargs="+", metavar="FOLDER", help=f"holds some of {sets}, itself or one level down")
    parser.add_argument("--model", default="compact", help="a shipped model's name, a folder, or a URI")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="write evaluation.md and evaluation.json there")
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N images of each set")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")


def run(arguments: argparse.Namespace) -> int:
    """Evaluate on every set that is found."""
    sets: dict[str, Path] = {}
    for folder in arguments.data:
        for name in PROTOCOLS:
            for path in [*Path(folder).glob(f"{name}.parquet"), *Path(folder).glob(f"*/{name}.parquet")]:
                if sets.setdefault(name, path).resolve() != path.resolve():
                    raise SourceError(f"{sets[name]} and {path} are both {name}; evaluate one at a time")
    if not sets:
        raise SourceError(f"none of {', '.join(f'{n}.parquet' for n in PROTOCOLS)} lies in {', '.join(arguments.data)}")
    restorer = Restorer.from_pretrained(arguments.model, device=arguments.device)
    results: dict[str, list[Result]] = {}
    for name, path in sets.items():
        log.info("%s", name)
        results[name] = PROTOCOLS[name](restorer, read_samples(path)[: arguments.limit])
    text = as_markdown(results)
    print(text)
    if arguments.output:
        arguments.output.mkdir(parents=True, exist_ok=True)
        (arguments.output / "evaluation.md").write_text(text)
        content = {name: [dataclasses.asdict(result) for result in found] for name, found in results.items()}
        content_text = json.dumps({"model_sha256": restorer.digest, "sets": content}, indent=2)
        (arguments.output / "evaluation.json").write_text(content_text + "\n")
    return OK


def _kodak(restorer: Restorer, samples: list[Sample]) -> list[Result]:
    return [denoise(restorer, samples, sigma) for sigma in (15, 25, 50)]


def _live(restorer: Restorer, samples: list[Sample]) -> list[Result]:
    return [jpeg(restorer, samples, quality) for quality in (10, 20, 30, 40)]


def _set5(restorer: Restorer, samples: list[Sample]) -> list[Result]:
    return [upscale(restorer, samples, 4)]


def _captioned(restorer: Restorer, samples: list[Sample]) -> list[Result]:
    return [colourise(restorer, samples, captions) for captions in ("true", "empty", "shuffled")]


PROTOCOLS: dict[str, Protocol] = {"kodak24": _kodak, "live1": _live, "set5": _set5, "captioned": _captioned}


def as_markdown(results: dict[str, list[Result]]) -> str:
    """One table over all sets; the input's value stands beside every result."""
    lines = ["| set | images | test | input PSNR | PSNR | gain | SSIM |", "|---|---|---|---|---|---|---|"]
    for name, found in results.items():
        for r in found:
            lines.append(
                f"| {name} | {r.images} | {r.name} | {r.input_psnr:.2f} | {r.psnr:.2f} | {r.gain:+.2f} | {r.ssim:.4f} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__]))
