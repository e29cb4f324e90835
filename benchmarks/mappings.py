"""`attention` beside `graph`: the same short training from the same weights on the same pictures, then the same tests.

    python -m benchmarks.mappings --source 'train-*.parquet' --held-out dev.parquet --output runs/mappings

Both begin with a shipped model whose mapping's layers are drawn anew; all else of it is kept, and goes on learning with
them. A run that was interrupted goes on from its checkpoint.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import statistics
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipeline.evaluation.protocols import colourise, denoise, inpaint, measure
from pipeline.evaluation.statistics import paired_difference
from pipeline.evaluation.tables import Sample, read_samples
from pipeline.lake.tables import open_tables
from pipeline.restoration.config import MAPPINGS
from pipeline.restoration.model import CompactModel
from pipeline.restoration.request import Request
from pipeline.restoration.restorer import Restorer
from pipeline.restoration.weights import load_model
from pipeline.training.data import load_photos
from pipeline.training.loop import Progress
from pipeline.training.restoring import TrainingPlan, train

log = logging.getLogger(__name__)

LOOKS = 20
"""Images whose global view is timed, in turn with the other mapping's."""
NOISY = 40
"""Images that are denoised."""


def beginning(place: str, mapping: str) -> tuple[CompactModel, str]:
    """A model's weights with another mapping, whose layers are random; and the digest of those weights."""
    model, digest = load_model(place)
    torch.manual_seed(0)
    fresh = CompactModel(dataclasses.replace(model.config, mapping=mapping, name=mapping))
    kept = {name: weight for name, weight in model.state_dict().items() if not name.startswith("fusion.layers.")}
    missing, unexpected = fresh.load_state_dict(kept, strict=False)
    assert not unexpected and all(name.startswith("fusion.layers.") for name in missing)
    return fresh, digest


def tests(restorer: Restorer, samples: Sequence[Sample]) -> dict[str, list[float]]:
    """PSNR of each image by each test."""
    cases = {
        **{f"greys, captions {c}": partial(colourise, samples, c) for c in ("true", "empty", "shuffled")},
        **{f"greys, reference {r}": partial(colourise, samples, "empty", r) for r in ("same", "other")},
        "20 % missing, under the mask": partial(inpaint, samples, 0.2),
        "noise, sigma 25": partial(denoise, samples[:NOISY], 25),
    }
    found = {}
    for name, make in cases.items():
        log.info("%s: %s", restorer.name, name)
        found[name] = measure(restorer, make()).each
    return found


def view_seconds(restorers: Sequence[Restorer], samples: Sequence[Sample]) -> list[float]:
    """Median seconds of one global view by each; the captions are encoded before."""
    requests = [Request(sample.pixels, caption=sample.captions[0]) for sample in samples[:LOOKS]]
    taken: list[list[float]] = [[] for _ in restorers]
    for request in requests:
        for restorer, seconds in zip(restorers, taken, strict=True):
            restorer.agreement(request)
            started = time.perf_counter()
            restorer.agreement(request)
            seconds.append(time.perf_counter() - started)
    return [statistics.median(seconds) for seconds in taken]


def report(found: dict[str, dict[str, Any]]) -> str:
    """As Markdown, a column a mapping, with what captions and references are worth."""
    names = list(found)
    lines = [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]

    def row(name: str, cells: Sequence[str]) -> None:
        lines.append(f"| {name} | {' | '.join(cells)} |")

    row("parameters of the mapping", [f"{one['parameters'] / 1e6:.2f} M" for one in found.values()])
    row("seconds a global view", [f"{one['seconds']:.4f}" for one in found.values()])
    row("seconds a training step", [f"{one['step_seconds']:.2f}" for one in found.values()])
    for test in next(iter(found.values()))["psnr"]:
        row(test, [f"{statistics.fmean(one['psnr'][test]):.2f} dB" for one in found.values()])
    for what, better, worse in (
        ("true captions over empty", "greys, captions true", "greys, captions empty"),
        ("true captions over shuffled", "greys, captions true", "greys, captions shuffled"),
        ("same scene as reference over none", "greys, reference same", "greys, captions empty"),
        ("another scene as reference over none", "greys, reference other", "greys, captions empty"),
    ):
        gains = [paired_difference(one["psnr"][better], one["psnr"][worse]) for one in found.values()]
        row(what, [str(gain) for gain in gains])
    return "\n".join(lines)


def main() -> None:
    """Train, measure, and print Markdown; JSON lies in the output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", action="append", required=True)
    parser.add_argument("--held-out", required=True, help="photographs with captions that nothing was trained on")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", default="compact")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--limit", type=int, default=200)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    samples = read_samples(open_tables([options.held_out]), options.limit)
    photos = load_photos(open_tables(options.source))
    plan = TrainingPlan(
        steps=options.steps, batch=8, patch=96, look_every=1, learning_rate=4e-4, warm_up=50, average=0.99
    )
    found: dict[str, dict[str, Any]] = {}
    restorers = []
    for mapping in MAPPINGS:
        start, digest = beginning(options.model, mapping)
        steps: list[Progress] = []
        given = dataclasses.replace(plan, start=digest)
        model = train(photos, [], options.output / mapping, start.config, given, device, steps.append, start)
        log.info("%s: %s", mapping, steps[-1])
        speed = steps[-1].patches_per_second  # 0 if all of it was done before
        seconds = plan.batch / speed if speed else float("nan")
        restorer = Restorer(model, device=device)
        restorers.append(restorer)
        parameters = sum(weight.numel() for weight in model.fusion.parameters())
        found[mapping] = {"parameters": parameters, "step_seconds": seconds, "psnr": tests(restorer, samples)}
    for one, seconds in zip(found.values(), view_seconds(restorers, samples), strict=True):
        one["seconds"] = seconds
    (options.output / "mappings.json").write_text(json.dumps(found) + "\n")
    print(report(found))


if __name__ == "__main__":
    main()
