"""Answers held to a schema: valid JSON of that schema, or cut off by the limit; neighbours are left alone."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from dolly_batch.engine.grammar import Grammars
from dolly_batch.engine.json_grammar import to_lark
from dolly_batch.engine.plain.engine import PlainEngine
from dolly_batch.engine.protocol import generate
from dolly_batch.engine.weights.loading import LoadedModel, load_model
from dolly_batch.errors import ConfigError
from dolly_batch.prompt import PromptEncoder
from dolly_batch.records import Completion, GenerationParams, Request
from dolly_batch.tasks.extract import default_instruction, grammar_of
from dolly_batch.tasks.schema.bounds import bound_schema, shortest_answer
from dolly_batch.tasks.schema.json_schema import check_schema
from dolly_batch.tiny import MODEL_FOLDER
from tests.engine.questions import dolly, mixed_requests
from tools.tiny import texts

WIDE = {
    "name": {"type": "string"},
    'odd "key"/\\': {"type": "string", "maxLength": 5},
    "age": {"type": "integer", "minimum": -5, "maximum": 130},
    "count": {"type": "integer"},
    "price": {"type": "number"},
    "ok": {"type": "boolean"},
    "kind": {"enum": ["a/b", 'c"d', "é"]},
    "day": {"type": "string", "format": "date"},
    "code": {"type": "string", "pattern": "[A-Z]{2}/[0-9]{3}"},
    "tags": {"type": "array", "items": {"type": "string", "maxLength": 4}, "minItems": 1, "maxItems": 3},
    "points": {"type": "array", "items": {"type": "object", "properties": {"x": {"type": "number"}}}, "maxItems": 2},
}


def schema_of(properties: dict[str, Any], max_new_tokens: int) -> dict[str, Any]:
    schema = check_schema({"type": "object", "properties": properties})
    return bound_schema(schema, max_new_tokens, lambda text: -(-len(text) // 2))


def check_value(value: Any, schema: dict[str, Any]) -> None:
    """Assert that a value is of a schema, or null."""
    kind = schema["type"]
    if kind == "object":
        assert list(value) == list(schema["properties"])
        for key, inner in schema["properties"].items():
            if value[key] is not None:
                check_value(value[key], inner)
    elif kind == "array":
        assert schema.get("minItems", 0) <= len(value) <= schema["maxItems"]
        for item in value:
            check_value(item, schema["items"])
    elif "enum" in schema:
        assert value in schema["enum"]
    elif kind == "string":
        assert isinstance(value, str)
        assert len(value) <= schema.get("maxLength", 10)
    else:
        assert isinstance(value, {"integer": int, "number": (int, float), "boolean": bool}[kind])
        assert schema.get("minimum", value) <= value <= schema.get("maximum", value)


def judge(completions: list[Completion], schema: dict[str, Any]) -> Counter[str]:
    """How the answers ended; each that ended by itself is checked."""
    counts: Counter[str] = Counter()
    for completion in completions:
        assert completion.failure is None
        counts[str(completion.finish_reason)] += 1
        if completion.finish_reason == "stop":
            check_value(json.loads(completion.text), schema)
        else:
            assert completion.text.startswith("{")
    return counts


@pytest.fixture(scope="module")
def tiny() -> LoadedModel:
    return load_model(MODEL_FOLDER, dtype="float32", device="cpu")


def ask(loaded: LoadedModel, rows: list[Any], schema: dict[str, Any]) -> list[Request]:
    prompt, params = default_instruction(schema), GenerationParams(64, do_sample=False)
    return [
        Request(str(n), tuple(dolly(loaded).encode(prompt, row.context)), params, n, grammar_of(schema))
        for n, row in enumerate(rows)
    ]


@pytest.mark.parametrize("folder", ["neox_folder", "gptj_folder"])
@pytest.mark.parametrize("do_sample", [True, False])
def test_a_random_model_writes_valid_objects_or_is_cut_off(
    folder: str, do_sample: bool, request: pytest.FixtureRequest
) -> None:
    loaded = load_model(request.getfixturevalue(folder), dtype="float32", device="cpu")
    schema = schema_of(WIDE, 256)
    params = GenerationParams(300, do_sample, temperature=1.5)
    requests = [Request(str(n), (5, 6, n + 7), params, n, grammar_of(schema)) for n in range(6)]
    free = mixed_requests(dolly(loaded), 6)
    found = list(generate(PlainEngine(loaded), [*requests, *free]))
    held = [completion for completion in found if not completion.key.startswith("row")]
    counts = judge(held, schema)
    assert counts["stop"] >= 2, counts
    alone = {completion.key: completion for completion in generate(PlainEngine(loaded), free)}
    assert {c.key: c for c in found if c.key.startswith("row")} == alone


# Names that take many tokens a character.
ODD_NAMES: list[dict[str, Any]] = [
    {"a": {"type": "boolean"}},
    {"имя": {"type": "string"}, "名前🙂🙂": {"type": "integer"}, 'q"uo\\te \n': {"type": "number"}},
    {
        f"🧑🚀{n}": {"type": "array", "items": {"type": "object", "properties": {"é": {"type": "string"}}}}
        for n in range(9)
    },
]


@pytest.mark.parametrize("properties", ODD_NAMES)
@pytest.mark.parametrize("folder", ["neox_folder", None])
def test_an_answer_of_nulls_fits_exactly_where_a_schema_is_taken(
    folder: str | None, properties: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    encoder = PromptEncoder.from_folder(request.getfixturevalue(folder) if folder else MODEL_FOLDER)
    schema = check_schema({"type": "object", "properties": properties})
    wanted = [*encoder.encode_text(shortest_answer(schema)), encoder.end_id]

    def count(text: str) -> int:
        return len(encoder.encode_text(text))

    with pytest.raises(ConfigError, match=f"takes {len(wanted)} tokens"):
        bound_schema(schema, len(wanted) - 1, count)
    grammar = grammar_of(bound_schema(schema, len(wanted), count))
    vocab_size = 2048
    constraint = Grammars(encoder, vocab_size).constraint(Request("", (5,), GenerationParams(), grammar=grammar))
    assert constraint is not None
    for token in wanted:  # what a model that wants only nulls writes
        logits = torch.zeros(vocab_size)
        constraint.mask(logits)
        assert logits[token] == 0
        assert constraint.take(token) is None


def test_tiny_completes_what_it_is_asked_for(tiny: LoadedModel) -> None:
    schema = schema_of({"name": {"type": "string"}, "age": {"type": "integer"}, "city": {"type": "string"}}, 64)
    rows = [row for row in texts.json_rows(200, 4711) if "name" in row.response][:20]
    counts = judge(list(generate(PlainEngine(tiny), ask(tiny, rows, schema))), schema)
    assert counts["stop"] >= 0.95 * len(rows)


def test_a_field_that_is_not_null_gets_a_value_where_the_text_has_none(tiny: LoadedModel) -> None:
    rows = [row for row in texts.json_rows(200, 4711) if "name" in row.response][:8]
    found = []
    for required in ([], ["age"]):
        schema = check_schema({"type": "object", "properties": {"age": {"type": "integer", "maximum": 99}}})
        schema = bound_schema({**schema, "required": required}, 64, len)
        answers = generate(PlainEngine(tiny), ask(tiny, rows, schema))
        found.append(
            {answer.key: json.loads(answer.text)["age"] for answer in answers if answer.finish_reason == "stop"}
        )
    free, held = found
    assert None in free.values()
    assert len(held) == len(rows)
    assert all(isinstance(value, int) for value in held.values())


@pytest.mark.chaos
def test_of_1000_rows_none_is_invalid(tiny: LoadedModel, neox_folder: Path) -> None:
    schema = schema_of({"name": {"type": "string"}, "age": {"type": "integer"}, "city": {"type": "string"}}, 64)
    rows = texts.json_rows(1000, 90210)
    counts = judge(list(generate(PlainEngine(tiny), ask(tiny, rows, schema))), schema)
    print(f"tiny: {dict(counts)}")
    assert counts["stop"] >= 950
    random_model = load_model(neox_folder, dtype="float32", device="cpu")
    draw = random.Random(1)
    requests = [
        Request(str(n), tuple(draw.choices(range(400), k=20)), GenerationParams(64), n, grammar_of(schema))
        for n in range(1000)
    ]
    counts = judge(list(generate(PlainEngine(random_model), requests)), schema)
    print(f"a random model: {dict(counts)}, truncated {counts['length'] / 1000:.1%}")


def test_a_schema_that_cannot_be_compiled_fails_its_row_alone(tiny: LoadedModel) -> None:
    good, bad = mixed_requests(dolly(tiny), 2, do_sample=False), Request("bad", (5, 6), GenerationParams(4), 0, "[]")
    found = {completion.key: completion for completion in generate(PlainEngine(tiny), [good[0], bad, good[1]])}
    assert found["bad"].failure is not None
    assert found["bad"].failure.status == "model_error"
    assert found[good[0].key].failure is None


def test_a_mask_leaves_what_may_come_next_and_nothing_else(tiny: LoadedModel) -> None:
    encoder = dolly(tiny)
    grammar = grammar_of(schema_of({"ok": {"type": "boolean"}}, 64))
    request = Request("", (5,), GenerationParams(), grammar=grammar)
    constraint = Grammars(encoder, tiny.folder.vocab_size).constraint(request)
    assert constraint is not None
    written = []
    for _ in range(30):
        logits = torch.randn(tiny.folder.vocab_size)
        before = logits.clone()
        constraint.mask(logits)
        open_ids = [int(at) for at in (logits > torch.finfo(logits.dtype).min).nonzero()[:, 0]]
        assert open_ids
        if len(open_ids) > 1:
            assert torch.equal(logits[open_ids], before[open_ids])
        written.append(open_ids[0])
        if written[-1] == encoder.end_id:
            break
        assert constraint.take(written[-1]) is None
    assert encoder.decode(written[:-1]) in ('{"ok": true}', '{"ok": false}', '{"ok": null}')
    assert isinstance(constraint.take(encoder.end_id), type(None))


def test_names_of_fields_stand_in_the_grammar_as_json_has_them() -> None:
    grammar = to_lark(schema_of(WIDE, 256))
    assert r'"{\"name\": "' in grammar
    assert r", \"odd \\\"key\\\"/\\\\\": " in grammar


@pytest.mark.parametrize(
    ("schema", "written", "fits"),
    [
        ({"type": "string", "format": "date"}, "2024-01-31", True),
        ({"type": "string", "format": "date"}, "2024-02-29", True),
        ({"type": "string", "format": "date"}, "2023-02-29", False),
        ({"type": "string", "format": "date"}, "1900-02-29", False),
        ({"type": "string", "format": "date"}, "2023-04-31", False),
        ({"type": "string", "pattern": "^[^,]+$"}, "a b", True),
        ({"type": "string", "pattern": "^[^,]+$"}, 'a"b', False),
        ({"type": "string", "pattern": r"[0-9]+\$"}, "12$", True),
        ({"type": "string", "pattern": r"[0-9]+\$"}, "12", False),
        ({"type": "string", "format": "date"}, "0000-01-01", False),
        ({"type": "string", "format": "date"}, "0000-02-29", False),
        ({"type": "string", "format": "date"}, "0001-01-01", True),
        ({"type": "string", "format": "date"}, "0400-02-29", True),
        ({"type": "string", "format": "date-time"}, "0001-01-01T00:00:00", False),
        ({"type": "string", "format": "date-time"}, "0001-01-02T00:00:00", True),
        ({"type": "string", "format": "date-time"}, "9999-12-31T00:00:00", False),
        # A pattern is laid over the value, which is escaped in the text.
        ({"type": "string", "pattern": r"^[A-Z]:\\[a-z]+$"}, r"C:\\temp", True),
        ({"type": "string", "pattern": r"^[A-Z]:\\[a-z]+$"}, r"C:\temp", False),
        ({"type": "string", "pattern": '^"[a-z]+"$'}, r"\"ab\"", True),
        ({"type": "string", "pattern": "^[a-z]+\n[a-z]+$"}, r"ab\ncd", True),
        ({"type": "string", "pattern": r"^a\tb$", "maxLength": 3}, r"a\tb", True),
        # \\d and \\w are ASCII, . and classes as in JSON Schema.
        ({"type": "string", "pattern": r"^\d+$"}, "٣", False),
        ({"type": "string", "pattern": r"^[\d]$"}, "٣", False),
        ({"type": "string", "pattern": r"^\w+$"}, "é", False),
        ({"type": "string", "pattern": r"^\W$"}, "é", True),
        ({"type": "string", "pattern": r"^.$"}, "\u2028", False),
        ({"type": "string", "pattern": r"^[[&&.~-]+$"}, "[&.~-", True),
        ({"type": "string", "pattern": r"^[^].]$"}, "]", False),
        ({"type": "string", "pattern": "^a$|^b$"}, "b", True),
        ({"type": "string", "pattern": "^a$|^b$"}, "ab", False),
        ({"enum": ["a", "ab", 'q"']}, r"q\"", True),
        ({"enum": ["a", "ab", 'q"']}, "abc", False),
    ],
)
def test_only_strings_that_json_and_the_calendar_know_can_be_written(
    tiny: LoadedModel, schema: dict[str, Any], written: str, fits: bool
) -> None:
    encoder = dolly(tiny)
    grammar = grammar_of(schema_of({"x": schema}, 256))
    constraint = Grammars(encoder, tiny.folder.vocab_size).constraint(
        Request("", (5,), GenerationParams(), grammar=grammar)
    )
    assert constraint is not None
    taken = [constraint.take(token) for token in encoder.encode_text('{"x": "' + written + '"}')]
    assert (taken == [None] * len(taken)) == fits
