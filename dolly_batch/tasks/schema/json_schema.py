"""The part of JSON Schema that a typed column can hold, read strictly: every key is honoured, or refused by its path.

The reduced schema is again JSON Schema: objects with all of their fields, in order, where `required` names those that
are never null; `const` has become an `enum` of one; bounds are what can be written within them.
"""

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from dolly_batch.errors import ConfigError
from dolly_batch.tasks.schema.values import (
    BOUNDS,
    FORMATS,
    check_counts,
    check_integers,
    check_range,
    check_strings,
    check_text,
    shown,
)

MAX_DEPTH = 32
MAX_PARTS = 10_000
SPARK_TYPE = "sparkType"
"""A key of ours, on fields read from DDL: their exact type in Spark (its JSON name). Grammars do not have it."""
INT_RANGE = {"minimum": -(10**18) + 1, "maximum": 10**18 - 1}  # 18 digits: within 64 bits
MAX_NUMBER, MAX_PLACES = 10**15 - 1, 6  # 15 digits before the point: what a double holds

# The keys of each type that mean something here; notes are let through.
_KEYS = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "minItems", "maxItems"},
    "string": {"maxLength", "minLength", "enum", "pattern", "format", "const"},
    "integer": {*BOUNDS, "enum", "const"},
    "number": {*BOUNDS},
    "boolean": set[str](),
}
_NOTES = {"type", "title", "description", "$schema", "$id", "$defs", "definitions", "examples", "default", "nullable"}
_UNREAD = {*_NOTES, "additionalProperties"}
_WRAPPERS = ("anyOf", "oneOf", "allOf")


def check_schema(schema: Any, where: str = "task.schema") -> dict[str, Any]:
    """Return a JSON Schema of an object reduced to what is used here.

    Raises ConfigError, with the path of the part, for what a typed column or a bounded grammar cannot hold.
    """
    definitions: dict[str, Any] = {}
    for key in ("$defs", "definitions"):
        part = schema.get(key) if isinstance(schema, Mapping) else None
        definitions |= {f"#/{key}/{name}": value for name, value in part.items()} if isinstance(part, Mapping) else {}
    checked, _ = _Reader(definitions).read(schema, where, 0)
    if checked["type"] != "object":
        raise ConfigError(f"{where}: its type is {checked['type']}; the schema must be of an object")
    return checked


def plain_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema without what only the struct's type and the prompt need: what an answer is held to."""
    plain = {key: value for key, value in schema.items() if key not in (SPARK_TYPE, "description")}
    if "properties" in plain:
        plain["properties"] = {key: plain_schema(value) for key, value in plain["properties"].items()}
    if "items" in plain:
        plain["items"] = plain_schema(plain["items"])
    return plain


@dataclass(frozen=True)
class _Reader:
    """Reads one schema; `definitions` are its own, by how `$ref` names them."""

    definitions: Mapping[str, Any]
    numbers: Iterator[int] = field(default_factory=count)

    def read(self, schema: Any, where: str, depth: int) -> tuple[dict[str, Any], bool]:
        """A part of the schema, reduced, and whether it may be null. `depth` is how many others are around it."""
        if depth > MAX_DEPTH:
            raise ConfigError(f"{where}: nested deeper than {MAX_DEPTH} levels (a `$ref` may lead back to itself)")
        if next(self.numbers) > MAX_PARTS:
            raise ConfigError(f"{where}: the schema has more than {MAX_PARTS:,} parts, each `$ref` counted")
        schema, is_nullable = self._unwrapped(schema, where)
        kind = _type(schema, where)
        _check_keys(schema, kind, where)
        if not isinstance(schema.get("nullable", False), bool):
            raise ConfigError(f"{where}.nullable: must be true or false, found {schema['nullable']!r}")
        listed = schema["enum"] if isinstance(schema.get("enum"), list) else []
        is_nullable |= schema.get("nullable", False) or "null" in _names(schema.get("type")) or None in listed
        found: dict[str, Any] = {"type": kind}
        if kind == "object":
            found |= self._fields(schema, where, depth)
        elif kind == "array":
            found["items"], _ = self.read(schema.get("items"), f"{where}.items", depth + 1)
            found |= check_counts(schema, "minItems", "maxItems", where)
        elif kind == "string":
            found |= _string(schema, where)
        elif kind != "boolean":
            found |= _number(schema, kind, where)
        note = check_text(schema.get("description") or "", f"{where}.description").strip()
        return {**found, "description": note} if note else found, is_nullable

    def _fields(self, schema: Mapping[str, Any], where: str, depth: int) -> dict[str, Any]:
        properties, required = schema.get("properties"), schema.get("required", [])
        if not isinstance(properties, Mapping) or not properties:
            raise ConfigError(f"{where}.properties: an object needs at least one field")
        if not isinstance(required, list) or not all(isinstance(name, str) and name in properties for name in required):
            raise ConfigError(f"{where}.required: must list fields of `properties`, found {required!r}")
        fields, never_null = {}, []
        for name, value in properties.items():
            if not check_text(name, f"{where}.properties"):
                raise ConfigError(f"{where}.properties: a field has an empty name")
            fields[name], is_nullable = self.read(value, f"{where}.{name}", depth + 1)
            if name in required and not is_nullable:
                never_null.append(name)
        return {"properties": fields, **({"required": never_null} if never_null else {})}

    def _unwrapped(self, schema: Any, where: str) -> tuple[Mapping[str, Any], bool]:
        """The schema behind `$ref` and `anyOf: [it, {type: "null"}]`, and whether null was beside it."""
        is_nullable = False
        for _ in range(MAX_DEPTH):
            if not isinstance(schema, Mapping):
                raise ConfigError(f"{where}: must be a mapping with a `type`, found {shown(schema)}")
            key = next((key for key in ("$ref", *_WRAPPERS) if key in schema), None)
            if key is None:
                return schema, is_nullable
            others = {name: value for name, value in schema.items() if name != key}
            if key == "$ref":
                inner = self._definition(schema[key], where)
            else:
                parts = schema[key] if isinstance(schema[key], list) else []
                values = [part for part in parts if key == "allOf" or not _is_null(part)]
                if len(values) != 1:
                    raise ConfigError(
                        f"{where}.{key}: only one type can be used, or one and null; write `type: string`"
                    )
                inner, is_nullable = values[0], is_nullable or len(parts) > 1
            schema = _merged(inner, others, where) if isinstance(inner, Mapping) else inner
        raise ConfigError(f"{where}: `$ref` leads back to itself")

    def _definition(self, name: Any, where: str) -> Any:
        if not isinstance(name, str) or name not in self.definitions:
            raise ConfigError(f"{where}.$ref: {name!r} is not in the schema's own `$defs`, as `#/$defs/NAME`")
        return self.definitions[name]


