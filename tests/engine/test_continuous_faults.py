"""Rows at fault fail alone in the fast engine too: memory, broken logits, prompts that can't be run."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dolly_batch.engine.continuous.cache import CacheShape
from dolly_batch.engine.continuous.cpu.pools import KVPools
from dolly_batch.engine.continuous.engine import ContinuousEngine
from dolly_batch.engine.continuous.sequence import CachedSequence, Step
from dolly_batch.engine.memory import allocator_errors
from dolly_batch.engine.plain.engine import PlainEngine
from dolly_batch.engine.weights.loading import LoadedModel, load_model
from dolly_batch.records import Completion, GenerationParams, Request
from tests.engine.engines import ROOMY, answer, continuous_engine
from tests.engine.questions import dolly, mixed_requests
from tests.engine.test_plain_faults import PARAMS, equal_length_requests


def refuse_memory() -> None:
    """What torch's CPU allocator says when it is asked for 2 exabytes."""
    torch.empty(2**61, dtype=torch.int8)


class ShortOfMemory(ContinuousEngine):
    """Has memory for `enough` rows; never for the row named `poison`."""

    enough = 64
    poison = ""
    num_failures = 0

    def _forward(self, step: Step) -> tuple[list[CachedSequence], Tensor]:
        rows = {row.request.key for row in [*step.decoding, *(chunk.sequence for chunk in step.chunks)]}
        if len(rows) > self.enough or self.poison in rows:
            self.num_failures += 1
            refuse_memory()
        return super()._forward(step)


@pytest.fixture(scope="module")
def loaded(neox_folder: Path) -> LoadedModel:
    return load_model(neox_folder, dtype="float64", device="cpu")


def test_the_cpu_allocators_error_is_a_memory_error() -> None:
    with pytest.raises(MemoryError, match="DefaultCPUAllocator"), allocator_errors():
        refuse_memory()
    for text in ("CUDA error: out of memory", "Triton Error [CUDA]: out of memory", "CUBLAS_STATUS_ALLOC_FAILED when"):
        with pytest.raises(MemoryError, match=re.escape(text)), allocator_errors():
            raise torch.AcceleratorError(text) if "CUDA error" in text else RuntimeError(text)
    with pytest.raises(torch.OutOfMemoryError), allocator_errors():
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(RuntimeError, match="size"), allocator_errors():
        torch.ones(2) + torch.ones(3)


