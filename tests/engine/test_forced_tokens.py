"""Tokens that a grammar leaves no choice of are run in one go: the same answers, in fewer steps."""

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from dolly_batch.engine.continuous.engine import ContinuousEngine
from dolly_batch.engine.continuous.gpu.engine import GpuEngine
from dolly_batch.engine.continuous.sequence import CachedSequence, Step
from dolly_batch.engine.plain.engine import PlainEngine
from dolly_batch.engine.sequence import SequenceState
from dolly_batch.engine.weights.loading import LoadedModel, load_model
from dolly_batch.records import GenerationParams, Request
from dolly_batch.tasks.extract import default_instruction, grammar_of
from dolly_batch.tiny import MODEL_FOLDER
from tests.engine.engines import TIGHT, answer, continuous_engine, gpu_engine
from tests.engine.questions import dolly, mixed_requests
from tests.engine.test_continuous_faults import ShortOfMemory
from tests.engine.test_grammar import judge, schema_of
from tools.tiny import texts

FIELDS = {"name": {"type": "string"}, "age": {"type": "integer"}, "city": {"type": "string"}}
LONG = {f"a field of the number {number}": {"type": "boolean"} for number in range(4)}


@pytest.fixture(scope="module")
def loaded(neox_folder: Path) -> LoadedModel:
    return load_model(neox_folder, dtype="float64", device="cpu")


@pytest.fixture(scope="module")
def tiny() -> LoadedModel:
    return load_model(MODEL_FOLDER, dtype="float32", device="cpu")


def requests_for(model: LoadedModel, max_new_tokens: int, do_sample: bool) -> list[Request]:
    """Rows under two schemas, between rows that may answer anything."""
    params = GenerationParams(max_new_tokens, do_sample, temperature=1.3)
    grammars = [grammar_of(schema_of(fields, 200)) for fields in (FIELDS, LONG)]
    held = [Request(f"{n}", (5, 6, n + 7), params, n, grammars[n % 2]) for n in range(8)]
    return [*held[:4], *mixed_requests(dolly(model), 4), *held[4:]]


class CountingEngine(ContinuousEngine):
    """Counts the tokens that it chooses, each a step of its row."""

    num_chosen = 0

    def _forward(self, step: Step) -> tuple[list[CachedSequence], Tensor]:
        sequences, logits = super()._forward(step)
        self.num_chosen += len(sequences)
        return sequences, logits


def one_by_one(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SequenceState, "_append_forced", lambda *_: None)


@pytest.mark.parametrize("max_new_tokens", [120, 17])
@pytest.mark.parametrize("do_sample", [True, False])
def test_answers_are_those_of_one_token_at_a_time(
    loaded: LoadedModel, do_sample: bool, max_new_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = requests_for(loaded, max_new_tokens, do_sample)
    found = {
        "fast": answer(continuous_engine(loaded), requests),
        "short of memory": answer(continuous_engine(loaded, ShortOfMemory), requests),
        "plain": answer(PlainEngine(loaded), requests),
    }
    with monkeypatch.context() as patch:
        one_by_one(patch)
        expected = answer(PlainEngine(loaded), requests)
    assert {completion.finish_reason for completion in expected.values()} >= {"length"}
    for name, answers in found.items():
        assert answers == expected, name


@pytest.mark.parametrize(("fields", "most"), [(FIELDS, 0.65), (LONG, 0.3)])
def test_extraction_takes_fewer_steps(
    tiny: LoadedModel, fields: dict[str, Any], most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How many fewer depends on the schema: values are the model's, what stands between them is not."""
    schema = schema_of(fields, 200)
    prompts = [dolly(tiny).encode(default_instruction(schema), row.context) for row in texts.json_rows(6, 5)]
    params, grammar = GenerationParams(96, do_sample=False), grammar_of(schema)
    requests = [Request(str(n), tuple(ids), params, n, grammar) for n, ids in enumerate(prompts)]

    def run() -> tuple[int, dict[str, str]]:
        engine = continuous_engine(tiny, CountingEngine)
        answers = answer(engine, requests)
        assert judge(list(answers.values()), schema) == {"stop": 6}
        return engine.num_chosen, {key: completion.text for key, completion in answers.items()}

    num_chosen, found = run()
    one_by_one(monkeypatch)
    num_all, expected = run()
    assert found == expected
    assert 0 < num_chosen < most * num_all


def test_a_gpus_engine_gives_the_same(loaded: LoadedModel) -> None:
    """On the CPU: its scheduler, pages and steps ahead; where pages are short, rows are preempted between runs."""
    requests = requests_for(loaded, 60, do_sample=False)
    expected = answer(continuous_engine(loaded), requests)
    for kv_bytes in (2**30, TIGHT):
        engine: GpuEngine = gpu_engine(loaded, kv_bytes=kv_bytes)
        assert answer(engine, requests) == expected
