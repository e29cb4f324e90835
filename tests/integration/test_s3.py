"""The job on a real S3 server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.lake.iceberg import IcebergTable
from pipeline.lake.places import open_store
from pipeline.lake.storage import open_catalog
from pipeline.lake.table import Commit, DataFile, Removal
from tests.conftest import ONE_ACTOR, ROOT, encoded, noise
from tests.seaweed import KEYS, Seaweed


def job(server: Seaweed, *options: str, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jobs.restore", "--set", ONE_ACTOR, *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | server.environment | more)


def test_an_archive_on_s3_is_restored_to_s3(s3: Seaweed) -> None:
    store = s3.store()
    rows = [{"id": f"{n}", "image": encoded(noise(50, 60, n)), "shelf": n} for n in range(6)] + [
        {"id": "broken", "image": b"broken", "shelf": 9}
    ]
    with store.open("archive/source/a.parquet", "wb") as file:
        pq.write_table(pa.Table.from_pylist(rows), file)
    done = job(s3, "--source", "s3://archive/source", "--output", "s3://archive/out")
    assert done.returncode == 3, done.stderr
    table = pq.read_table("archive/out/data", filesystem=store).to_pylist()
    assert sorted((row["id"], row["shelf"]) for row in table) == sorted((row["id"], row["shelf"]) for row in rows)
    assert {"report.html", "summary.json", "data", "state"} <= {Path(path).name for path in store.ls("archive/out")}
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in done.stderr + done.stdout


@pytest.mark.slow
def test_a_model_lies_in_a_store_of_its_own(s3: Seaweed, write_table: Callable[..., Path], tmp_path: Path) -> None:
    """The job has no keys but those that the recipe names for models."""
    s3.store().put(str(ROOT / "pipeline/restoration/models/compact"), "archive/models/mine", recursive=True)
    write_table([{"id": "a", "image": encoded(noise(50, 60))}])
    recipe = tmp_path / "recipe.yaml"
    storage = {"endpoint_url": s3.environment["AWS_ENDPOINT_URL"], "key": "${MODELS_KEY}", "secret": "${MODELS_SECRET}"}
    recipe.write_text(json.dumps({"restoration": {"model": "s3://archive/models/mine", "storage": storage}}))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "MODELS_KEY": KEYS["AWS_ACCESS_KEY_ID"]}
    command = [sys.executable, "-m", "jobs.restore", "--recipe", str(recipe)]
    command += ["--source", str(tmp_path / "source"), "--output", str(tmp_path / "out")]

    def done(secret: str, *options: str) -> subprocess.CompletedProcess[str]:
        told = environment | {"MODELS_SECRET": secret}
        return subprocess.run([*command, *options], capture_output=True, text=True, cwd=ROOT, env=told, check=False)

    refused = done("wrong")
    assert refused.returncode == 2 and "s3://archive/models/mine" in refused.stderr and "wrong" not in refused.stderr
    assert done(KEYS["AWS_SECRET_ACCESS_KEY"], "--dry-run").returncode == 0
    restored = done(KEYS["AWS_SECRET_ACCESS_KEY"])
    assert restored.returncode == 0, restored.stderr
    assert pq.read_table(tmp_path / "out/data").num_rows == 1
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in (tmp_path / "out/state/recipe.yaml").read_text()


def test_wrong_keys_are_refused_with_exit_code_two_and_not_shown(s3: Seaweed) -> None:
    wrong = {"AWS_SECRET_ACCESS_KEY": "wrong-secret"}
    done = job(s3, "--source", "s3://archive/source", "--output", "s3://archive/out2", **wrong)
    assert done.returncode == 2, done.stderr
    assert "no access to s3://archive/out2" in done.stderr
    assert "wrong-secret" not in done.stderr + done.stdout


def test_tables_are_committed_through_a_rest_catalog(s3: Seaweed, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**KEYS, "REST_CREDENTIAL": ":".join(KEYS.values())}.items():
        monkeypatch.setenv(name, value)
    catalog = s3.table_bucket("tables")  # such a bucket takes nothing but tables, so no whole output
    storage = {"endpoint_url": s3.environment["AWS_ENDPOINT_URL"], "region": "us-east-1"}
    storage |= {"key": "${AWS_ACCESS_KEY_ID}", "secret": "${AWS_SECRET_ACCESS_KEY}"}
    store, root = open_store("s3://tables/archive/restored", storage)
    schema = pa.schema([("id", pa.string()), ("source_row", pa.string())])

    def table() -> IcebergTable:
        return IcebergTable(store, root, "archive.restored", catalog, storage)

    table().commit([], schema, Commit(1, "run", "digest"))
    for number in (2, 3):
        rows = pa.table({"id": [f"{number}"], "source_row": [f"{0:016d}-{number}"]}, schema=schema)
        with store.open(f"{root}/data/{number}.parquet", "wb") as file:
            pq.write_table(rows, file)
        data = DataFile(f"data/{number}.parquet", store.size(f"{root}/data/{number}.parquet"), 1)
        table().commit([data], schema, Commit(number, "run", "digest"))
    table().commit([], schema, Commit(4, "run", "digest"), removal=Removal("source_row", (f"{0:016d}-2",)))
    assert table().last_commit() == 4
    mine = open_catalog(catalog, storage, "mine").load_table("archive.restored")
    assert mine.scan().to_arrow()["id"].to_pylist() == ["3"]
