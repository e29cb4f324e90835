"""What a recipe names as its model, on a device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from pipeline.errors import ModelError
from pipeline.restoration.chain import Chain
from pipeline.restoration.generation import Picture, PictureMaker
from pipeline.restoration.names import DIFFUSERS, JUDGE, KINDS, is_other
from pipeline.restoration.others import check_other, here, other_model
from pipeline.restoration.restorer import Restorer
from pipeline.restoration.text import check_text_encoder
from pipeline.restoration.weights import load_generator, load_model


class Maker(Protocol):
    """What makes pictures of captions."""

    name: str
    license: str
    digest: str

    def __call__(self, captions: Sequence[str], seeds: Sequence[int]) -> list[Picture]:
        """A picture of each caption."""


def load_restorer(
    models: str | Sequence[str],
    device: str = "auto",
    undamaged_above: float = 1.0,
    sure_gain: float = float("inf"),
    half: bool = False,
    **options: Any,
) -> Restorer | Chain:
    """A model, or several in a row.

    Args:
        models: of ours by a shipped name, folder or URI; of others as `other_model` takes them. Only the first of
            several may be one of ours.
        device: `auto`, `cpu` or `cuda`.
        undamaged_above: see `Chain`,
        sure_gain: too.
        half: whether models of others may run in half precision.
        options: as for `Restorer`.

    Raises:
        ModelError: one cannot be loaded, or they cannot stand in this order.
        RecipeError: a package is missing.
    """
    first, others = _in_order(models)
    judge = Restorer.from_pretrained(first or JUDGE, device=device, **options)
    if not others:
        return judge
    return Chain(
        judge, [other_model(name, judge.device, half) for name in others], bool(first), undamaged_above, sure_gain
    )


def picture_maker(place: str, restorer: Restorer, **options: Any) -> Maker:
    """What makes pictures of captions: a model of ours, or `diffusers:FOLDER` with any text-to-image pipeline.

    `options` are those of `PictureMaker`.

    Raises:
        ModelError: there is none, or it cannot be loaded.
        RecipeError: a package is missing.
    """
    if not place.startswith(DIFFUSERS):
        return PictureMaker.from_pretrained(place, restorer, **options)
    from pipeline.restoration.diffusion import DiffusionMaker  # takes a while

    return DiffusionMaker(here("diffusers", place.removeprefix(DIFFUSERS)), restorer)


def check_generator(place: str) -> None:
    """Whether what makes pictures is there, as far as can be told without loading a pipeline of others.

    Raises:
        ModelError: it is not.
        RecipeError: a package is missing.
    """
    if place.startswith(DIFFUSERS):
        check_other(place)
    else:
        load_generator(place)


def check_models(models: str | Sequence[str], text_encoder: str | None = None) -> None:
    """Whether models are there and may stand in this order, as far as can be told without loading all of them.

    Raises:
        ModelError: they are not, or may not.
        RecipeError: a package is missing.
    """
    first, others = _in_order(models)
    model, _ = load_model(first or JUDGE)
    check_text_encoder(text_encoder or model.config.text_encoder)
    for name in others:
        check_other(name)


def _in_order(models: str | Sequence[str]) -> tuple[str | None, list[str]]:
    """The model of ours, if there is one, and those of others that follow it."""
    names = [models] if isinstance(models, str) else list(models)
    first, others = (None, names) if is_other(names[0]) else (names[0], names[1:])
    ours = [name for name in others if not is_other(name)]
    if ours:
        raise ModelError(
            f"{ours[0]!r} can only stand first among restoration.model; those that follow must be of others: "
            f"{', '.join(f'{kind}:…' for kind in KINDS)}"
        )
    return first, others
