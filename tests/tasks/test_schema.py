"""Schemas: what is let through, how it is bounded, and DDL read by Spark and by Python alone."""

import json
from datetime import date
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field

from dolly_batch.errors import ConfigError
from dolly_batch.records import Completion, Failure, GenerationParams, PromptRow
from dolly_batch.tasks.base import TaskInput
from dolly_batch.tasks.extract import Extract, descriptions, parse_object
from dolly_batch.tasks.schema import bound_schema, check_schema, parse_ddl, read_schema, shortest_answer


def objects(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


BAD = [
    ({"type": "array", "items": {"type": "string"}}, "must be of an object"),
    (objects(), "at least one field"),
    (objects(a={"type": "strin"}), r"task\.schema\.a\.type"),
    (objects(a={"type": "string", "maxLenght": 3}), "did you mean `maxLength`"),
    (objects(a={"anyOf": []}), r"task\.schema\.a"),
    (objects(a={"type": "array"}), r"task\.schema\.a\.items"),
    (objects(a={"enum": []}), "must list"),
    (objects(a={"type": "string", "format": "email"}), "email"),
    (objects(a="string"), "must be a mapping"),
    (objects(a={"type": ["string", "integer"]}), "type"),
    (objects(a={"type": "string", "minLength": "2"}), r"task\.schema\.a\.minLength: must be a whole number"),
    (objects(a={"type": "string", "maxLength": None}), r"a\.maxLength: must be a whole number .* found None"),
    (objects(a={"type": "string", "maxLength": 3.0}), r"a\.maxLength: must be a whole number"),
    (objects(a={"type": "string", "maxLength": True}), r"a\.maxLength: must be a whole number"),
    (objects(a={"type": "string", "maxLength": 10**12}), r"a\.maxLength: must be a whole number"),
    (objects(a={"type": "string", "minLength": 3, "maxLength": 2}), r"a\.minLength: 3 is more than"),
    (objects(a={"type": "array", "items": {"type": "string"}, "maxItems": "3"}), r"a\.maxItems: must be a whole"),
    (objects(a={"type": "number", "minimum": float("nan")}), r"a\.minimum: must be a finite number"),
    (objects(a={"type": "number", "exclusiveMinimum": True}), r"a\.exclusiveMinimum: must be a finite number"),
    (objects(a={"type": "number", "minimum": 10**400}), r"schema\.a: no number that can be written"),
    (objects(a={"type": "number", "minimum": 1e-7, "maximum": 2e-7}), r"schema\.a: no number that can be written"),
    (objects(a={"type": "integer", "exclusiveMinimum": 0, "maximum": 0.9}), r"schema\.a: no number"),
    (objects(a={"type": "integer", "enum": ["one", "two"]}), r"a\.enum: 'one' is not an integer"),
    (objects(a={"type": "integer", "enum": [1, True]}), r"a\.enum: True is not an integer"),
    (objects(a={"type": "integer", "enum": [10**25]}), r"a\.enum: .* is beyond 64 bits"),
    (objects(a={"type": "integer", "enum": [1, 2], "minimum": 2}), r"a\.enum: 1 is outside of the bounds"),
    (objects(a={"enum": ["a", 1]}), r"a\.enum: 1 is no text; put it into quotes"),
    (objects(a={"enum": [True, False]}), r"a\.enum: True is no text; put it into quotes"),
    (objects(a={"type": "string", "const": "abc", "maxLength": 2}), r"a\.const: 'abc' has 3 characters"),
    (objects(a={"type": "string", "const": "abc", "pattern": "x"}), r"a\.pattern: cannot be used beside `const`"),
    (objects(a={"type": "string", "format": "date", "const": "hello"}), r"a\.const: 'hello' is not a date"),
    (objects(a={"type": "string", "format": "date", "const": "2023-02-29"}), r"a\.const: .* is not a date"),
    (objects(a={"type": "string", "format": "date", "enum": ["0000-01-01"]}), r"a\.enum: .* is not a date"),
    (objects(a={"type": "string", "format": "date", "maxLength": 5}), r"a.*: its length does not allow a date"),
    (objects(a={"type": "string", "format": "date-time", "const": "2024-01-01"}), r"a\.const: .* is not a date-time"),
    (objects(a={"type": "string", "format": ["date"]}), r"a\.format"),
    (objects(a={"type": "string", "pattern": 5}), r"a\.pattern: must be a text"),
    (objects(a={"type": "string", "description": 5}), r"a\.description: must be a text"),
    (objects(a={"enum": ["a\ud83d"]}), r"a\.enum: holds half of a surrogate pair"),
    (objects(**{"a\ud83d": {"type": "string"}}), r"properties: holds half of a surrogate pair"),
    (objects(a=objects()), r"schema\.a\.properties: an object needs at least one field"),
    ({**objects(a={"type": "string"}), "required": ["b"]}, r"schema\.required: must list fields"),
    (objects(a={"anyOf": [{"type": "string"}, {"type": "integer"}]}), r"a\.anyOf: only one type can be used"),
    (objects(a={"anyOf": [{"type": "string", "maxLength": 3}], "maxLength": 9}), r"a\.maxLength: 9 stands beside"),
    (objects(a={"type": "string", "default": date(2024, 1, 1)}), r"a\.default: holds what JSON has not"),
    (
        {
            **objects(a={"$ref": "#/$defs/A0"}),
            "$defs": {
                "A9": {"type": "string"},
                **{f"A{n}": objects(**{key: {"$ref": f"#/$defs/A{n + 1}"} for key in "abcdefghij"}) for n in range(9)},
            },
        },
        "more than 10,000 parts",
    ),
    (objects(a={"$ref": "other.json"}), r"a\.\$ref: 'other\.json' is not in the schema's own"),
    ({**objects(a={"$ref": "#/$defs/A"}), "$defs": {"A": {"$ref": "#/$defs/A"}}}, "leads back to itself"),
    ({**objects(a={"$ref": "#/$defs/A"}), "$defs": {"A": objects(b={"$ref": "#/$defs/A"})}}, r"a\.b\.b.*nested deeper"),
]


@pytest.mark.parametrize(("schema", "message"), BAD)
def test_what_cannot_be_held_is_refused_by_its_path(schema: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_schema(schema)


def count(text: str) -> int:
    """Two characters a token."""
    return -(-len(text) // 2)


def test_bounds_shrink_until_the_longest_answer_fits() -> None:
    schema = check_schema(
        objects(name={"type": "string"}, tags={"type": "array", "items": {"type": "string"}}, kind={"enum": ["a", "b"]})
    )
    sizes = []
    for tokens in (64, 128, 256, 4096):
        bounded = bound_schema(schema, tokens, count)["properties"]
        chars, items = bounded["name"]["maxLength"], bounded["tags"]["maxItems"]
        longest = {"name": "x" * chars, "tags": ["x" * chars] * items, "kind": "a"}
        assert len(json.dumps(longest)) <= 2 * tokens
        sizes.append((items, chars))
    assert sizes == sorted(sizes)
    assert sizes[-1] == (10, 200)
    own = check_schema(objects(name={"type": "string", "maxLength": 7}))
    assert bound_schema(own, 64, count)["properties"]["name"]["maxLength"] == 7
    assert bound_schema(schema, 64, count, max_chars=33, max_items=5)["properties"]["tags"]["maxItems"] == 5
    with pytest.raises(ConfigError, match="max_new_tokens"):
        bound_schema(schema, 5, count)


def test_bounds_of_numbers_move_to_what_can_be_written_inside() -> None:
    schema = objects(
        a={"type": "number", "exclusiveMinimum": 0, "maximum": 1},
        b={"type": "integer", "minimum": 0.5, "exclusiveMaximum": 4},
        c={"type": "number", "minimum": -1e300},
    )
    found = check_schema(schema)["properties"]
    assert found["a"] == {"type": "number", "minimum": 0.000001, "maximum": 1}
    assert found["b"] == {"type": "integer", "minimum": 1, "maximum": 3}
    assert found["c"] == {"type": "number", "minimum": -(10**15) + 1, "maximum": 10**15 - 1}


def test_what_is_required_and_not_null_is_never_null() -> None:
    text = {"type": "string"}
    nullable = [{"type": ["string", "null"]}, {**text, "nullable": True}, {"anyOf": [text, {"type": "null"}]}]
    fields = {"a": text, "b": text, **{f"n{number}": field for number, field in enumerate(nullable)}}
    schema = check_schema({**objects(**fields), "required": [name for name in fields if name != "b"]})
    assert schema["required"] == ["a"]
    assert set(map(str, schema["properties"].values())) == {str(text)}
    ddl = parse_ddl("a STRING NOT NULL COMMENT 'it''s \\'it', b STRUCT<c: INT NOT NULL>")
    assert ddl["required"] == ["a"]
    assert ddl["properties"]["a"]["description"] == "it's 'it"
    assert ddl["properties"]["b"]["required"] == ["c"]
    assert shortest_answer(schema) == '{"a": "", "b": null, "n0": null, "n1": null, "n2": null}'
    with pytest.raises(ConfigError, match="takes 59 tokens"):
        bound_schema(check_schema({**objects(a={**text, "minLength": 107}), "required": ["a"]}), 58, count)


def test_a_schema_of_pydantic_is_read() -> None:
    class City(BaseModel):
        name: str = Field(max_length=9)

    class Person(BaseModel):
        kind: Literal["person"]
        age: int | None = Field(default=None, gt=0, description="in years")
        home: City
        homes: list[City]

    found = read_schema(json.dumps(Person.model_json_schema()))
    city = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 9}}, "required": ["name"]}
    assert found["properties"] == {
        "kind": {"type": "string", "enum": ["person"]},
        "age": {"type": "integer", "minimum": 1, "maximum": 10**18 - 1, "description": "in years"},
        "home": city,
        "homes": {"type": "array", "items": city},
    }
    assert found["required"] == ["kind", "home", "homes"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{" * 3000, "not readable JSON"),
        ('{"a":' * 3000, "not readable JSON"),
        ('{"type": "object", "type": "array"}', "'type' is given twice"),
        ("a STRUCT<>", r"task\.schema\.a: names no field"),
        ("a " + "STRUCT<a: " * 400 + "INT" + ">" * 400, r"task\.schema(\.a)+: nested deeper"),
        ("a " + "ARRAY<" * 40, r"schema\.a(\.items)+: nested deeper"),
        ("a VARCHAR(0)", "found `0`"),
        ("a\ud83d INT", "half of a surrogate pair"),
    ],
)
def test_text_that_is_no_schema_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_schema(text)


