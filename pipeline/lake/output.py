"""The output place: `data/` with the table, `state/` with what the job knows, and the reports beside them."""

from __future__ import annotations

import dataclasses
import json
import posixpath
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from pipeline.errors import OutputError, SourceError
from pipeline.imaging.cells import redacted
from pipeline.lake.places import explained, join, make_folder, open_store

RUN = "state/run.json"
RECIPE = "state/recipe.yaml"


@dataclasses.dataclass(frozen=True)
class Output:
    """One output place on any store."""

    uri: str
    store: fsspec.AbstractFileSystem
    root: str

    @property
    def data(self) -> str:
        """Path of the folder with the Parquet files."""
        return join(self.root, "data")

    def run(self) -> dict[str, Any] | None:
        """What the last run wrote about itself; None before the first."""
        path = join(self.root, RUN)
        with explained(self.uri, OutputError):
            if not self.store.exists(path):
                return None
            try:
                content: dict[str, Any] = json.loads(self.store.cat_file(path))
            except json.JSONDecodeError as error:
                raise OutputError(f"{redacted(path)} is not JSON; remove it, or give another output") from error
            return content

    def recipe(self) -> str:
        """The recipe of the last run, as YAML."""
        with explained(self.uri, OutputError):
            text: str = self.store.cat_file(join(self.root, RECIPE)).decode()
            return text

    def check(self, fresh: bool) -> None:
        """Whether a run may begin here; writes nothing.

        Raises:
            OutputError: it holds a finished run and `fresh` is not set, or foreign data.
        """
        last = self.run()
        if last is None and self._data_files():
            raise OutputError(f"{redacted(self.uri)}/data holds Parquet files of something else; give an empty output")
        if last is not None and last["state"] in ("whole", "finished") and not fresh:
            raise OutputError(
                f"{redacted(self.uri)} holds the finished run {last['run_id']}; "
                "give another --output, or --fresh to replace it when this run is finished"
            )

    def begin(self, run: dict[str, Any], recipe: str, fresh: bool) -> None:
        """Claim the place for a run. What an unfinished run left is removed.

        Raises:
            OutputError: it holds a finished run and `fresh` is not set, holds foreign data, or is not writable.
        """
        last = self.run()
        if last is not None and last["state"] == "whole":
            self.finish(last)
            last = self.run()
        self.check(fresh)
        if last is not None and last["state"] != "finished":
            self.remove([path for path in self._data_files() if not _belongs(path, last.get("replaces"))])
        replaces = (last["run_id"] if last["state"] == "finished" else last.get("replaces")) if last else None
        self.write(RUN, json.dumps(run | {"state": "running", "replaces": replaces}, indent=2))
        self.write(RECIPE, recipe)
        with explained(self.uri, OutputError):
            make_folder(self.store, self.data)

    def files(self, run_id: str) -> list[str]:
        """Data files of one run."""
        return sorted(path for path in self._data_files() if _belongs(path, run_id))

    def finish(self, run: dict[str, Any]) -> None:
        """The run's table is whole: files of the run that it replaces go. May be repeated after a crash."""
        self.write(RUN, json.dumps(run | {"state": "whole"}, indent=2))
        self.remove([path for path in self._data_files() if not _belongs(path, run["run_id"])])
        self.write(RUN, json.dumps(run | {"state": "finished"}, indent=2))

    def dataset(self, run_id: str) -> pads.Dataset:
        """The run's table, as pyarrow sees it."""
        return pads.dataset(self.files(run_id), filesystem=self.store, format="parquet")

    def write(self, name: str, text: str) -> None:
        """Write a small file below the output."""
        with explained(self.uri, OutputError):
            path = join(self.root, name)
            make_folder(self.store, posixpath.dirname(path))
            self.store.pipe_file(path, text.encode())

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write a data file; for small tables only."""
        with explained(self.uri, OutputError):
            make_folder(self.store, self.data)
            with self.store.open(join(self.data, name), "wb") as file:
                pq.write_table(table, file)

    def remove(self, paths: list[str]) -> None:
        """Remove files."""
        with explained(self.uri, OutputError):
            if paths:
                self.store.rm(paths)

    def _data_files(self) -> list[str]:
        with explained(self.uri, OutputError):
            self.store.invalidate_cache()
            if not self.store.exists(self.data):
                return []
            return [path for path in self.store.find(self.data) if path.endswith(".parquet")]


def open_output(uri: str) -> Output:
    """The output at a folder or an fsspec URL.

    Raises:
        OutputError: no place is given, or its store cannot be opened.
    """
    if not uri:
        raise OutputError("no output is given: --output PATH_OR_URL")
    try:
        store, root = open_store(uri)
    except SourceError as error:
        raise OutputError(error.message) from error
    return Output(uri, store, root.rstrip("/"))


def _belongs(path: str, run_id: str | None) -> bool:
    return run_id is not None and posixpath.basename(path).startswith(f"{run_id}_")
