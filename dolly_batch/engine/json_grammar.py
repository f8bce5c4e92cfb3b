"""From a JSON schema to a grammar in llguidance's dialect of Lark. No torch: planning checks schemas with it.

A schema is the small part of JSON Schema that `tasks/schema` accepts: objects that have all of their fields, in
order, each a value or null; arrays; strings; numbers; booleans. It is not passed to llguidance
as it is, because JSON's numbers may have any number of digits, and white space any length.
"""

import importlib
import json
import re
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

# At most what a double and a decimal hold, and no exponents: tables are read by people too.
_NUMBER = r"-?(0|[1-9][0-9]{0,14})(\.[0-9]{1,6})?"
# Days that the calendar has, 29 February in leap years alone.
_DATE = (
    r"([0-9]{4}-((0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])|(0[13-9]|1[0-2])-(29|30)|(0[13578]|1[02])-31)"
    r"|([0-9]{2}(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)-02-29)"
)
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]"
# A character, as it is or escaped; no control characters, and no halves of surrogate pairs.
_CHARACTER = r'([^"\\\x00-\x1f\x7f]|\\["\\bfnrt])'


def fault_of(schema: Mapping[str, Any]) -> str | None:
    """Why llguidance cannot follow a schema; None when it can, or when it is not installed."""
    try:
        matcher: Any = importlib.import_module("llguidance").LLMatcher
    except ImportError:
        return None
    found: str = matcher.validate_grammar(matcher.grammar_from_lark(to_lark(schema)), None)
    return next((line for line in found.splitlines() if line.startswith("error")), found) if found else None


def to_lark(schema: Mapping[str, Any]) -> str:
    """Write the schema as a grammar in llguidance's dialect of Lark; separators are those of json.dumps."""
    rules: list[str] = []
    names = (f"r{number}" for number in count())
    start = _rule(schema, rules, names)
    return "\n".join([f"start: {start}", *rules]) + "\n"


def _rule(schema: Mapping[str, Any], rules: list[str], names: Iterator[str]) -> str:
    name = next(names)
    kind = schema["type"]
    if kind == "object":
        parts = []
        for number, (key, value) in enumerate(schema["properties"].items()):
            lead = ("{" if number == 0 else ", ") + json.dumps(key, ensure_ascii=False) + ": "
            parts.append(f'{json.dumps(lead, ensure_ascii=False)} ({_rule(value, rules, names)} | "null")')
        rules.append(f'{name}: {" ".join(parts)} "}}"')
    elif kind == "array":
        item = _rule(schema["items"], rules, names)
        low, high = schema.get("minItems", 0), schema["maxItems"]
        some = f'"[" {item} (", " {item}){{{max(0, low - 1)},{high - 1}}} "]"' if high else '"[]"'
        rules.append(f'{name}: "[]" | {some}' if low == 0 and high else f"{name}: {some}")
    elif kind == "boolean":
        rules.append(f'{name}: "true" | "false"')
    elif "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        literals = [json.dumps(json.dumps(value, ensure_ascii=False), ensure_ascii=False) for value in values]
        rules.append(f"{name}: {' | '.join(literals)}")
    elif kind == "integer" or (kind == "number" and {"minimum", "maximum"} & set(schema)):
        rules.append(f"{name}: %json {json.dumps(dict(schema))}")
    elif kind == "number":
        rules.append(f"{name}: {name.upper()}\n{name.upper()}: /{_NUMBER}/")
    else:
        rules.append(f"{name}: {name.upper()}\n{name.upper()}: {_string(schema)}")
    return name


def _string(schema: Mapping[str, Any]) -> str:
    if schema.get("format") == "date":
        body = _DATE
    elif schema.get("format") == "date-time":
        body = f"{_DATE}T{_TIME}"
    elif "pattern" in schema:
        body = _unanchored(str(schema["pattern"]))
    else:
        body = f"{_CHARACTER}{{{schema.get('minLength', 0)},{schema['maxLength']}}}"
    written = f'"{body}"'
    if "pattern" in schema:  # what it lets through must be a JSON string all the same, and no longer than allowed
        bound = f'"{_CHARACTER}{{{schema.get("minLength", 0)},{schema["maxLength"]}}}"'
        return f"/{_slashed(written)}/ & /{_slashed(bound)}/"
    return f"/{_slashed(written)}/"


def _unanchored(pattern: str) -> str:
    """The pattern without `^` and `$`: it always matches the whole string."""
    if pattern.endswith("$") and (len(pattern) - len(pattern[:-1].rstrip("\\"))) % 2:
        pattern = pattern[:-1]
    return f"({pattern.removeprefix('^')})"


def _slashed(pattern: str) -> str:
    return re.sub(r"(?<!\\)/", r"\\/", pattern)
