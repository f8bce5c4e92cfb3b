"""Bounds for what a schema leaves open, so that the longest answer fits `generation.max_new_tokens`."""

import json
import math
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from dolly_batch.errors import ConfigError

CHARS_PER_TOKEN = 2  # ordinary text has three or four, names fewer
DEFAULT_CHARS = 200
DEFAULT_ITEMS = 10
MIN_CHARS, MIN_ITEMS = 8, 2
PATTERN_CHARS = 256
_PATTERN_CHARS_MEANT = 30
_OPEN_END = re.compile(r"[*+]|\{[0-9]+,\}")
_DATE_CHARS = 24
_NUMBER_CHARS = 12
_CHARS_COUNTED = 1_000_000  # of a shortest value: more fits no model


def bound_schema(
    schema: Mapping[str, Any],
    max_new_tokens: int,
    count: Callable[[str], int],
    max_chars: int | None = None,
    max_items: int | None = None,
) -> dict[str, Any]:
    """Return the schema with a bound on every string and array that has none.

    `count` gives the model's tokens of a text. Without `max_chars` and `max_items` the bounds are the largest with
    which the longest answer, names and marks as they are and values as ordinary text, fits `max_new_tokens`: items are
    lessened first, then characters. Raises ConfigError when even a shortest answer does not fit.
    """
    shortest = count(shortest_answer(schema)) + 1  # and the end marker
    if shortest > max_new_tokens:
        raise ConfigError(
            f"generation.max_new_tokens: {max_new_tokens} is too little for task.schema, whose shortest answer, null "
            f"where it may be, takes {shortest} tokens"
        )
    items, chars = max_items or DEFAULT_ITEMS, max_chars or DEFAULT_CHARS
    counted = lru_cache(maxsize=None)(count)
    longest = _longest_values(schema, counted)
    while 1 + _num_tokens(_bounded(longest, chars, items), counted) > max_new_tokens:
        if max_items is None and items > MIN_ITEMS:
            items -= 1
        elif max_chars is None and chars > MIN_CHARS:
            chars -= max(1, chars // 20)
        else:
            break
    return _bounded(schema, chars, items)


def shortest_answer(schema: Mapping[str, Any]) -> str:
    """A shortest answer as it would be written: null in every field that may be null."""
    kind = schema["type"]
    if kind == "object":
        needed = schema.get("required", ())
        fields = schema["properties"].items()
        return _object({key: shortest_answer(value) if key in needed else "null" for key, value in fields})
    if "enum" in schema:
        return min((json.dumps(value, ensure_ascii=False) for value in schema["enum"]), key=len)
    if kind == "array":
        item = shortest_answer(schema["items"])
        return f"[{', '.join([item] * min(schema.get('minItems', 0), 1 + _CHARS_COUNTED // len(item)))}]"
    if kind == "string":
        return '"2024-01-31"' if "format" in schema else f'"{"x" * min(schema.get("minLength", 0), _CHARS_COUNTED)}"'
    return "true" if kind == "boolean" else str(min(max(0, schema.get("minimum", 0)), schema.get("maximum", math.inf)))


def _object(fields: Mapping[str, str]) -> str:
    return "{" + ", ".join(f"{json.dumps(key, ensure_ascii=False)}: {value}" for key, value in fields.items()) + "}"


def _longest_values(schema: Mapping[str, Any], count: Callable[[str], int]) -> dict[str, Any]:
    """The schema with the longest value alone of each `enum`, which may have thousands."""
    found = dict(schema)
    if "enum" in found:
        found["enum"] = [max(found["enum"], key=lambda value: count(json.dumps(value, ensure_ascii=False)))]
    if "properties" in found:
        found["properties"] = {key: _longest_values(value, count) for key, value in found["properties"].items()}
    if "items" in found:
        found["items"] = _longest_values(found["items"], count)
    return found


def _bounded(schema: Mapping[str, Any], chars: int, items: int) -> dict[str, Any]:
    found = dict(schema)
    if found["type"] == "object":
        found["properties"] = {key: _bounded(value, chars, items) for key, value in found["properties"].items()}
    elif found["type"] == "array":
        found["items"] = _bounded(found["items"], chars, items)
        found.setdefault("maxItems", max(items, found.get("minItems", 0)))
    elif "pattern" in found:
        if _OPEN_END.search(found["pattern"]):  # which would run on
            found.setdefault("maxLength", max(PATTERN_CHARS, found.get("minLength", 0)))
    elif found["type"] == "string" and not {"enum", "format"} & set(found):
        found.setdefault("maxLength", max(chars, found.get("minLength", 0)))
    return found


def _num_tokens(schema: Mapping[str, Any], count: Callable[[str], int]) -> int:
    """Tokens of the longest answer; what strings hold is taken as ordinary text."""
    kind = schema["type"]
    if kind == "object":
        fields = schema["properties"].items()
        names = (count(f", {json.dumps(key, ensure_ascii=False)}: ") for key, _ in fields)
        return sum(names) + sum(max(1, _num_tokens(value, count)) for _, value in fields) + 1
    if kind == "array":
        return 2 + int(schema["maxItems"]) * (1 + _num_tokens(schema["items"], count))
    if "enum" in schema:
        return max(count(json.dumps(value, ensure_ascii=False)) for value in schema["enum"])
    if kind == "string":
        num_chars = _PATTERN_CHARS_MEANT if "pattern" in schema else int(schema.get("maxLength", _DATE_CHARS))
        return 2 + -(-num_chars // CHARS_PER_TOKEN)
    return -(-(_NUMBER_CHARS if kind in ("integer", "number") else 5) // CHARS_PER_TOKEN)
