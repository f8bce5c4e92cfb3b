"""What stands in a schema beside its types (texts, counts, bounds, values to choose from), checked strictly by type."""

import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Any

from dolly_batch.errors import ConfigError

MAX_COUNT = 2**31 - 1
BOUNDS = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
MAX_INT64 = 2**63 - 1
# What a column of each format reads back, how many characters it has, and an example.
FORMATS = {
    "date": (re.compile(r"\d{4}-\d\d-\d\d", re.ASCII), 10, "2024-01-31"),
    "date-time": (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", re.ASCII), 19, "2024-01-31T12:00:00"),
}


def check_text(value: Any, where: str) -> str:
    """A text that can be written as UTF-8. Raises ConfigError for another type, and for half of a surrogate pair."""
    if not isinstance(value, str):
        raise ConfigError(f"{where}: must be a text, found {value!r}; put it into quotes")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{where}: holds half of a surrogate pair, of an emoji that was cut, say") from error
    return value


def check_counts(schema: Mapping[str, Any], low: str, high: str, where: str) -> dict[str, int]:
    """The counts under two keys, those that are there. Raises ConfigError unless they are whole numbers in order."""
    found = {key: schema[key] for key in (low, high) if key in schema}
    for key, value in found.items():
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_COUNT:
            raise ConfigError(f"{where}.{key}: must be a whole number from 0 to {MAX_COUNT:,}, found {value!r}")
    if found.get(low, 0) > found.get(high, MAX_COUNT):
        raise ConfigError(f"{where}.{low}: {found[low]} is more than `{high}`, {found[high]}")
    return found


def check_strings(values: Sequence[Any], limits: Mapping[str, Any], where: str) -> list[str]:
    """The texts of `enum` or `const`, each once. Raises ConfigError for what format or lengths do not allow."""
    low, high = limits.get("minLength", 0), limits.get("maxLength", MAX_COUNT)
    shape, num_chars, example = FORMATS.get(limits.get("format", ""), (None, low, ""))
    if not low <= num_chars <= high:
        raise ConfigError(f"{where}: its length does not allow a {limits['format']}, which has {num_chars} characters")
    for value in values:
        if not isinstance(value, str):
            raise ConfigError(
                f"{where}: {shown(value)} is no text; put it into quotes, or write `type: integer` for integers"
            )
        check_text(value, where)
        if not low <= len(value) <= high:
            raise ConfigError(f"{where}: {shown(value)} has {len(value)} characters, which its length does not allow")
        if shape is not None and not (shape.fullmatch(value) and _is_real(value)):
            raise ConfigError(f"{where}: {shown(value)} is not a {limits['format']} as {example}")
    return list(dict.fromkeys(values))


def check_integers(values: Sequence[Any], schema: Mapping[str, Any], where: str) -> list[int]:
    """The integers of `enum` or `const`, each once. Raises ConfigError for what the type or the bounds don't hold."""
    limits = check_range(schema, where, 0, MAX_INT64)
    for value in values:
        if not isinstance(value, int) or isinstance(value, bool):
            raise ConfigError(f"{where}: {shown(value)} is not an integer")
        if not -MAX_INT64 - 1 <= value <= MAX_INT64:
            raise ConfigError(f"{where}: {shown(value)} is beyond 64 bits")
        if not limits.get("minimum", value) <= value <= limits.get("maximum", value):
            raise ConfigError(f"{where}: {value} is outside of the bounds beside it")
    return list(dict.fromkeys(values))


def check_range(schema: Mapping[str, Any], where: str, places: int, most: int) -> dict[str, int | float]:
    """What the four keys of bounds leave, as an inclusive `minimum` and `maximum`; empty where there is none of them.

    What can be written has at most `places` digits behind the point and lies within `most`: a bound moves inside, to
    the next such number. Raises ConfigError for a bound that is no finite number, and where nothing lies between them.
    """
    step = Decimal(1).scaleb(-places)
    found = {key: _number(schema[key], f"{where}.{key}", most) for key in BOUNDS if key in schema}
    low = high = Decimal(most)
    low = max(
        -low,
        found.get("minimum", -low).quantize(step, ROUND_CEILING),
        found.get("exclusiveMinimum", -low - 1).quantize(step, ROUND_FLOOR) + step,
    )
    high = min(
        high,
        found.get("maximum", high).quantize(step, ROUND_FLOOR),
        found.get("exclusiveMaximum", high + 1).quantize(step, ROUND_CEILING) - step,
    )
    if low > high:
        raise ConfigError(f"{where}: no number that can be written is within {' and '.join(found)}")
    return {"minimum": _plain(low), "maximum": _plain(high)} if found else {}


def _number(value: Any, where: str, most: int) -> Decimal:
    """A bound, or the next number outside of what can be written."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -math.inf < value < math.inf:
        raise ConfigError(f"{where}: must be a finite number, found {value!r}")
    return Decimal(str(min(max(value, -most - 1), most + 1)))


def _plain(value: Decimal) -> int | float:
    return int(value) if value == value.to_integral_value() else float(value)


def _is_real(written: str) -> bool:
    """Whether the calendar and the clock have this date, or date and time."""
    try:
        datetime.fromisoformat(written)
    except ValueError:
        return False
    return True


def shown(value: Any) -> str:
    """A value for a message, not all of a long one."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
