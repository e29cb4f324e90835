from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import RecipeError
from pipeline.recipe import _PLACES, DEFAULTS, Recipe, load_recipe, parse_recipe, ready_made
from tests.conftest import ROOT


def test_an_unknown_key_is_refused_with_the_nearest_valid_name() -> None:
    with pytest.raises(RecipeError, match=r"'restoration\.tiles'.*'restoration\.tile'"):
        load_recipe(overrides=["restoration.tiles=256"])


def test_a_key_without_its_section_is_pointed_to_its_place() -> None:
    with pytest.raises(RecipeError, match=r"did you mean 'restoration\.colourise'"):
        load_recipe(overrides=["colourize=true"])


@pytest.mark.parametrize("override", ["restoration.tile=big", "restoration.tile=100", "gate.clean_above=2"])
def test_a_value_that_does_not_fit_is_refused_by_name(override: str) -> None:
    with pytest.raises(RecipeError, match=override.split("=")[0].replace(".", r"\.")):
        load_recipe(overrides=[override])


def test_an_override_without_a_value_is_refused() -> None:
    with pytest.raises(RecipeError, match="KEY=VALUE"):
        load_recipe(overrides=["restoration.tile"])


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("restoration: {tile: 128, margin: 16}\n")
    recipe = load_recipe(str(file), ["restoration.tile=256"])
    assert (recipe.restoration.tile, recipe.restoration.margin) == (256, 16)


@pytest.mark.parametrize("content", ["- a list\n", "a: [broken\n", "restoration: 3\n"])
def test_a_broken_file_is_refused_by_its_name(tmp_path: Path, content: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(content)
    with pytest.raises(RecipeError):
        load_recipe(str(file))


@pytest.mark.parametrize(
    "text",
    [
        "source: {storage: {secret: [hush]}}",
        "source: {storage: {headers: {x: hush}}}",
        "source: {storage: hush://me:hush@there}",
        "output: {catalog: {uri: [hush]}}",
        "output: {signing: {key: {hush: hush}}}",
        "restoration: {storage: {token: {a: hush}}}",
        "output: {storage: {secret: hush, 3: hush}, file_mb: 0}",
        "source: {storage: {secret: hush}\noutput: }",
        "source: {uri: {a: hush}}",
        "source: {uri: 3, storage: {secret: hush}}",
        "restoration: {model: compact, tile: 's3://key:hush/hush@bucket'}",
        "gate: {rules: [{score: a, storage: hush}]}",
        "source: {storage: [{key: K, secret: hush}]}",
        "source: [{storage: {secret: hush}}]",
        "output: {catalog: hush}",
        "source: {storage: {secret: !hush 1}}",
        "source: {storage: {secret: *hush}}",
    ],
)
def test_what_is_wrong_is_told_without_the_secrets_beside_it(tmp_path: Path, text: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text.replace("\\n", "\n"))
    with pytest.raises(RecipeError) as raised:
        load_recipe(str(recipe))
    assert "hush" not in raised.value.message.replace("hush://", "")


@pytest.mark.parametrize("override", ["source.storage.secret=[hush", "source.storage.secret=!hush", "s3://k:hush@b"])
def test_an_override_is_told_without_its_value(override: str) -> None:
    with pytest.raises(RecipeError) as raised:
        load_recipe(overrides=[override])
    assert "hush" not in raised.value.message


def test_a_missing_file_is_refused_with_the_ready_made_ones() -> None:
    with pytest.raises(RecipeError, match="colourise"):
        load_recipe("no-such-recipe")


@pytest.mark.parametrize("name", ready_made())
def test_every_ready_made_recipe_loads(name: str) -> None:
    load_recipe(name)


def test_a_printed_recipe_reads_back_the_same() -> None:
    recipe = load_recipe(overrides=["source.uri=[a.parquet, b.parquet]", "columns.mask=null", "limits.rows=7"])
    assert parse_recipe(recipe.to_yaml()) == recipe


def test_the_digest_changes_with_the_work_and_not_with_the_place() -> None:
    digest = Recipe().digest()
    assert load_recipe(overrides=["restoration.tile=256"]).digest() != digest
    assert load_recipe(overrides=["gate.clean_above=0.9"]).digest() != digest
    elsewhere = load_recipe(
        output__uri="/elsewhere", source__uri=["x"], limits__rows=3, overrides=["resources.actors=2"]
    )
    assert elsewhere.digest() == digest


def test_an_empty_section_and_odd_values_are_told_how_to_mend(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("source:\noutput:\n")
    assert load_recipe(str(tmp_path / "r.yaml"), source__uri=["a"]).source.uri == ("a",)
    with pytest.raises(RecipeError, match="quotes"):
        load_recipe(None, ["columns.image=1910"])
    with pytest.raises(RecipeError, match="finite"):
        load_recipe(None, ["limits.max_image_mb=.inf"])


def test_machines_have_prices_or_runs_have_no_cost() -> None:
    assert load_recipe(overrides=[]).resources.prices.cost(3, 5) is None
    settings = ["resources.prices.actor_hour=0.8", "resources.prices.core_hour=0.05"]
    assert load_recipe(overrides=settings).resources.prices.cost(3, 10) == pytest.approx(2.9)


@pytest.mark.parametrize("place", ["source", "output"])
def test_a_catalog_that_would_import_a_class_is_refused(place: str) -> None:
    with pytest.raises(RecipeError, match=r"py-catalog-impl.*would run code"):
        load_recipe(overrides=[f"{place}.catalog={{py-catalog-impl: mine.Catalog}}"])


def test_more_patience_is_no_other_recipe() -> None:
    assert load_recipe(overrides=["limits.row_seconds=5000"]).digest() == load_recipe(overrides=[]).digest()


def test_the_digest_stays_when_a_version_brings_more_keys() -> None:
    """Else no run could go on after an upgrade: its table would hold rows of another recipe."""
    assert Recipe().digest() == hashlib.sha256(b'{"defaults": 2}').hexdigest()
    chosen = load_recipe(
        overrides=["restoration.tile=256", "source.filters=[[a, '=', 1]]", "scoring.clip=/models/clip"]
    )
    content = {
        "defaults": 2,
        "restoration": {"tile": 256},
        "scoring": {"clip": True},
        "source": {"filters": [["a", "=", 1]]},
    }
    assert chosen.digest() == hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def test_a_default_that_becomes_another_raises_the_number() -> None:
    """If this fails for a key that was there: raise `recipe.DEFAULTS`, and say so in the changelog. Then, or for a new
    key, write it into tests/defaults.json."""
    known = json.loads((ROOT / "tests/defaults.json").read_text())
    assert known["defaults"] == DEFAULTS
    left_out: dict[str, Any] = {"resources": True, "source": True, "restoration": {"storage"}}
    left_out |= {"output": {*_PLACES}, "limits": {"rows", "row_seconds"}}
    assert Recipe().model_dump(mode="json", exclude=left_out) == known["recipe"]


def test_recipes_of_earlier_versions_are_read() -> None:
    assert load_recipe(overrides=["restoration.generator=null"]) == Recipe()
