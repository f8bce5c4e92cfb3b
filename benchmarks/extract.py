"""What holding answers to a schema costs: the share of the decode time that goes into masks, and how the answers end.

    PYTHONPATH=. python benchmarks/extract.py SHARED_DATA [--model tiny|random-70m|FOLDER] [--rows N]

Prompts are decoded with a schema; the time inside of the constraints (masks, and following the chosen tokens)
is taken apart. CPU time of the process, one thread.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from benchmarks.classify import random_70m
from dolly_batch.engine.grammar import Constraint
from dolly_batch.engine.plain.engine import PlainEngine
from dolly_batch.engine.protocol import generate
from dolly_batch.engine.weights.loading import load_model
from dolly_batch.records import GenerationParams, Request
from dolly_batch.tasks.extract import default_instruction, grammar_of
from dolly_batch.tasks.schema.bounds import bound_schema
from dolly_batch.tasks.schema.json_schema import check_schema
from dolly_batch.tiny import MODEL_FOLDER
from tools.tiny import texts

FIELDS = {"name": {"type": "string"}, "age": {"type": "integer"}, "city": {"type": "string"}}


def main() -> None:
    """Print the shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--rows", type=int, default=64)
    given = parser.parse_args()
    torch.set_num_threads(1)
    spent = [0.0]
    for name in ("mask", "take"):
        setattr(Constraint, name, _timed(getattr(Constraint, name), spent))
    with tempfile.TemporaryDirectory() as temporary:
        folder = MODEL_FOLDER if given.model == "tiny" else Path(given.model)
        if given.model == "random-70m":
            folder = random_70m(given.data, Path(temporary) / "model")
        loaded = load_model(folder, dtype="float32", device="cpu")
        encoder: Any = loaded.encoder
        fields = check_schema({"type": "object", "properties": FIELDS})
        schema = bound_schema(fields, 64, lambda text: len(encoder.encode_text(text)))
        rows = texts.json_rows(given.rows, 90210)
        prompts = encoder.encode_batch([(default_instruction(schema), row.context) for row in rows])
        params = GenerationParams(64, do_sample=False)
        requests = [Request(str(n), tuple(ids), params, n, grammar_of(schema)) for n, ids in enumerate(prompts)]
        engine = PlainEngine(loaded)
        list(generate(engine, requests[:1]))  # the grammar is compiled, the allocator warm
        spent[0] = 0.0
        started = time.process_time()
        found = list(generate(engine, requests))
        total_s = time.process_time() - started
    ended = Counter(completion.finish_reason for completion in found)
    invalid = sum(not _is_object(completion.text) for completion in found if completion.finish_reason == "stop")
    tokens = sum(completion.num_completion_tokens for completion in found)
    print(f"{given.model}: {len(found)} rows, {tokens} tokens, ended {dict(ended)}, invalid {invalid}")
    print(f"{total_s:.2f} s, of them {spent[0]:.2f} s in constraints: {spent[0] / total_s:.1%}")


def _timed(function: Any, spent: list[float]) -> Any:
    def run(*arguments: Any) -> Any:
        started = time.process_time()
        try:
            return function(*arguments)
        finally:
            spent[0] += time.process_time() - started

    return run


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


if __name__ == "__main__":
    main()
