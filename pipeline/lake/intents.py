"""What commits are about to do, written down under numbers before they do it."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import fsspec
import pyarrow as pa

from pipeline.errors import OutputError
from pipeline.lake.ledger import InputFile
from pipeline.lake.places import join, make_folder, names_in, put_new
from pipeline.lake.table import Commit, DataFile, Removal, read_schema


@dataclasses.dataclass(frozen=True)
class Intent:
    """One commit."""

    number: int
    generation: int
    """Of the table."""
    after: int
    """The number of the last commit that the table knew."""
    run_id: str
    recipe_digest: str
    columns: str
    """Of the table: an Arrow schema in base64."""
    replace: bool
    """Whether it takes the place of all that the table holds."""
    writes: tuple[str, ...]
    """Names in the checkpoint."""
    files: tuple[DataFile, ...]
    gone_rows: tuple[str, ...] = ()
    """Keys of rows whose place others take."""
    gone_files: tuple[InputFile, ...] = ()
    """Input files all of whose rows go."""

    @property
    def commit(self) -> Commit:
        """For the table."""
        return Commit(self.number, self.run_id, self.recipe_digest)

    @property
    def schema(self) -> pa.Schema:
        """Of the table."""
        return read_schema(self.columns)

    def removal(self, column: str) -> Removal:
        """For the table; `column` holds the rows' keys."""
        return Removal(column, self.gone_rows, tuple(file.key for file in self.gone_files))

    def to_json(self) -> bytes:
        """As a file."""
        return json.dumps(dataclasses.asdict(self), indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Intent:
        """The inverse."""
        content: dict[str, Any] = json.loads(data)
        content["files"] = tuple(DataFile(**file) for file in content["files"])
        content["gone_files"] = tuple(InputFile(*file) for file in content["gone_files"])
        return cls(**content | {name: tuple(content[name]) for name in ("writes", "gone_rows")})


class Intents:
    """The intents of an output, in a folder of their own. The newest stays, as the number that was given last."""

    def __init__(self, store: fsspec.AbstractFileSystem, folder: str) -> None:
        self._store, self._folder = store, folder
        self._known: dict[int, Intent] = {}

    def all(self) -> list[Intent]:
        """All that are there, by number."""
        numbers = [int(name[:-5]) for name in names_in(self._store, self._folder) if name.endswith(".json")]
        for number in numbers:
            if number not in self._known:
                self._known[number] = Intent.from_json(self._store.cat_file(self._path(number)))
        return [self._known[number] for number in numbers]

    def add(self, intent: Intent) -> None:
        """Write one down.

        Raises:
            OutputError: its number was taken.
        """
        make_folder(self._store, self._folder)
        if not put_new(self._store, self._path(intent.number), intent.to_json()):
            raise OutputError(f"commit {intent.number} was taken by another run: two runs write to one output")

    def forget(self, intent: Intent) -> None:
        """It is done, and so is what follows from it."""
        self._store.rm_file(self._path(intent.number))

    def _path(self, number: int) -> str:
        return join(self._folder, f"{number:08d}.json")
