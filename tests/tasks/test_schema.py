"""Schemas: what is let through, how it is bounded, and DDL read by Spark and by Python alone."""

import json
from typing import Any

import pytest

from dolly_batch.errors import ConfigError
from dolly_batch.records import Completion, Failure, GenerationParams, PromptRow
from dolly_batch.tasks.base import TaskInput
from dolly_batch.tasks.extract import Extract, parse_object
from dolly_batch.tasks.schema.ddl import parse_ddl
from dolly_batch.tasks.schema.json_schema import bound_schema, check_schema


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
