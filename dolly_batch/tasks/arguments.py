"""The arguments of the SQL functions: what each takes, for a call in Python and for a row of a query alike."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from numbers import Real
from typing import Any, Literal

from dolly_batch.errors import ConfigError

Takes = Literal["text", "labels", "number", "schema"]

_EXPECTED: dict[Takes, str] = {
    "text": "a string",
    "labels": "an array of strings, or a map of each label to its description",
    "number": "a whole number",
    "schema": "a string: Spark DDL, or a JSON Schema",
}
_NAMES = {bool: "boolean", bytes: "binary", str: "string", type(None): "NULL"}


@dataclass(frozen=True)
class SqlArgument:
    """One argument of a kind's SQL function: a column of each row, or a setting of the call."""

    name: str
    takes: Takes
    is_column: bool = False
    is_optional: bool = False


TEXT = SqlArgument("text", "text", is_column=True, is_optional=True)
"""The first argument of every function; a null one is no fault of the call."""


@dataclass(frozen=True, slots=True)
class OtherValue:
    """A value of a type that no argument takes; `type` is its name in SQL."""

    type: str


def check_argument(argument: SqlArgument, value: Any) -> Any:
    """The value, if the argument takes its type: a str, list[str], dict[str, str], int or, where optional, None.

    Nothing is converted but a whole number to int: a text that Spark would write of another type is the query's to ask
    for. Raises ConfigError, which names the argument and the type that was found.
    """
    if value is None and argument.is_optional:
        return None
    takes = argument.takes
    if takes == "labels":
        items = [*value, *value.values()] if isinstance(value, Mapping) else value
        is_list = isinstance(value, Mapping | Sequence) and not isinstance(value, str | bytes)
        if is_list and all(isinstance(item, str) for item in items):
            return dict(value) if isinstance(value, Mapping) else list(value)
    elif takes == "number":
        if _is_number(value) and _is_whole(value):
            return int(value)
    elif isinstance(value, str):
        return value
    cast = "; write CAST(... AS STRING)" if takes == "text" else ""
    raise ConfigError(f"{argument.name}: must be {_EXPECTED[takes]}, found {_described(value)}{cast}")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real | Decimal) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return math.isfinite(value) and value == int(value)


def _described(value: Any) -> str:
    """The type of a value for a message, never the value itself."""
    if isinstance(value, OtherValue):
        return value.type
    if isinstance(value, Mapping):
        return f"a map with {_described_items([*value, *value.values()])}"
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return f"an array with {_described_items(value)}"
    if _is_number(value):
        return "a number" if _is_whole(value) else "a number that is not whole"
    return _NAMES.get(type(value), type(value).__name__)


def _described_items(items: Sequence[Any]) -> str:
    return next((_described(item) for item in items if not isinstance(item, str)), "strings")
