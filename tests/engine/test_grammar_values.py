"""What the grammar of a schema lets be written: numbers, enumerations, null; and schemas that nothing can follow."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dolly_batch.engine.json_grammar import fault_of, to_lark
from dolly_batch.engine.number_pattern import number_pattern
from dolly_batch.tasks.schema.bounds import bound_schema
from dolly_batch.tasks.schema.json_schema import check_schema
from tests.engine.test_grammar import schema_of


def writes(field: dict[str, Any], text: str) -> bool:
    """Whether a field's grammar lets a text be its value."""
    llguidance = pytest.importorskip("llguidance")
    schema = check_schema({"type": "object", "properties": {"x": field}, "required": ["x"]})
    grammar = to_lark(bound_schema(schema, 256, len))
    matcher = llguidance.LLMatcher(llguidance.LLTokenizer("byte"), llguidance.LLMatcher.grammar_from_lark(grammar))
    assert not matcher.is_error()
    written = ('{"x": ' + text + "}").encode()
    return all(matcher.consume_token(byte) for byte in written) and bool(matcher.is_accepting())


@pytest.mark.parametrize(
    ("bounds", "inside", "outside"),
    [
        (
            {"minimum": 0, "maximum": 1},
            "0 1 0.5 0.333333 1.000000",
            "0.3333333 1.000001 -0 -0.1 2 null 1. .5 00 1e0",
        ),
        ({"exclusiveMinimum": 0, "exclusiveMaximum": 1}, "0.000001 0.999999 0.5", "0 0.0 1 1.0"),
        ({"minimum": -12.5}, "-12.5 -12.499999 0 999999999999999 3.25", "-12.500001 -13 1000000000000000"),
        ({"maximum": 0.3}, "-999999999999999 0.3 0.29", "0.300001 0.31 -1000000000000000"),
        ({"minimum": 98.7, "maximum": 1203}, "98.7 99 100 999.999999 1203 1203.0", "98.69 98 1203.1 1204 97 2000"),
    ],
)
def test_numbers_stay_within_their_bounds_and_digits(bounds: dict[str, Any], inside: str, outside: str) -> None:
    field = {"type": "number", **bounds}
    assert [text for text in inside.split() if not writes(field, text)] == []
    assert [text for text in outside.split() if writes(field, text)] == []


@given(st.integers(-3000, 3000), st.integers(0, 400), st.integers(-3500, 3500))
def test_a_number_is_written_exactly_when_it_lies_in_the_range(low: int, width: int, value: int) -> None:
    pattern = number_pattern(low / 100, (low + width) / 100, 2)
    whole, rest = divmod(abs(value), 100)
    digits = f"{rest:02}".rstrip("0")
    for written in {f"{whole}.{rest:02}", f"{whole}.{digits or 0}", f"{whole}.{digits}".rstrip(".")}:
        fits = re.fullmatch(pattern, f"{'-' if value < 0 else ''}{written}")
        assert (fits is not None) == (low <= value <= low + width)


def test_what_is_not_null_cannot_be_written_as_null() -> None:
    for field in ({"type": "string"}, {"type": "integer"}, {"enum": ["a"]}, {"type": "boolean"}):
        assert not writes(field, "null")
        assert writes({"type": "object", "properties": {"y": field}}, '{"y": null}')


def test_values_of_an_enum_are_written_as_json_has_them() -> None:
    values = ["", '"', "\\", "a/b", "a\r\nb", "\x01", "\x7f", "\x85", "\u2028", "e\u0301", "%json {", "/x/i", "# c"]
    assert [value for value in values if not writes({"enum": values}, json.dumps(value, ensure_ascii=False))] == []


def test_an_enum_of_thousands_compiles_at_once() -> None:
    schema = {"enum": [f"Category {number}" for number in range(20_000)]}
    assert writes(schema, '"Category 19999"')
    assert not writes(schema, '"Category 20000"')
    assert writes({"type": "integer", "enum": [1, 12, -(2**63)]}, "-9223372036854775808")


def test_a_schema_that_nothing_can_follow_is_told_while_planning() -> None:
    assert fault_of(schema_of({"x": {"type": "string"}}, 64)) is None
    for pattern, message in {
        "(?=a)": "look-around",
        "^[a-z]{300,}$": r"no text, of 256 characters at most \(`maxLength`\), is known to match",
        r"[^\s\S]": "no text is known to match",
        "[a": "unclosed",
    }.items():
        fault = fault_of(schema_of({"x": {"type": "array", "items": {"type": "string", "pattern": pattern}}}, 64))
        assert fault is not None
        assert re.match(rf"task\.schema\.x\.items\.pattern: .*{message}", fault), fault
    assert fault_of(schema_of({"x": {"type": "string", "pattern": "^[a-z]{300,}$", "maxLength": 300}}, 64)) is None
    assert fault_of(schema_of({"x": {"type": "string", "pattern": "^(ab){300}$"}}, 64)) is None
