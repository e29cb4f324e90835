from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import SourceError
from pipeline.lake.inputs import ImageFile
from pipeline.lake.source import Source, open_source
from pipeline.recipe import Columns
from pipeline.recipe import Source as Settings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.JPG", "deep/b.tif", "c.png", ".hidden.png", "readme.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def rows(source: Source) -> list[dict[str, Any]]:
    return [dict(file.row) for file in source.files if isinstance(file, ImageFile)]


def test_a_folder_of_images_is_a_source(folder: Path) -> None:
    source = open_source([str(folder)], Columns())
    assert [row["id"] for row in rows(source)] == ["a.JPG", "c.png", "deep/b.tif"]
    assert source.passed.names == ["id", "file_name"]
    assert open_source([str(folder / "*.png")], Columns(), settings=Settings(format="images")).rows == 1


@pytest.mark.parametrize("name", ["metadata.csv", "captions.jsonl"])
def test_a_captions_file_tells_more(folder: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    told = [
        {"file_name": "a.JPG", "caption": "a ship, at sea", "shelf": "007"},
        {"file_name": "deep/b.tif", "caption": "", "shelf": "8"},
        {"file_name": "gone.png", "caption": "lost", "shelf": "9"},
    ]
    if name.endswith("csv"):
        lines = ["\ufefffile_name,caption,shelf", *(f'{r["file_name"]},"{r["caption"]}",{r["shelf"]}' for r in told)]
        (folder / name).write_text("\r\n".join(lines))
    else:
        (folder / name).write_text("\n".join(map(json.dumps, told)) + "\n\n")
    found = {row["id"]: row for row in rows(open_source([str(folder)], Columns()))}
    assert found["a.JPG"]["caption"] == "a ship, at sea" and found["a.JPG"]["shelf"] == "007"
    assert not found["deep/b.tif"]["caption"] and "caption" not in found["c.png"]
    assert "gone.png" in caplog.text


def test_captions_files_are_taken_as_people_write_them(folder: Path) -> None:
    (folder / "metadata.csv").write_text("file_name;caption;image\n./a.JPG;ein Schiff, auf See;other.png\n")
    line = '{"file_name": "b.tif", "caption": "one\u2028line", "id": 17, "year": "c. 1911"}'
    (folder / "deep/metadata.jsonl").write_text(line + "\n", encoding="utf-8")
    found = {row["file_name"]: row for row in rows(open_source([str(folder)], Columns()))}
    assert found["a.JPG"]["caption"] == "ein Schiff, auf See" and found["a.JPG"]["image"] == "a.JPG"
    assert found["deep/b.tif"]["caption"] == "one\u2028line" and found["deep/b.tif"]["id"] == "17"


def test_numbers_and_text_in_one_column_are_text(folder: Path) -> None:
    told = [{"file_name": "a.JPG", "year": 1911}, {"file_name": "c.png", "year": "c. 1911"}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, told)))
    source = open_source([str(folder)], Columns())
    assert [row.get("year") for row in rows(source)] == ["1911", "c. 1911", None]
    (folder / "metadata.jsonl").write_text('{"file_name": "a.JPG", "year": 1}\n{"file_name": "c.png", "year": [1]}')
    with pytest.raises(SourceError, match="'year'"):
        open_source([str(folder)], Columns())


def test_of_several_captions_the_first_counts_and_none_is_lost(folder: Path) -> None:
    (folder / "captions.csv").write_text("image,caption\na.JPG,a ship\nc.png,a cat\n")
    finished = frozenset(file.input for file in open_source([str(folder)], Columns()).files)
    (folder / "captions.csv").write_text("image,caption\na.JPG,a ship\na.JPG,the sea\nc.png,a cat\n")
    (row,) = rows(open_source([str(folder)], Columns(), finished))
    assert (row["id"], row["caption"], row["all_captions"]) == ("a.JPG", "a ship", ["a ship", "the sea"])


def test_a_name_that_is_no_text_is_refused(folder: Path) -> None:
    (folder / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"x")
    with pytest.raises(SourceError, match=r"caf\?\.jpg is not UTF-8 text; rename it"):
        open_source([str(folder)], Columns())


def test_a_captions_file_may_lie_elsewhere_and_name_the_ids(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "told.csv").write_text("filename,id,text\na.JPG,17,old\n")
    columns = Columns(caption="text")
    source = open_source([str(folder)], columns, settings=Settings(captions=str(tmp_path / "told.csv")))
    assert [row["id"] for row in rows(source)] == ["17", "c.png", "deep/b.tif"]
    assert rows(source)[0]["text"] == "old"


def test_an_image_or_its_caption_that_changed_is_new(folder: Path) -> None:
    first = open_source([str(folder)], Columns())
    finished = frozenset(file.input for file in first.files)
    again = open_source([str(folder)], Columns(), finished)
    assert again.files == () and again.finished == finished
    (folder / "metadata.csv").write_text("file_name,caption\nc.png,a cat\n")
    os.utime(folder / "a.JPG", (1, 1))
    assert [file.row["id"] for file in open_source([str(folder)], Columns(), finished).files] == ["a.JPG", "c.png"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metadata.csv", "picture_of,caption\na.JPG,x\n", "no column 'file_name'"),
        ("metadata.jsonl", '{"file_name": "a.JPG"}\n{broken\n', "line 2"),
        ("metadata.jsonl", "[1]\n", "no JSON object"),
        ("metadata.csv", "file_name,caption\na.JPG,caf\xe9\n", "UTF-8"),
    ],
)
def test_a_captions_file_that_cannot_be_read_is_named(folder: Path, name: str, text: str, message: str) -> None:
    (folder / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(SourceError, match=message):
        open_source([str(folder)], Columns())
