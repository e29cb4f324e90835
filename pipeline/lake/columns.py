"""Which column of the source holds what, and which go through to the output with which type."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import pyarrow as pa

from pipeline.errors import SourceError
from pipeline.imaging.cells import IMAGE_TYPES, holds_images, is_list, is_text
from pipeline.lake.inputs import SourceFile
from pipeline.recipe import Columns


def check_columns(files: Sequence[SourceFile], columns: Columns) -> None:
    """Look for the columns that the recipe names.

    Raises:
        SourceError: one is in none of the files, or holds no images where it should.
    """
    names = list(dict.fromkeys(name for file in files for name in file.schema.names))
    defaults = Columns()
    for role, name in columns.model_dump(exclude={"keep"}).items():
        optional = role not in ("id", "image")
        if name is None or name in names or (optional and name == getattr(defaults, role)):
            continue
        raise _missing(name, names, f"columns.{role}")
    everywhere = {*names, *(name for file in files for name in file.constants)}
    for name in columns.keep or ():
        if name not in everywhere:
            raise _missing(name, sorted(everywhere), "columns.keep")
    for role in ("image", "mask", "truth", "references"):
        name = getattr(columns, role)
        kinds = {file.schema.field(name).type for file in files if name in file.schema.names}
        wanted = role == "image" or name != getattr(defaults, role)
        if wanted and kinds and not any(_fits(role, kind) for kind in kinds):
            found = ", ".join(map(str, kinds))
            raise SourceError(
                f"column {name!r} has the type {found}, which holds no images; {IMAGE_TYPES}; "
                f"name the right column: --set columns.{role}=NAME"
            )


def _missing(name: str, names: Sequence[str], key: str) -> SourceError:
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"--set {key}={near[0] if near else 'NAME'}"
    return SourceError(
        f"the source has no column {name!r} (its columns: {', '.join(names)}); name the right one: {hint}"
    )


def settled(columns: Columns, files: Sequence[SourceFile]) -> Columns:
    """The recipe's columns as they are meant for this source.

    One that has a default name by chance (`references` may be a list of numbers, `mask` a flag) but holds no images
    in any file is not ours: it is passed through.
    """
    defaults = Columns()
    changes: dict[str, None] = {}
    for role in ("mask", "truth", "references"):
        name = getattr(columns, role)
        kinds = [file.schema.field(name).type for file in files if name in file.schema.names]
        if name == getattr(defaults, role) and kinds and not any(_fits(role, kind) for kind in kinds):
            changes[role] = None
    return columns.model_copy(update=changes)


def _fits(role: str, kind: pa.DataType) -> bool:
    """Whether a column of this type can be what the recipe takes it for."""
    return holds_images(kind.value_type if role == "references" and is_list(kind) else kind)


def passed_columns(files: Sequence[SourceFile], columns: Columns) -> pa.Schema:
    """All columns but those with images; where files disagree on a type, one that holds all values of both.

    Masks, references and truths that are named by URI stay, as does the id, whatever else it is. With `columns.keep`
    only those, the id and the caption.

    Raises:
        SourceError: there is no such type, or no such column.
    """
    images = {columns.mask, columns.references, columns.truth} - {columns.id, columns.caption}
    named = {field.name for file in files for field in file.schema if field.name in images and _is_named(field.type)}
    consumed = (images - named) | ({columns.image} - {columns.id, columns.caption})
    schemas = []
    shapes = {(id(file.schema), tuple((n, value.type) for n, value in file.constants.items())): file for file in files}
    for file in shapes.values():
        fields = [field for field in file.schema if field.name not in consumed]
        schemas.append(pa.schema([*fields, *((name, value.type) for name, value in file.constants.items())]))
    kinds: dict[str, list[pa.DataType]] = {}
    for schema in schemas:
        for field in schema:
            kinds.setdefault(field.name, []).append(field.type)
    if columns.keep is not None:
        kinds = {name: kinds[name] for name in kinds if name in {*columns.keep, columns.id, columns.caption}}
    return pa.schema([(name, _common_type(name, found)) for name, found in kinds.items()])


def _is_named(kind: pa.DataType) -> bool:
    """Whether cells are URIs, or lists of them."""
    return is_text(kind.value_type if is_list(kind) else kind)


def _common_type(name: str, kinds: Sequence[pa.DataType]) -> pa.DataType:
    """The type of a column whose files may disagree; text, where no other holds every value of all of them.

    Raises:
        SourceError: there is none, as for a number and a struct.
    """
    plain = [kind.value_type if pa.types.is_dictionary(kind) else kind for kind in kinds]
    distinct = [kind for kind in dict.fromkeys(plain) if not pa.types.is_null(kind)]
    if len(distinct) < 2:
        return distinct[0] if distinct else pa.null()
    if any(map(is_list, distinct)) and not all(map(is_list, distinct)):
        inner = [kind.value_type if is_list(kind) else kind for kind in distinct]
        return pa.list_(_common_type(name, inner))
    try:
        schemas = [pa.schema([(name, kind)]) for kind in distinct]
        common = pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        if all(map(_is_textual, distinct)):
            return pa.string()
        found = " and ".join(map(str, distinct))
        raise SourceError(
            f"column {name!r} has types in different files that do not go together: {found}; "
            "give the files of one type as --source, or rewrite the others"
        ) from error
    if pa.uint64() in distinct and common == pa.int64():
        return pa.decimal128(20, 0)
    longs = any(pa.types.is_integer(kind) and kind.bit_width == 64 for kind in distinct)
    times = pa.types.is_timestamp(common) and any(kind != common for kind in distinct)
    return pa.string() if times or (longs and pa.types.is_floating(common)) else common


def _is_textual(kind: pa.DataType) -> bool:
    """Whether values of this type can be written as text."""
    others = (pa.types.is_boolean, pa.types.is_decimal, pa.types.is_date, pa.types.is_time, pa.types.is_timestamp)
    return (
        is_text(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind) or any(test(kind) for test in others)
    )
