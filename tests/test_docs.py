"""What the documents show is what the program takes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline.recipe import load_recipe
from tests.conftest import ROOT

RECIPES = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/cookbook.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_of_the_cookbook_are_recipes(recipe: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(recipe)
    load_recipe(str(tmp_path / "recipe.yaml"), [])


def test_every_page_is_found_from_the_menu() -> None:
    menu = (ROOT / "mkdocs.yml").read_text()
    assert all(f"{page.name}\n" in menu for page in (ROOT / "docs").glob("*.md"))
