"""Conditions on rows, as the recipe gives them, in the types that the columns have."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import RecipeError

Filters = Sequence[tuple[str, str, Any]]
"""`(column, operator, value)`; all must hold."""

_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def as_expression(filters: Filters, kinds: Mapping[str, pa.DataType]) -> pc.Expression | None:
    """The conditions for a file whose columns have these types; None where there are none.

    Raises:
        RecipeError: a value is none that its column could have.
    """
    return functools.reduce(operator.and_, (_condition(*one, kinds) for one in filters)) if filters else None


def are_numbers(filters: Filters, name: str) -> bool:
    """Whether a column is compared with numbers alone: the values of folders, which are text, are numbers then."""
    values = [value for column, _, given in filters if column == name for value in _listed(given)]
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _condition(name: str, comparison: str, given: Any, kinds: Mapping[str, pa.DataType]) -> pc.Expression:
    kind = kinds[name]
    values = [_literal(name, comparison, value, kind) for value in _listed(given)]
    if comparison in _COMPARE:
        return _COMPARE[comparison](pc.field(name), values[0])
    within = pc.field(name).isin(pa.array([value.as_py() for value in values], values[0].type if values else kind))
    return ~within if comparison == "not in" else within


def _listed(given: Any) -> list[Any]:
    return list(given) if isinstance(given, list | tuple) else [given]


def _literal(name: str, comparison: str, value: Any, kind: pa.DataType) -> pa.Scalar:
    """A value of the recipe as the column's own type has it."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and pa.types.is_integer(kind):
        return pa.scalar(value)
    is_ordered = comparison not in ("=", "==", "!=", "in", "not in")
    try:
        if is_number and pa.types.is_floating(kind):
            return pa.scalar(float(value), kind)
        if is_number and pa.types.is_decimal(kind):
            return pa.scalar(str(value)).cast(kind)
        if is_number and pa.types.is_temporal(kind):
            raise pa.ArrowInvalid("it holds times; write them out, such as '1911-05-01'")
        if is_number and is_ordered and (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise pa.ArrowInvalid("it holds text, which is not ordered as numbers are")
        return pa.scalar(value) if pa.types.is_null(kind) else pa.scalar(value).cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise RecipeError(f"source.filters: {value!r} does not fit the column {name!r} ({kind}): {error}") from error