@pytest.mark.parametrize("enough", [64, 32, 16, 8, 4, 2, 1])
def test_out_of_memory_halves_the_rows_and_is_remembered(loaded: LoadedModel, enough: int) -> None:
    requests = [replace(row, params=GenerationParams(9, do_sample=True)) for row in equal_length_requests(loaded, 128)]
    engine = continuous_engine(loaded, ShortOfMemory, max_sequences=128)
    assert isinstance(engine, ShortOfMemory)
    engine.enough = enough
    assert answer(engine, requests) == answer(PlainEngine(loaded), requests)
    assert engine.num_failures == (128 // enough).bit_length() - 1
    assert engine.stats()["num_out_of_memory"] == engine.num_failures


@pytest.mark.parametrize("enough", [64, 8, 1])
@pytest.mark.parametrize("poison", ["0", "31", "63"])
def test_a_row_without_memory_even_alone_fails_alone(loaded: LoadedModel, enough: int, poison: str) -> None:
    requests = equal_length_requests(loaded, 64)
    engine = continuous_engine(loaded, ShortOfMemory)
    assert isinstance(engine, ShortOfMemory)
    engine.enough, engine.poison = enough, poison
    found, expected = answer(engine, requests), answer(PlainEngine(loaded), requests)
    failed = found.pop(poison)
    assert failed.failure is not None
    assert (failed.failure.status, failed.finish_reason, failed.token_ids) == ("out_of_memory", None, ())
    del expected[poison]
    assert found == expected
    assert engine.num_failures <= 2 * 7


def test_the_plain_engine_knows_the_cpu_allocators_error(loaded: LoadedModel) -> None:
    class Exhausted(PlainEngine):
        def _forward(self, batch: object) -> Tensor:
            refuse_memory()
            raise AssertionError

    found = answer(Exhausted(loaded), equal_length_requests(loaded, 5))
    assert {completion.failure.status for completion in found.values() if completion.failure} == {"out_of_memory"}


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
def test_broken_logits_fail_their_row_alone(neox_folder: Path, poison: float) -> None:
    spoilt = load_model(neox_folder, dtype="float32", device="cpu")
    requests = mixed_requests(dolly(spoilt), 60, do_sample=False)
    expected = answer(continuous_engine(spoilt), requests)
    poisoned = [Request(f"bad {row}", (*requests[row].prompt_ids[:9], 200, 7), PARAMS) for row in range(12)]
    clean = {key for key, wanted in expected.items() if 200 not in wanted.token_ids}
    clean -= {request.key for request in requests if 200 in request.prompt_ids}
    assert len(clean) > 30
    with torch.no_grad():
        spoilt.model.gpt_neox.embed_in.weight[200] = poison
    # Few slots, so that rows are put where poisoned ones were.
    found = answer(continuous_engine(spoilt, max_sequences=4), [*requests[:30], *poisoned, *requests[30:]])
    assert {found[row.key].failure.status for row in poisoned} == {"model_error"}  # type: ignore[union-attr]
    assert {key: found[key] for key in clean} == {key: expected[key] for key in clean}


def test_requests_that_cannot_be_run_come_back_as_the_plain_engine_says(loaded: LoadedModel) -> None:
    good = mixed_requests(dolly(loaded), 6, do_sample=False)
    odd = [
        Request("fits", tuple([9] * 2044), PARAMS),
        Request("long", tuple([9] * 2045), PARAMS),
        Request("empty", (), PARAMS),
        Request("id", (5, 400), PARAMS),
        Request("negative", (5, -1), PARAMS),
        Request("no tokens", (5,), GenerationParams(max_new_tokens=0)),
        Request("cold", (5,), GenerationParams(temperature=0.0)),
        Request("top_p", (5,), GenerationParams(top_p=0.0)),
        Request("penalty", (5,), GenerationParams(repetition_penalty=0.0)),
    ]
    requests = [*good[:3], *odd, *good[3:]]
    assert answer(continuous_engine(loaded), requests) == answer(PlainEngine(loaded), requests)


def test_rows_wait_for_memory_and_never_fail(loaded: LoadedModel) -> None:
    requests = mixed_requests(dolly(loaded), 60, max_words=120)
    expected = answer(continuous_engine(loaded), requests)
    for kv_bytes in (1, 400_000, 4_000_000):
        engine = continuous_engine(loaded, kv_bytes=kv_bytes)
        assert answer(engine, requests) == expected
        # A row alone may be larger than the budget; rows together may not.
        largest = 704 * engine._cache.shape.token_bytes
        assert engine.stats()["peak_kv_bytes"] <= 2 * max(kv_bytes, largest)


def test_the_heart_beats_for_every_step(loaded: LoadedModel) -> None:
    beats: list[int] = []
    engine = ContinuousEngine(loaded, continuous_engine(loaded)._cache, heartbeat=lambda: beats.append(1))
    answer(engine, mixed_requests(dolly(loaded), 10))
    assert len(beats) == engine.stats()["num_steps"]


class TightPools(KVPools):
    """Has memory for the keys and values of `enough` rows; never for the prompt of the row named `poison`."""

    enough = 64
    poison = ""
    num_failures = 0

    def allocate(self, row: CachedSequence, num_tokens: int) -> None:
        num_rows = sum(len(pool.sequences) - pool.num_free for pools in self._classes.values() for pool in pools)
        if row.location is None and (num_rows >= self.enough or row.request.key == self.poison):
            self.num_failures += 1
            refuse_memory()
        super().allocate(row, num_tokens)


@pytest.mark.parametrize("prefix_sharing", [False, True])
@pytest.mark.parametrize("enough", [1, 2, 5])
def test_no_memory_to_admit_a_row_takes_nothing_from_those_that_run(
    loaded: LoadedModel, enough: int, prefix_sharing: bool
) -> None:
    requests = mixed_requests(dolly(loaded), 24, max_words=60)
    expected = answer(continuous_engine(loaded), requests)
    pools = TightPools(CacheShape.of(loaded), ROOMY)
    pools.enough, pools.poison = enough, requests[7].key
    engine = ContinuousEngine(loaded, pools, prefix_sharing=prefix_sharing)
    for request in requests:
        engine.submit(request)
    found: dict[str, Completion] = {}
    for _ in range(20_000):
        found |= {completion.key: completion for completion in engine.step() if isinstance(completion, Completion)}
        if not engine.num_unfinished:
            break
    failed, wanted = found.pop(pools.poison), expected.pop(pools.poison)
    assert failed.failure is not None
    assert (failed.failure.status, failed.num_prompt_tokens) == ("out_of_memory", wanted.num_prompt_tokens)
    assert found == expected
    assert pools.num_failures > 2
    assert engine._scheduler._pace.max_sequences == 64


def test_rows_that_can_never_be_admitted_fail_one_by_one(loaded: LoadedModel) -> None:
    pools = TightPools(CacheShape.of(loaded), ROOMY)
    pools.enough = 0
    found = answer(ContinuousEngine(loaded, pools), equal_length_requests(loaded, 5))
    assert [completion.failure and completion.failure.status for completion in found.values()] == ["out_of_memory"] * 5
    assert pools.num_failures == 5
    assert (pools.num_bytes, pools._reserved_bytes) == (0, 0)
