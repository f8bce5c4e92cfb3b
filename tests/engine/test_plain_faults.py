"""Rows at fault fail alone: memory, broken logits, prompts that can't be run. Neighbours get their usual answers."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dolly_batch.engine.plain.batch import Batch
from dolly_batch.engine.plain.engine import PlainEngine
from dolly_batch.engine.protocol import generate
from dolly_batch.engine.weights.loading import LoadedModel, load_model
from dolly_batch.records import Completion, GenerationParams, Request
from tests.engine.questions import dolly, mixed_requests

PARAMS = GenerationParams(max_new_tokens=4, do_sample=False)


class ShortOfMemory(PlainEngine):
    """Has memory for `max_sequences` rows, at the prefill or some steps later; never for the row named `poison`."""

    max_sequences = 64
    fails_at_step = 0
    poison = ""
    num_failures = 0

    def _forward(self, batch: Batch) -> Tensor:
        keys = [row.request.key for row in batch.sequences]
        num_steps = len(batch.sequences[0].token_ids)
        if num_steps == self.fails_at_step and (len(keys) > self.max_sequences or self.poison in keys):
            self.num_failures += 1
            raise torch.OutOfMemoryError(f"for {len(keys)} rows")
        return super()._forward(batch)


@pytest.fixture(scope="module")
def loaded(neox_folder: Path) -> LoadedModel:
    return load_model(neox_folder, dtype="float64", device="cpu")


def equal_length_requests(loaded: LoadedModel, num_rows: int) -> list[Request]:
    words = ["apple", "chair", "table", "fence"]
    texts = [f"{words[row % 4]} {chr(65 + row % 23)} {words[row // 4 % 4]}" for row in range(num_rows)]
    prompts = [tuple(dolly(loaded).encode(text, None)[:30]) for text in texts]
    return [Request(str(row), (*prompts[row], row + 4), PARAMS) for row in range(num_rows)]


def answer(engine: PlainEngine, requests: Sequence[Request]) -> dict[str, Completion]:
    completions = list(generate(engine, requests))
    assert len(completions) == len(requests)
    return {completion.key: completion for completion in completions}


@pytest.mark.parametrize("fails_at_step", [0, 2])
@pytest.mark.parametrize("max_sequences", [64, 32, 16, 8, 4, 2, 1])
def test_out_of_memory_halves_the_batch_and_is_remembered(
    loaded: LoadedModel, max_sequences: int, fails_at_step: int
) -> None:
    requests = equal_length_requests(loaded, 128)
    engine = ShortOfMemory(loaded, max_batch_tokens=16_384)  # all 128 rows at once
    engine.max_sequences, engine.fails_at_step = max_sequences, fails_at_step
    assert answer(engine, requests) == answer(PlainEngine(loaded), requests)
    assert engine.num_failures == (128 // max_sequences).bit_length() - 1


@pytest.mark.parametrize("max_sequences", [64, 8, 1])
@pytest.mark.parametrize("poison", ["0", "31", "63"])
def test_a_row_without_memory_even_alone_fails_alone(loaded: LoadedModel, max_sequences: int, poison: str) -> None:
    requests = equal_length_requests(loaded, 64)
    engine = ShortOfMemory(loaded)
    engine.max_sequences, engine.poison = max_sequences, poison
    found, expected = answer(engine, requests), answer(PlainEngine(loaded), requests)
    failed = found.pop(poison)
    assert failed.failure is not None
    assert (failed.failure.status, failed.finish_reason, failed.token_ids) == ("out_of_memory", None, ())
    del expected[poison]
    assert found == expected
    assert engine.num_failures <= 2 * 7


def test_the_real_allocator_refusing_is_not_mistaken_for_an_answer(loaded: LoadedModel) -> None:
    class Exhausted(PlainEngine):
        def _forward(self, batch: Batch) -> Tensor:
            raise MemoryError

    found = answer(Exhausted(loaded), equal_length_requests(loaded, 5))
    assert {completion.failure.status for completion in found.values() if completion.failure} == {"out_of_memory"}


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("token_id", [0, 200])
def test_broken_logits_fail_their_row_alone(neox_folder: Path, poison: float, token_id: int) -> None:
    spoilt = load_model(neox_folder, dtype="float32", device="cpu")
    requests = mixed_requests(dolly(spoilt), 24, do_sample=False)
    expected = answer(PlainEngine(spoilt), requests)
    poisoned = Request("poisoned", (*requests[0].prompt_ids[:9], token_id, 7), PARAMS)
    sampled = Request("sampled", poisoned.prompt_ids, GenerationParams(5, do_sample=True))
    clean = {key for key, wanted in expected.items() if token_id not in wanted.token_ids}
    clean -= {request.key for request in requests if token_id in request.prompt_ids}
    assert len(clean) > 12
    with torch.no_grad():
        spoilt.model.gpt_neox.embed_in.weight[token_id] = poison
    found = answer(PlainEngine(spoilt), [*requests[:10], poisoned, sampled, *requests[10:]])
    for key in ("poisoned", "sampled"):
        failure = found[key].failure
        assert failure is not None
        assert failure.status == "model_error"
    assert {key: found[key] for key in clean} == {key: expected[key] for key in clean}


def test_requests_that_cannot_be_run_come_back_as_failures(loaded: LoadedModel) -> None:
    good = mixed_requests(dolly(loaded), 6, do_sample=False)
    fits = Request("fits", tuple([9] * 2044), PARAMS)
    bad = {
        "long": ("too_long", Request("long", tuple([9] * 2045), PARAMS)),
        "empty": ("model_error", Request("empty", (), PARAMS)),
        "id": ("model_error", Request("id", (5, 400), PARAMS)),
        "negative": ("model_error", Request("negative", (5, -1), PARAMS)),
        "no tokens": ("model_error", Request("no tokens", (5,), GenerationParams(max_new_tokens=0))),
        "cold": ("model_error", Request("cold", (5,), GenerationParams(temperature=0.0))),
        "top_p": ("model_error", Request("top_p", (5,), GenerationParams(top_p=0.0))),
    }
    requests = [*good[:3], *(request for _, request in bad.values()), fits, *good[3:]]
    found = answer(PlainEngine(loaded), requests)
    expected = answer(PlainEngine(loaded), [*good, fits])
    for key, (status, _) in bad.items():
        failure = found.pop(key).failure
        assert failure is not None
        assert failure.status == status
    assert found == expected
    assert found["fits"].num_completion_tokens == 4


def test_the_heart_beats_for_every_token_and_the_stream_is_read_ahead(loaded: LoadedModel) -> None:
    beats: list[int] = []
    read: list[str] = []
    requests = mixed_requests(dolly(loaded), 40)

    def source() -> Iterator[Request]:
        for request in requests:
            read.append(request.key)
            yield request

    engine = PlainEngine(loaded, max_batch_tokens=1, heartbeat=lambda: beats.append(1))
    completions = generate(engine, source(), max_waiting=10)
    first = next(completions)
    assert len(read) == 10
    assert len(beats) >= first.num_completion_tokens
    rest = list(completions)
    assert len(beats) >= sum(completion.num_completion_tokens for completion in [first, *rest])
    assert {completion.key for completion in [first, *rest]} == {request.key for request in requests}
