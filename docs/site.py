"""What MkDocs builds beside the pages of this folder: the README as quick start, and a reference made of the code."""

from __future__ import annotations

import argparse
import importlib
import inspect
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from mkdocs.structure.files import File, Files
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"\[([^\]]+)\]\(([^)#:\s]+)(#[^)\s]*)?\)")


def on_config(config: Any) -> Any:
    """The code is found, wherever the command runs."""
    sys.path.insert(0, str(ROOT))
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    pages = {
        "index.md": (ROOT / "README.md").read_text().replace("](docs/", "]("),
        "reference/recipe.md": recipe(),
        "reference/commands.md": commands(),
        "reference/columns.md": columns(),
        "reference/python.md": PYTHON,
    }
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links to files of the repository that are no pages are shown as their paths."""
    here = Path(page.file.src_uri).parent

    def shown(match: re.Match[str]) -> str:
        text, target = match[1], match[2]
        inside = (Path("docs") / here / target) if page.file.src_uri != "index.md" else Path("docs") / target
        parts: list[str] = []
        for part in inside.parts:
            parts = parts[:-1] if part == ".." else [*parts, part]
        path = "/".join(parts)
        if path.removeprefix("docs/") in files.src_uris or path == "README.md":
            return match[0]
        path = path if (ROOT / path).exists() else path.removeprefix("docs/")
        if not (ROOT / path).exists():
            return match[0]  # it leads nowhere: MkDocs shall say so
        return f"`{path}`" if text.strip("`") in (path, target) else f"{text} (`{path}`)"

    return LINK.sub(shown, markdown)


def recipe() -> str:
    """Every key of the recipe, with its type, default and meaning."""
    from pipeline.recipe import Recipe

    lines = [
        "# The recipe",
        "",
        "A YAML file for `--recipe`, or single values with `--set section.key=value`. All keys have defaults; "
        "unknown ones are refused.",
    ]
    for name, field in Recipe.model_fields.items():
        lines += ["", f"## {name}", "", (field.annotation.__doc__ or "").strip(), *_keys(name, field.annotation)]
    return "\n".join(lines) + "\n"


def _keys(path: str, section: type[BaseModel]) -> Iterator[str]:
    for name, field in section.model_fields.items():
        kind = re.sub(r"\b(typing|pipeline\.\w+|pathlib)\.", "", inspect.formatannotation(field.annotation))
        inner = [one for one in (field.annotation, *get_args(field.annotation)) if _is_section(one)]
        default = field.get_default(call_default_factory=True)
        shown = "" if default is PydanticUndefined or inner == [field.annotation] else f", default `{_yaml(default)}`"
        yield from ("", f"### `{path}.{name}`", "", f"`{kind}`{shown}", "", field.description or "")
        for one in inner:
            yield from ("", (one.__doc__ or "").strip())
            yield from _keys(f"{path}.{name}{'' if one is field.annotation or default is None else '[]'}", one)


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _yaml(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if value is None or value == "":
        return "null" if value is None else '""'
    return "{}" if isinstance(value, dict | BaseModel) else str(value)


def commands() -> str:
    """What each command says of itself."""
    from jobs.cli import COMMANDS
    from jobs.console import prepare

    lines = ["# Commands", "", "`conservator COMMAND …`, or `python -m jobs.COMMAND …`."]
    for name, summary in COMMANDS.items():
        job = importlib.import_module(f"jobs.{name}")
        parser = argparse.ArgumentParser(prog=f"conservator {name}", formatter_class=_Wide)
        prepare(parser, job)
        told = io.StringIO()
        parser.print_help(told)
        lines += ["", f"## {name}", "", f"{summary.capitalize()}.", "", "```text", told.getvalue().rstrip(), "```"]
    return "\n".join(lines) + "\n"


class _Wide(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=100, max_help_position=32)


def columns() -> str:
    """The columns of the output, with what the code says beside each."""
    from pipeline import schema

    source = inspect.getsource(schema)
    said = dict(re.findall(r'pa\.field\("(\w+)"[^#\n]*#\s*(.+)', source))
    lines = [
        "# Columns of the output",
        "",
        "Beside the source's own columns, which pass through; `output.prefix` goes before their names.",
        "",
        "| column | type | |",
        "|---|---|---|",
    ]
    for field in schema.OUTPUT:
        lines.append(f"| `{field.name}` | `{field.type}` | {said.get(field.name, '').replace('|', chr(92) + '|')} |")
    return "\n".join(lines) + "\n"


PYTHON = """# Python

For single images, notebooks and other programs. The job itself is the command `conservator restore`.

::: pipeline.restoration.restorer.Restorer
    options: {members: [from_pretrained, restore, restore_batch]}

::: pipeline.restoration.request.Request

::: pipeline.restoration.canvas.Restored

::: pipeline.damage.record.Damage

::: pipeline.quality.scorer.Scorer

::: pipeline.errors
    options: {show_root_full_path: false}
"""