def test_descriptions_stand_behind_the_instruction() -> None:
    ddl = (
        "city STRING COMMENT 'that was left', home STRUCT<street: STRING COMMENT 'without number'>, tags ARRAY<STRING>"
    )
    assert descriptions(read_schema(ddl)) == "\n- city: that was left\n- home.street: without number"
    schema = objects(tags={"type": "array", "items": {"type": "string", "description": "one word"}})
    assert descriptions(check_schema({**schema, "description": "A post."})) == "\nA post.\n- tags[]: one word"
    assert descriptions(read_schema(DDL[0])) == ""


def test_null_beside_a_type_is_let_through() -> None:
    assert check_schema(objects(a={"type": ["string", "null"]})) == check_schema(objects(a={"type": "string"}))
    assert check_schema(objects(a={"enum": ["x", None]}))["properties"]["a"]["enum"] == ["x"]


DDL = [
    "name STRING, age INT",
    "a struct<b: array<double>, c: boolean>, `odd name` bigint",
    "d DATE, t TIMESTAMP, v VARCHAR(7), s: array<struct<x:int,y:string>>",
    "f FLOAT, n TIMESTAMP_NTZ, b TINYINT, s SMALLINT COMMENT 'it''s \\'small', l LONG NOT NULL",
    "STRUCT<a: INT, `b:c``<>` STRING>",
]


