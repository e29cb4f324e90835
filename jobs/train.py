"""train: make a model from Parquet tables of images and captions, with damage made on the fly."""

from __future__ import annotations

import argparse
import dataclasses
import glob
import logging
import sys
from pathlib import Path

from jobs.console import OK, main
from pipeline.errors import SourceError

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    from pipeline.training.loop import TrainingPlan

    plan = TrainingPlan()
    parser.add_argument(
        "--data", action="append", required=True, metavar="PATH", help="Parquet file or glob; may be repeated"
    )
    parser.add_argument("--held-out", metavar="PATH", help="Parquet file to validate on")
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FOLDER", help="checkpoint, curve.csv, and model/ at the end"
    )
    parser.add_argument("--image-column", default="image")
    parser.add_argument("--captions-column", default="captions")
    parser.add_argument("--steps", type=int, default=plan.steps)
    parser.add_argument("--batch", type=int, default=plan.batch, help="images a step")
    parser.add_argument("--greys", type=int, default=plan.greys, help="further greys a step, for the global view alone")
    parser.add_argument("--patch", type=int, default=plan.patch, help="pixels, a multiple of 8")
    parser.add_argument("--learning-rate", type=float, default=plan.learning_rate)
    parser.add_argument("--seed", type=int, default=plan.seed)
    parser.add_argument("--checkpoint-every", type=int, default=plan.checkpoint_every, metavar="STEPS")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: all cores")


def run(arguments: argparse.Namespace) -> int:
    """Train, going on from the output's checkpoint if there is one."""
    import torch

    from pipeline.restoration.config import ModelConfig
    from pipeline.restoration.weights import save_model
    from pipeline.training.card import model_card
    from pipeline.training.data import load_photos
    from pipeline.training.loop import TrainingPlan, train

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = arguments.device if arguments.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    plan = TrainingPlan(
        steps=arguments.steps,
        batch=arguments.batch,
        greys=arguments.greys,
        patch=arguments.patch,
        learning_rate=arguments.learning_rate,
        seed=arguments.seed,
        checkpoint_every=arguments.checkpoint_every,
    )
    paths = [path for pattern in arguments.data for path in _paths(pattern)]
    photos = load_photos(paths, arguments.image_column, arguments.captions_column)
    held_out = []
    if arguments.held_out:
        held_out = load_photos(_paths(arguments.held_out), arguments.image_column, arguments.captions_column)
    log.info("%d photos, %d held out; %s", len(photos), len(held_out), dataclasses.asdict(plan))
    live = _LiveLine()
    model = train(photos, held_out, arguments.output, ModelConfig(), plan, torch.device(device), live)
    live.end()
    save_model(model, arguments.output / "model", model_card(model, plan, paths, live.last))
    print(f"the model is in {arguments.output / 'model'}")
    return OK


def _paths(pattern: str) -> list[str]:
    found = sorted(glob.glob(pattern))  # noqa: PTH207 - Path.glob takes no absolute patterns
    if not found:
        raise SourceError(f"nothing at {pattern}; give a Parquet file, a folder, or a glob in quotes")
    return found


class _LiveLine:
    """One line that is rewritten on a terminal, and log lines elsewhere."""

    def __init__(self) -> None:
        from pipeline.training.loop import Progress

        self._terminal = sys.stderr.isatty()
        self.last: Progress | None = None

    def __call__(self, progress: object) -> None:
        from pipeline.training.loop import Progress

        assert isinstance(progress, Progress)
        self.last = progress
        validation = " ".join(f"{name} {value:.2f}" for name, value in progress.validation.items())
        minutes, seconds = divmod(round(progress.remaining), 60)
        line = (
            f"step {progress.step}/{progress.steps} loss {progress.loss:.4f} "
            f"{progress.patches_per_second:.1f} patches/s, {minutes}:{seconds:02d} left {validation}"
        )
        if self._terminal:
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
        else:
            log.info(line)

    def end(self) -> None:
        """Leave the line."""
        if self._terminal:
            print(file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__]))
