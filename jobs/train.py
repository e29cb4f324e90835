"""train: make a model from Parquet tables of images and captions, with damage made on the fly."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jobs.console import OK, local_folder, main, positive
from pipeline.errors import RecipeError

if TYPE_CHECKING:
    import torch

    from pipeline.training.loop import Plan

log = logging.getLogger(__name__)

FINE_TUNING: dict[str, Any] = {"steps": 1500, "learning_rate": 3e-4, "warm_up": 50}
"""What differs from `TrainingPlan` where weights are given to start from."""
PARTS: dict[str, dict[str, Any]] = {
    "tone": {"steps": 4000, "learning_rate": 2e-3, "batch": 64},
    "marks": {"steps": 4000, "learning_rate": 2e-3, "batch": 24},
    "stains": {"steps": 4000, "learning_rate": 2e-3, "batch": 24},
    "judge": {"steps": 1600},
    "expert": {"steps": 5000, "learning_rate": 1e-3, "warm_up": 100},
    "painter": {"steps": 4000, "learning_rate": 1e-3, "batch": 32, "warm_up": 150},
}
"""The same where a part alone learns."""
HELD_OUT_BYTES = 1 << 30
SIDE = 64
"""Pixels of a generated picture's sides."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    from pipeline.restoration.config import MAPPINGS
    from pipeline.training.restoring import TrainingPlan

    plan = TrainingPlan()
    parser.add_argument(
        "--source",
        action="append",
        required=True,
        metavar="PATH_OR_URL",
        help="undamaged images: a Parquet file, a folder or a glob, on any store; may be repeated",
    )
    parser.add_argument(
        "--task",
        choices=["restore", "generate"],
        default="restore",
        help="what it is to learn: to restore pictures (default), or to make small ones from captions",
    )
    parser.add_argument(
        "--from",
        dest="start",
        metavar="MODEL",
        help="start with these weights: a shipped model's name, a folder or URI",
    )
    parser.add_argument(
        "--text-encoder",
        metavar="PLACE",
        help="of a new model: all-MiniLM-L6-v2 (default), a folder or URI with a model of transformers, a file of word "
        "vectors (GloVe, word2vec), or a name on the Hugging Face hub; with --from: where that model's lies now",
    )
    parser.add_argument(
        "--image-encoder",
        metavar="PLACE",
        help="of a new model: compact (default), resnet18, resnet34, resnet50, a folder or URI with a backbone of "
        "transformers, or a name on the hub",
    )
    parser.add_argument("--mapping", choices=MAPPINGS, help="of a new model: attention (default) or a graph network")
    parser.add_argument("--downloads", action="store_true", help="fetch what has a name on the Hugging Face hub")
    parser.add_argument("--held-out", metavar="PATH_OR_URL", help="images to validate on")
    parser.add_argument(
        "--output",
        required=True,
        type=local_folder,
        metavar="FOLDER",
        help="checkpoint, curve.csv, and model/ at the end",
    )
    parser.add_argument("--image-column", default="image")
    parser.add_argument(
        "--captions-column",
        help="text or list of texts; if not given, `captions` or `caption`",
    )
    parser.add_argument(
        "--memory", type=positive, default=8, metavar="GB", help="of decoded images, in each worker (8)"
    )
    parser.add_argument("--steps", type=positive, help=f"{plan.steps}, or {FINE_TUNING['steps']} from given weights")
    parser.add_argument(
        "--batch", type=positive, help=f"images a step, of all workers together ({plan.batch}; 64 to generate)"
    )
    parser.add_argument(
        "--looks",
        type=int,
        help=f"further images for the global view alone, each time it learns; 0: none ({plan.looks})",
    )
    parser.add_argument(
        "--part",
        choices=["all", *PARTS],
        default="all",
        help="of a model given by --from: what of it is to learn. All (default); its tone head alone, which undoes "
        "fading, casts and uneven light; its mark head alone, which finds scratches, folds and holes; its stain head "
        "alone, which takes away foxing and dried puddles (all three learn quickly, on small pictures); its expert "
        "alone, a second decoder for noise, JPEG artefacts and lack of resolution; its painter alone, which gives "
        "greys colours and fills holes after captions and references; or its judge and critic alone, which say how "
        "good results are, and whether they are worse than what came in",
    )
    parser.add_argument("--patch", type=positive, help=f"pixels, a multiple of 8 ({plan.patch})")
    parser.add_argument(
        "--side", type=positive, help=f"of the pictures that a new model generates, a multiple of 8 ({SIDE})"
    )
    parser.add_argument(
        "--learning-rate",
        type=float,
        help=f"{plan.learning_rate:g}, or {FINE_TUNING['learning_rate']:g} from given weights",
    )
    parser.add_argument("--seed", type=int, default=plan.seed)
    parser.add_argument("--checkpoint-every", type=positive, default=plan.checkpoint_every, metavar="STEPS")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: all cores")
    parser.add_argument(
        "--loaders",
        type=int,
        default=0,
        metavar="N",
        help="processes of each worker that draw and damage images ahead of a GPU, which would wait for them; where a "
        "CPU trains they are in the way (0)",
    )
    parser.add_argument("--compile", action="store_true", help="run the decoder through torch.compile")
    parser.add_argument(
        "--workers", type=positive, default=1, help="share every batch among so many workers on Ray (1: without Ray)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Train, going on from the output's checkpoint if there is one."""
    from pipeline.restoration.catalogue import known_names
    from pipeline.restoration.views import CELL
    from pipeline.training.data import VIEW

    if arguments.patch and (arguments.patch % CELL or arguments.patch > VIEW):
        raise RecipeError(f"--patch {arguments.patch}: it must be a multiple of {CELL}, and {VIEW} at most")
    if (arguments.looks or 0) < 0 or (arguments.learning_rate is not None and arguments.learning_rate <= 0):
        raise RecipeError("--looks must be 0 or more, and --learning-rate more than 0")
    if arguments.loaders < 0 or (arguments.loaders and arguments.part == "judge"):
        raise RecipeError("--loaders must be 0 or more, and --part judge has none")
    if arguments.side and (arguments.side % CELL or not 32 <= arguments.side <= 128):
        raise RecipeError(f"--side {arguments.side}: it must be a multiple of {CELL} from 32 to 128")
    if arguments.start and (arguments.image_encoder or arguments.mapping):
        raise RecipeError("--image-encoder and --mapping are for new models: with --from they are what they were")
    of_restoring = ("image_encoder", "mapping", "compile", "patch", "looks")
    if arguments.task == "generate" and any(getattr(arguments, name) for name in of_restoring):
        raise RecipeError("--image-encoder, --mapping, --compile, --patch and --looks are for models that restore")
    if arguments.part != "all" and (arguments.task != "restore" or not arguments.start):
        raise RecipeError(f"--part {arguments.part} is for a model that restores, given by --from")
    if arguments.part != "all" and (arguments.compile or arguments.patch or arguments.looks is not None):
        raise RecipeError(f"--compile, --patch and --looks are for whole models, and --part {arguments.part} has none")
    if arguments.part == "judge" and arguments.workers > 1:
        raise RecipeError("--part judge is learned by one worker alone")
    if arguments.side and (arguments.task == "restore" or arguments.start):
        raise RecipeError("--side is for new models that generate")
    # workers on Ray have a folder of their own to work in
    options = {name: value for name, value in vars(arguments).items() if not callable(value)}
    options["output"] = arguments.output.absolute()
    options["source"] = [_absolute(uri) for uri in arguments.source]
    options["held_out"] = arguments.held_out and _absolute(arguments.held_out)
    for name in ("start", "text_encoder", "image_encoder"):
        if options[name] and options[name] not in known_names() and Path(options[name]).exists():
            options[name] = _absolute(options[name])
    if arguments.workers > 1:
        _together(options)
    else:
        _work(options)
    print(f"the model is in {arguments.output / 'model'}")
    return OK


def _absolute(uri: str) -> str:
    return uri if "://" in uri else str(Path(uri).expanduser().absolute())


def _together(options: dict[str, Any]) -> None:
    """Start workers on Ray, after what can be wrong was looked at here: there it would be tried again and again."""
    from pipeline.cluster import start_ray
    from pipeline.lake.tables import open_tables
    from pipeline.recipe import Recipe
    from pipeline.restoration.weights import load_generator, load_model
    from pipeline.training.cluster import on_ray
    from pipeline.training.team import Team

    plan = _plan(argparse.Namespace(**options), "")
    Team(0, options["workers"]).check(plan.batch, getattr(plan, "looks", 0))
    for table in open_tables([*options["source"], *([options["held_out"]] if options["held_out"] else [])]):
        table.check(options["image_column"])
    if options["start"]:
        (load_model if options["task"] == "restore" else load_generator)(options["start"])
    start_ray(Recipe())
    on_ray(_work, options, options["workers"], options["device"])


def _plan(arguments: argparse.Namespace, digest: str) -> Plan:
    """What the run consists of; `digest` is that of the weights to start from."""
    from pipeline.training.data import EVEN
    from pipeline.training.generating import GenerationPlan
    from pipeline.training.restoring import TrainingPlan

    kind = TrainingPlan if arguments.task == "restore" else GenerationPlan
    usual = dataclasses.asdict(kind()) | (FINE_TUNING if arguments.start else {}) | PARTS.get(arguments.part, {})
    mixture: dict[str, Any] = {"mixture": EVEN} if arguments.part == "judge" else {}
    own = ("looks", "patch", "part") if arguments.task == "restore" else ()
    return kind(
        steps=arguments.steps or usual["steps"],
        batch=arguments.batch or usual["batch"],
        learning_rate=arguments.learning_rate or usual["learning_rate"],
        warm_up=usual["warm_up"],
        start=digest,
        **{name: getattr(arguments, name) for name in ("seed", "checkpoint_every")},
        **{name: usual[name] if getattr(arguments, name) is None else getattr(arguments, name) for name in own},
        **mixture,
    )


def _work(options: dict[str, Any]) -> None:
    """What every worker does."""
    import torch

    from pipeline.lake.tables import open_tables
    from pipeline.restoration.weights import save_model
    from pipeline.training.card import model_card
    from pipeline.training.data import load_photos
    from pipeline.training.team import Team

    arguments = argparse.Namespace(**options)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    name = arguments.device if arguments.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    leads, device = Team.current().leads, torch.device(name)
    make = (_restoring if arguments.task == "restore" else _generating)(arguments, device)  # or it cannot be
    tables = open_tables(arguments.source)
    columns = {"image": arguments.image_column, "captions": arguments.captions_column}
    photos = load_photos(tables, **columns, memory=arguments.memory << 30, seed=arguments.seed)
    held_out = []
    if arguments.held_out and leads:
        held_out = load_photos(open_tables([arguments.held_out]), **columns, memory=HELD_OUT_BYTES)
    log.info("%d photos, %d held out; %s", len(photos), len(held_out), dataclasses.asdict(make.plan))
    live = _LiveLine()
    model = make.train(photos, held_out, arguments.output, live)
    live.end()
    if leads:
        card = model_card(model, make.plan, arguments.source, live.last, arguments.start)
        save_model(model, arguments.output / "model", card)


class _Training(NamedTuple):
    """A run, ready for its photos."""

    plan: Plan
    train: Callable[..., Any]
    """Photos, held-out ones, folder and live line -> the model."""


def _restoring(arguments: argparse.Namespace, device: torch.device) -> _Training:
    from pipeline.restoration.assembly import HEADS, assemble, with_head
    from pipeline.restoration.text import MINILM, text_encoder_of
    from pipeline.restoration.weights import load_model
    from pipeline.training.loop import ALL_CAPTIONS
    from pipeline.training.restoring import TrainingPlan, train

    if arguments.start:
        start, digest = load_model(arguments.start)
        part = "critic" if arguments.part == "judge" else arguments.part
        start = with_head(start, part, arguments.seed) if part in HEADS else start
    else:
        encoders = arguments.text_encoder or MINILM, arguments.image_encoder or "compact"
        start = assemble(*encoders, arguments.mapping or "attention", arguments.seed, arguments.downloads)
        digest = ""
    config = dataclasses.replace(start.config, name=arguments.output.name)
    text = text_encoder_of(config, device, arguments.text_encoder, arguments.downloads, ALL_CAPTIONS)
    plan = _plan(arguments, digest)
    assert isinstance(plan, TrainingPlan)

    def run(photos: Any, held_out: Any, folder: Path, live: _LiveLine) -> Any:
        given = (photos, held_out, folder, config, plan, device, live)
        return train(*given, start=start, compiled=arguments.compile, text=text, loaders=arguments.loaders)

    return _Training(plan, run)


def _generating(arguments: argparse.Namespace, device: torch.device) -> _Training:
    from pipeline.restoration.generator import GeneratorConfig
    from pipeline.restoration.text import MINILM, text_encoder, text_encoder_of
    from pipeline.restoration.weights import load_generator
    from pipeline.training.generating import GenerationPlan, train_generator
    from pipeline.training.loop import ALL_CAPTIONS

    start, digest = load_generator(arguments.start) if arguments.start else (None, "")
    config = start.config if start else GeneratorConfig(side=arguments.side or SIDE)
    config = dataclasses.replace(config, name=arguments.output.name)
    if start:
        text = text_encoder_of(config, device, arguments.text_encoder, arguments.downloads, ALL_CAPTIONS)
    else:
        place = arguments.text_encoder or MINILM
        text = text_encoder(place, config.text_tokens, device, arguments.downloads, ALL_CAPTIONS)
        config = dataclasses.replace(config, text_encoder=place, text_sha256=text.digest, text_width=text.width)
    plan = _plan(arguments, digest)
    assert isinstance(plan, GenerationPlan)

    def run(photos: Any, held_out: Any, folder: Path, live: _LiveLine) -> Any:
        return train_generator(photos, held_out, folder, config, plan, device, live, start, text, arguments.loaders)

    return _Training(plan, run)


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
        validation = " ".join(f"{name} {value:.4g}" for name, value in progress.validation.items())
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
