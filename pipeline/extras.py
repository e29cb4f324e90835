"""Packages that are not installed with the rest."""

from __future__ import annotations

import importlib.util

from pipeline.errors import RecipeError


def are_installed(*packages: str) -> bool:
    """Whether all of them are."""
    return all(importlib.util.find_spec(name) is not None for name in packages)


def check_extra(key: str, extra: str, *packages: str) -> None:
    """Whether what a key of the recipe wants is installed: all of `packages`, which `extra` brings.

    Raises:
        RecipeError: it is not.
    """
    if not are_installed(*packages):
        raise RecipeError(f"{key} wants {packages[0]}, which is not installed: pip install '.[{extra}]'")
