"""How many decode steps an extraction takes when tokens that the schema leaves no choice of are run in one go.

    python -m benchmarks.extract_steps [--model smollm2] [--rows 20] [--new-tokens 96]

Each schema is filled from contexts of databricks-dolly-15k, twice: a step for each token, then with forced runs as
chunks of a prompt. Counted, so that other work on the machine changes nothing: steps of all rows summed, objects that
break the schema, and texts that differ between the two.
"""

import argparse
import json
import os
from typing import Any

from benchmarks.tables import contexts
from dolly_batch.engine.protocol import generate
from dolly_batch.engine.sequence import SequenceState
from dolly_batch.records import Completion, EngineSpec, GenerationParams, Request
from dolly_batch.tasks.extract import default_instruction, grammar_of
from dolly_batch.tasks.schema.bounds import bound_schema
from dolly_batch.tasks.schema.json_schema import check_schema

TEXT, NUMBER, FLAG = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}


def one_of(*values: str) -> dict[str, Any]:
    """A field that holds one of these."""
    return {"type": "string", "enum": list(values)}


def struct(**fields: dict[str, Any]) -> dict[str, Any]:
    """A field of fields."""
    return {"type": "object", "properties": fields}


SCHEMAS: dict[str, dict[str, dict[str, Any]]] = {
    "texts": {"title": TEXT, "year": NUMBER, "is_person": FLAG, "country": TEXT},
    "labels": {
        "sentiment": one_of("positive", "negative", "neutral"),
        "topic": one_of("sports", "science", "history", "politics", "entertainment", "business"),
        "audience": one_of("children", "adults", "professionals"),
        "is_question": FLAG,
    },
    "long names": {
        "organization_name": TEXT,
        "founding_year": NUMBER,
        "headquarters_country": TEXT,
        "is_publicly_traded": FLAG,
    },
    "nested": {
        "person": struct(first_name=TEXT, last_name=TEXT),
        "place": struct(city=TEXT, country=TEXT),
        "was_born_in_year": NUMBER,
    },
    "flags": dict.fromkeys(("mentions_person", "mentions_place", "mentions_date", "mentions_amount"), FLAG),
}
HEAD = (
    "schema | steps, one token each | steps, forced runs in one go | fewer | objects | breaking the schema | same text"
)


def main() -> None:
    """Print a line for each schema, and their sum."""
    given = _arguments()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from dolly_batch.engine.load import load_engine
    from dolly_batch.staging import stage_under
    from dolly_batch.system.user_cache import user_cache

    folder = stage_under(given.model, user_cache() / "models").folder
    engine: Any = load_engine(EngineSpec("fast", str(folder), quantization="int8", processes=1))
    texts = contexts(given.rows)
    print(f"| {HEAD} |\n|{'---|' * (HEAD.count('|') + 1)}")
    totals = [0, 0]
    for name, fields in SCHEMAS.items():
        requests = _requests(engine, fields, texts, given.new_tokens)
        single, answers = _steps(engine, requests, forced=False)
        fewer, found = _steps(engine, requests, forced=True)
        totals = [totals[0] + single, totals[1] + fewer]
        ended = [answer for answer in found.values() if answer.finish_reason == "stop"]
        broken = sum(not _fits(answer.text, fields) for answer in ended)
        same = sum(answers[key].text == answer.text for key, answer in found.items())
        print(
            f"| {name} | {single} | {fewer} | {single / fewer:.2f} | {len(ended)} | {broken} | {same} of {len(found)} |"
        )
    print(f"| all | {totals[0]} | {totals[1]} | {totals[0] / totals[1]:.2f} | | | |")


def _requests(engine: Any, fields: dict[str, Any], texts: list[str], num_new: int) -> list[Request]:
    encoder = engine.encoder
    schema = check_schema({"type": "object", "properties": fields})
    schema = bound_schema(schema, num_new, lambda text: len(encoder.encode_text(text)))
    prompts = encoder.encode_batch([(default_instruction(schema), text) for text in texts])
    params = GenerationParams(num_new, do_sample=False)
    return [Request(str(n), tuple(ids), params, n, grammar_of(schema)) for n, ids in enumerate(prompts)]


def _steps(engine: Any, requests: list[Request], *, forced: bool) -> tuple[int, dict[str, Completion]]:
    """Steps of all rows summed, each choosing a token of a row; and the answers."""
    count, forward, append = [0], engine._forward, SequenceState._append_forced

    def counting(step: Any) -> Any:
        sequences, logits = forward(step)
        count[0] += len(sequences)
        return sequences, logits

    engine._forward = counting
    if not forced:
        SequenceState._append_forced = lambda *_: None  # type: ignore[method-assign]
    try:
        found = {answer.key: answer for answer in generate(engine, requests)}
    finally:
        engine._forward, SequenceState._append_forced = forward, append  # type: ignore[method-assign]
    return count[0], found


def _fits(text: str, fields: dict[str, Any]) -> bool:
    """Whether a text is an object of these fields in JSON, by a check that knows nothing of grammars."""
    try:
        return _is_of({"type": "object", "properties": fields}, json.loads(text))
    except ValueError:
        return False


def _is_of(schema: dict[str, Any], value: Any) -> bool:
    if value is None:
        return True
    if "enum" in schema:
        return value in schema["enum"]
    if schema["type"] == "object":
        fields = schema["properties"]
        return (
            isinstance(value, dict)
            and value.keys() <= fields.keys()
            and all(_is_of(fields[name], part) for name, part in value.items())
        )
    expected = {"string": str, "integer": int, "boolean": bool}[schema["type"]]
    return isinstance(value, expected) and (expected is bool or not isinstance(value, bool))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rows", type=int, default=20)
    parser.add_argument("--new-tokens", type=int, default=96)
    return parser.parse_args()


if __name__ == "__main__":
    main()