@pytest.mark.parametrize(
    "ddl",
    [
        *(
            "a",
            "a STRIN",
            "a array<int",
            "",
            "a int b int",
            "a map<string,int>",
            "a int, a int",
            "a int;",
            "a int not b",
        ),
        *("a int comment", "struct<a: int> b int", "a decimal(3,1)"),
    ],
)
def test_ddl_that_cannot_be_read_is_refused(ddl: str) -> None:
    with pytest.raises(ConfigError, match="schema"):
        parse_ddl(ddl)


def test_ddl_reads_nested_types() -> None:
    found = parse_ddl(DDL[1])["properties"]
    assert found["a"]["properties"]["b"] == {"type": "array", "items": {"type": "number"}}
    assert found["odd name"]["type"] == "integer"
    assert parse_ddl(DDL[2])["properties"]["v"] == {"type": "string", "maxLength": 7}


def test_an_answer_is_an_object_or_nothing() -> None:
    assert parse_object(' {"a":1} ') == '{"a": 1}'
    assert parse_object('{"a": "\\ud800"}') == '{"a": "???"}'.replace("???", "\ufffd" * 3)
    assert [parse_object(text) for text in ("[1]", '{"a"', "", "null")] == [None] * 4


@pytest.mark.parametrize(
    ("completion", "response", "status"),
    [
        (Completion("0", '{"a": 1}', (1, 2), "stop", 9), '{"a": 1}', "ok"),
        (Completion("0", '{"a": 1}', (1, 2), "length", 9), None, "truncated"),
        (Completion("0", '{"a": ', (1, 2), "length", 9), None, "truncated"),
        (Completion("0", "no object", (1, 2), "stop", 9), None, "invalid_output"),
        (Completion("0", "", (), None, 9, Failure("model_error", "broken")), None, "model_error"),
    ],
)
def test_what_is_not_complete_or_not_an_object_is_no_response(
    completion: Completion, response: str | None, status: str
) -> None:
    work = Extract(GenerationParams(), "{}").start(TaskInput("Extract.", "text", 3))
    (asked,) = work.first_requests()
    assert isinstance(asked, PromptRow)
    assert (asked.grammar, asked.seed, asked.context) == ("{}", 3, "text")
    answer = work.on_result(completion)
    assert (answer.response, answer.status) == (response, status)