def _merged(inner: Mapping[str, Any], others: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A schema with what stands beside the reference to it. Raises ConfigError where they contradict each other."""
    for key in others:
        if key in inner and key not in _NOTES - {"type", "nullable"} and inner[key] != others[key]:
            raise ConfigError(
                f"{where}.{key}: {others[key]!r} stands beside a `$ref` or `anyOf` that says {inner[key]!r}"
            )
    return {**inner, **others}


def _is_null(schema: Any) -> bool:
    """`{type: "null"}`, which YAML reads as a null when it is not quoted."""
    return isinstance(schema, Mapping) and "type" in schema and schema["type"] in ("null", None)


def _names(kind: Any) -> list[Any]:
    """The names in `type`, one or a list; YAML reads an unquoted `null` as a null."""
    return ["null" if name is None else name for name in kind] if isinstance(kind, list) else [kind]


def _type(schema: Mapping[str, Any], where: str) -> str:
    kind = schema.get("type", "string" if {"enum", "const"} & set(schema) else None)
    names = [name for name in _names(kind) if name != "null"]
    if len(names) != 1 or not isinstance(names[0], str) or names[0] not in _KEYS:
        raise ConfigError(f"{where}.type: {kind!r} is not one of {', '.join(_KEYS)}")
    return names[0]


def _check_keys(schema: Mapping[str, Any], kind: str, where: str) -> None:
    for key in schema:
        if key not in _KEYS[kind] and key not in _NOTES:
            known = sorted(_KEYS[kind] | _NOTES)
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.6)
            listed = ", ".join(sorted(_KEYS[kind])) or "none but notes"
            hint = f"did you mean `{near[0]}`?" if near and near[0] != key else f"known for {kind}: {listed}"
            raise ConfigError(f"{where}.{key}: not a key that can be used here; {hint}")
        if key in _UNREAD:
            try:
                json.dumps(schema[key])
            except (TypeError, ValueError, RecursionError) as error:
                raise ConfigError(f"{where}.{key}: holds what JSON has not; put dates into quotes") from error


def _string(schema: Mapping[str, Any], where: str) -> dict[str, Any]:
    found: dict[str, Any] = check_counts(schema, "minLength", "maxLength", where)
    if "format" in schema:
        if schema["format"] not in list(FORMATS):
            raise ConfigError(f"{where}.format: {schema['format']!r} is not one of {', '.join(FORMATS)}")
        found["format"] = schema["format"]
    if "pattern" in schema:
        if beside := {"enum", "const", "format"} & set(schema):
            raise ConfigError(f"{where}.pattern: cannot be used beside `{min(beside)}`; leave one of them out")
        return {**found, "pattern": check_text(schema["pattern"], f"{where}.pattern")}
    values, key = _values(schema, where)
    listed = check_strings(values, found, f"{where}.{key}")
    if not listed and "format" not in found:
        return found
    return {name: value for name, value in (("format", found.get("format")), ("enum", listed)) if value}


def _number(schema: Mapping[str, Any], kind: str, where: str) -> dict[str, Any]:
    if kind == "number":
        return dict(check_range(schema, where, MAX_PLACES, MAX_NUMBER))
    values, key = _values(schema, where)
    if values:
        return {"enum": check_integers(values, schema, f"{where}.{key}")}
    return {**INT_RANGE, **check_range(schema, where, 0, INT_RANGE["maximum"])}


def _values(schema: Mapping[str, Any], where: str) -> tuple[list[Any], str]:
    """What `enum` or `const` allows, without null, and which of them says so; nothing where there is neither."""
    listed = schema.get("enum", [])
    values = [value for value in listed if value is not None] if isinstance(listed, list) else []
    if "enum" in schema and not values:
        raise ConfigError(f"{where}.enum: must list strings, or integers, found {listed!r}")
    if "const" not in schema:
        return values, "enum"
    if values and schema["const"] not in values:
        raise ConfigError(f"{where}.const: {schema['const']!r} is not in `enum`")
    return [schema["const"]], "const"
