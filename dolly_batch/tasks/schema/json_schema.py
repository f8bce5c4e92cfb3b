"""The part of JSON Schema that a typed column can hold, with strings and arrays bounded.

An object's fields are all there, in the schema's order, and each may be null. So what the model can write is bounded,
and a grammar can hold it to it.
"""

import difflib
import json
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
_DATE_CHARS = 24
_NUMBER_CHARS = 12

# The keys of each type that mean something here; annotations are let through.
_KEYS = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "minItems", "maxItems"},
    "string": {"maxLength", "minLength", "enum", "pattern", "format", "const"},
    "integer": {"minimum", "maximum", "enum"},
    "number": {"minimum", "maximum"},
    "boolean": set(),
}
_NOTES = {"type", "title", "description", "$schema", "$id", "examples", "default", "nullable"}
_FORMATS = {"date", "date-time"}
SPARK_TYPE = "sparkType"
"""A key of ours, on fields read from DDL: their exact type in Spark (its JSON name). Grammars do not have it."""

INT_RANGE = {"minimum": -(10**18) + 1, "maximum": 10**18 - 1}  # what llguidance takes, within 64 bits


def check_schema(schema: Any, where: str = "task.schema") -> dict[str, Any]:
    """Return a JSON Schema of an object reduced to what is used here.

    Raises ConfigError, with the path of the part, for what a typed column or a bounded grammar cannot hold.
    """
    checked = _check(schema, where)
    if checked["type"] != "object":
        raise ConfigError(f"{where}: its type is {checked['type']}; the schema must be of an object")
    return checked


def _check(schema: Any, where: str) -> dict[str, Any]:
    if not isinstance(schema, Mapping):
        raise ConfigError(f"{where}: must be a mapping with a `type`, found {schema!r}")
    kind = _type(schema, where)
    for key in schema:
        if key not in _KEYS[kind] and key not in _NOTES:
            known = sorted(_KEYS[kind] | _NOTES)
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.6)
            hint = f"did you mean `{near[0]}`?" if near else f"known for {kind}: {', '.join(sorted(_KEYS[kind]))}"
            raise ConfigError(f"{where}.{key}: not a key that can be used here; {hint}")
    found = {"type": kind, **{key: value for key, value in schema.items() if key in _KEYS[kind]}}
    if kind == "integer" and "enum" not in found:
        found = {**INT_RANGE, **found}
    if kind == "object":
        properties = schema.get("properties")
        if not isinstance(properties, Mapping) or not properties:
            raise ConfigError(f"{where}.properties: an object needs at least one field")
        return {"type": kind, "properties": {str(k): _check(v, f"{where}.{k}") for k, v in properties.items()}}
    if kind == "array":
        found["items"] = _check(schema.get("items"), f"{where}.items")
    if "format" in found and found["format"] not in _FORMATS:
        raise ConfigError(f"{where}.format: {found['format']!r} is not one of {', '.join(sorted(_FORMATS))}")
    if "enum" in found:
        listed = found["enum"] if isinstance(found["enum"], list) else []
        values = [value for value in listed if value is not None]
        if not values or not all(isinstance(value, (str, int)) for value in values):
            raise ConfigError(f"{where}.enum: must list strings, or integers, found {found['enum']!r}")
        found["enum"] = values
    return found


def _type(schema: Mapping[str, Any], where: str) -> str:
    kind = schema.get("type", "string" if "enum" in schema else None)
    if isinstance(kind, list):
        kind = next((name for name in kind if name != "null"), None) if len(set(kind) - {"null"}) == 1 else kind
    if not isinstance(kind, str) or kind not in _KEYS:
        raise ConfigError(f"{where}.type: {kind!r} is not one of {', '.join(_KEYS)}")
    return kind


def plain_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema without the keys that only the struct's type needs: what an answer is held to."""
    plain = {key: value for key, value in schema.items() if key != SPARK_TYPE}
    if "properties" in plain:
        plain["properties"] = {key: plain_schema(value) for key, value in plain["properties"].items()}
    if "items" in plain:
        plain["items"] = plain_schema(plain["items"])
    return plain


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
    lessened first, then characters. Raises ConfigError when even an answer of nulls does not fit.
    """
    shortest = count(shortest_answer(schema)) + 1  # and the end marker
    if shortest > max_new_tokens:
        raise ConfigError(
            f"generation.max_new_tokens: {max_new_tokens} is too little for task.schema, whose shortest answer, all "
            f"null, takes {shortest} tokens"
        )
    items, chars = max_items or DEFAULT_ITEMS, max_chars or DEFAULT_CHARS
    counted = lru_cache(maxsize=None)(count)
    while 1 + _num_tokens(_bounded(schema, chars, items), counted) > max_new_tokens:
        if max_items is None and items > MIN_ITEMS:
            items -= 1
        elif max_chars is None and chars > MIN_CHARS:
            chars -= max(1, chars // 20)
        else:
            break
    return _bounded(schema, chars, items)


def shortest_answer(schema: Mapping[str, Any]) -> str:
    """The object with nothing in it but nulls, as it would be written."""
    return json.dumps(dict.fromkeys(schema["properties"]), ensure_ascii=False)


def _bounded(schema: Mapping[str, Any], chars: int, items: int) -> dict[str, Any]:
    found = dict(schema)
    if found["type"] == "object":
        found["properties"] = {key: _bounded(value, chars, items) for key, value in found["properties"].items()}
    elif found["type"] == "array":
        found["items"] = _bounded(found["items"], chars, items)
        found.setdefault("maxItems", max(items, found.get("minItems", 0)))
    elif "pattern" in found:  # its own bounds are not known; this one keeps an open end from running on
        found.setdefault("maxLength", max(PATTERN_CHARS, found.get("minLength", 0)))
    elif found["type"] == "string" and not {"enum", "const", "format"} & set(found):
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
