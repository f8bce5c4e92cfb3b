"""From a JSON schema to a grammar in llguidance's dialect of Lark. No torch: planning checks schemas with it.

A schema is the small part of JSON Schema that `tasks/schema` accepts: objects that have all of their fields, in
order, each a value, or null unless it is `required`; arrays; strings; numbers; booleans. It is not passed to llguidance
as it is, because JSON's numbers may have any number of digits, and white space any length.
"""

import importlib
import importlib.util
import json
import re
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

from dolly_batch.engine.number_pattern import number_pattern

# At most what a double and a decimal hold, and no exponents: tables are read by people too.
_PLACES = 6
_NUMBER = r"-?(0|[1-9][0-9]{0,14})(\.[0-9]{1,6})?"
_MAX_NUMBER = 10**15 - 1
# Days that the calendar has, 29 February in leap years alone; there was no year 0, and few readers take it.
_DATE = (
    r"((000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})"
    r"-((0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])|(0[13-9]|1[0-2])-(29|30)|(0[13578]|1[02])-31)"
    r"|([0-9]{2}(0[48]|[2468][048]|[13579][26])|(0[48]|[2468][048]|[13579][26])00)-02-29)"
)
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]"
# In another time zone these days may be in the year 0, or 10000.
_EDGE_DAYS = "(0001-01-01|9999-12-31)T.*"
_ANY = r"[^\n\r\u2028\u2029]"
# A character, as it is or escaped; no control characters, and no halves of surrogate pairs.
_CHARACTER = r'([^"\\\x00-\x1f\x7f]|\\["\\bfnrt])'


def fault_of(schema: Mapping[str, Any], where: str = "task.schema") -> str | None:
    """Why llguidance cannot follow a schema, behind the path of the part; None when it can, or is not installed."""
    if importlib.util.find_spec("llguidance") is None:
        return None
    for path, part in _patterns(schema, where):
        if fault := _fault(part):
            most = f", of {part['maxLength']} characters at most (`maxLength`)," if "maxLength" in part else ""
            nothing = f"no text{most} is known to match it"
            return f"{path}.pattern: {nothing if 'regex is empty' in fault.lower() else f'cannot be followed: {fault}'}"
    fault = _fault(schema)
    return f"{where}: cannot be followed while an answer is written: {fault}" if fault else None


def _fault(schema: Mapping[str, Any]) -> str | None:
    """llguidance's own word on a schema, in one line."""
    matcher: Any = importlib.import_module("llguidance").LLMatcher
    found: str = matcher.validate_grammar(matcher.grammar_from_lark(to_lark(schema)), None)
    lines = found.splitlines()
    return next((line for line in lines if line.startswith("error")), lines[0]) if lines else None


def _patterns(schema: Mapping[str, Any], where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The strings with a pattern, each with its path."""
    if "pattern" in schema:
        yield where, schema
    for name, value in schema.get("properties", {}).items():
        yield from _patterns(value, f"{where}.{name}")
    if "items" in schema:
        yield from _patterns(schema["items"], f"{where}.items")


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
            lead = _literal(("{" if number == 0 else ", ") + json.dumps(key, ensure_ascii=False) + ": ")
            field = _rule(value, rules, names)
            parts.append(f"{lead} {field}" if key in schema.get("required", ()) else f'{lead} ({field} | "null")')
        rules.append(f'{name}: {" ".join(parts)} "}}"')
    elif kind == "array":
        item = _rule(schema["items"], rules, names)
        low, high = schema.get("minItems", 0), schema["maxItems"]
        some = f'"[" {item} (", " {item}){{{max(0, low - 1)},{high - 1}}} "]"' if high else '"[]"'
        rules.append(f'{name}: "[]" | {some}' if low == 0 and high else f"{name}: {some}")
    elif kind == "boolean":
        rules.append(f'{name}: "true" | "false"')
    elif kind == "integer" and "enum" not in schema:
        rules.append(f"{name}: %json {json.dumps(dict(schema))}")
    elif "pattern" in schema:
        rules.append(f"{name}: %json {json.dumps({**schema, 'pattern': whole_pattern(schema['pattern'])})}")
    else:
        rules.append(f"{name}: {name.upper()}\n{name.upper()}: {_terminal(schema)}")
    return name


def _terminal(schema: Mapping[str, Any]) -> str:
    """A value as one terminal; an `enum` too, since a rule of the parser has 2,000 alternatives at most."""
    if "enum" in schema:
        return " | ".join(_literal(json.dumps(value, ensure_ascii=False)) for value in schema["enum"])
    if schema["type"] == "number":
        low, high = schema.get("minimum", -_MAX_NUMBER), schema.get("maximum", _MAX_NUMBER)
        is_bounded = {"minimum", "maximum"} & set(schema)
        return f"/{number_pattern(low, high, _PLACES)}/" if is_bounded else f"/{_NUMBER}/"
    if schema.get("format") == "date":
        return f'/"{_DATE}"/'
    if schema.get("format") == "date-time":
        return f'/"{_DATE}T{_TIME}"/ & ~/"{_EDGE_DAYS}"/'
    return f'/"{_CHARACTER}{{{schema.get("minLength", 0)},{schema["maxLength"]}}}"/'


def _literal(text: str) -> str:
    """A text as Lark has it: as JSON does, but for DEL, which Lark wants escaped."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", r"\u007f")


def whole_pattern(pattern: str) -> str:
    """A pattern of JSON Schema as llguidance has it, to match the whole of a value: `^` and `$` may be left out.

    llguidance reads Rust's dialect, in which `.` means other characters, and `[`, `&&`, `~~` and `--` have a meaning
    inside of a class. `\\d` and `\\w` are ASCII in both, `\\s` is not.
    """
    if pattern.endswith("$") and (len(pattern) - len(pattern[:-1].rstrip("\\"))) % 2:
        pattern = pattern[:-1]
    found: list[str] = []
    is_class = False
    for part in re.findall(r"\\.|\[\^?|.", pattern.removeprefix("^"), re.DOTALL):
        if not is_class:
            is_class = part.startswith("[")
            found.append(_ANY if part == "." else part)
        elif part == "]" and not found[-1].startswith("["):
            is_class = False
            found.append(part)
        else:
            is_special = part[0] in "[]&~" or (part == "-" and found[-1] == "-")
            found.append("".join(f"\\{character}" for character in part) if is_special else part)
    return f"^(?:{''.join(found)})$"
