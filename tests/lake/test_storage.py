from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import RecipeError
from pipeline.lake.storage import check_options, for_delta, for_fsspec, for_iceberg, resolved
from pipeline.plan import prepare
from pipeline.recipe import load_recipe

OPTIONS = {"endpoint_url": "http://store", "key": "${MY_KEY}", "secret": "${MY_SECRET}", "region": "here"}


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "k")
    monkeypatch.setenv("MY_SECRET", "hush")


def test_every_library_gets_the_options_under_its_own_names() -> None:
    for_s3 = for_fsspec("s3", OPTIONS)
    assert (for_s3["endpoint_url"], for_s3["key"], for_s3["secret"]) == ("http://store", "k", "hush")
    assert for_s3["client_kwargs"] == {"region_name": "here"}
    iceberg = for_iceberg(OPTIONS)
    assert (iceberg["s3.endpoint"], iceberg["s3.secret-access-key"], iceberg["s3.region"]) == (
        "http://store",
        "hush",
        "here",
    )
    delta = for_delta(OPTIONS)
    assert (delta["AWS_ENDPOINT_URL"], delta["AWS_SECRET_ACCESS_KEY"]) == ("http://store", "hush")
    assert delta["AWS_ALLOW_HTTP"] == "true"
    assert for_fsspec("gcs", {"token": "${MY_SECRET}"}) == {"token": "hush"}


@pytest.mark.parametrize(
    "name", ["secret", "key", "s3.secret-access-key", "account_key", "sas_token", "connection_string", "credential"]
)
def test_a_secret_that_is_written_out_is_refused_and_not_repeated(name: str) -> None:
    with pytest.raises(RecipeError, match=r"\$\{NAME\}") as caught:
        check_options({name: "hush"}, "output.storage")
    assert "hush" not in caught.value.message and name in caught.value.message
    check_options({name: "${MY_SECRET}", "profile": "museum", "endpoint_url": "http://keys.example"}, "output.storage")
    for address in ("http://me:hush@store", "http://me:hu/sh@store"):
        with pytest.raises(RecipeError, match="endpoint_url"):
            check_options({"endpoint_url": address}, "output.storage")
    for address in ("http://me:${MY_SECRET}@store", "http://store:9000/a@b", "http://store/a:b"):
        check_options({"endpoint_url": address}, "output.storage")


def test_a_variable_that_is_not_set_is_named() -> None:
    with pytest.raises(RecipeError, match="NOT_THERE"):
        resolved({"key": "${NOT_THERE}"})


def test_a_run_with_a_secret_in_its_recipe_does_not_start(tmp_path: Path) -> None:
    recipe = load_recipe(
        overrides=["source.storage={secret: hush}"], source__uri=["s3://a/b"], output__uri=str(tmp_path)
    )
    with pytest.raises(RecipeError, match=r"source\.storage\.secret"):
        prepare(recipe)
