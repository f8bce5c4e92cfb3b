"""Rows at fault fail alone in the GPU's engine: memory, broken logits, prompts that others would copy."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dolly_batch.engine.continuous.gpu.engine import GpuEngine
from dolly_batch.engine.continuous.sequence import CachedSequence, Step
from dolly_batch.engine.plain.engine import PlainEngine
from dolly_batch.engine.weights.loading import LoadedModel, load_model
from dolly_batch.records import GenerationParams, Request
from tests.engine.engines import TIGHT, answer, assert_empty, gpu_engine
from tests.engine.questions import dolly, mixed_requests
from tests.engine.test_continuous_faults import refuse_memory


class ShortOfMemory(GpuEngine):
    """Has memory for `enough` rows; never for the row named `poison`."""

    enough = 64
    poison = ""
    num_failures = 0

    def _forward(self, step: Step) -> tuple[list[CachedSequence], torch.Tensor]:
        rows = {row.request.key for row in [*step.decoding, *(chunk.sequence for chunk in step.chunks)]}
        found = super()._forward(step)
        if len(rows) > self.enough or self.poison in rows:
            self.num_failures += 1
            refuse_memory()  # late: whatever a step leaves behind must not matter to those that follow
        return found


@pytest.mark.parametrize("enough", [9, 1])
def test_out_of_memory_halves_the_rows(double: LoadedModel, enough: int) -> None:
    requests = mixed_requests(dolly(double), 25, do_sample=True)
    engine = gpu_engine(double, ShortOfMemory)
    assert isinstance(engine, ShortOfMemory)
    engine.enough, engine.poison = enough, "row 11"
    found, expected = answer(engine, requests), answer(PlainEngine(double), requests)
    failed = found.pop("row 11")
    assert failed.failure is not None
    assert failed.failure.status == "out_of_memory"
    del expected["row 11"]
    assert found == expected
    assert 0 < engine.num_failures < 30
    assert_empty(engine)


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_broken_logits_fail_their_row_alone(neox_folder: Path, poison: float) -> None:
    spoilt = load_model(neox_folder, dtype="float32", device="cpu")
    requests = mixed_requests(dolly(spoilt), 40, do_sample=False)
    expected = answer(gpu_engine(spoilt), requests)
    params = GenerationParams(6)
    poisoned = [Request(f"bad {row}", (*requests[row].prompt_ids[:9], 200, 7), params) for row in range(12)]
    clean = {key for key, wanted in expected.items() if 200 not in wanted.token_ids}
    clean -= {request.key for request in requests if 200 in request.prompt_ids}
    assert len(clean) > 25
    with torch.no_grad():
        spoilt.model.gpt_neox.embed_in.weight[200] = poison
    engine = gpu_engine(spoilt, max_sequences=4, kv_bytes=TIGHT)
    found = answer(engine, [*requests[:20], *poisoned, *requests[20:]])
    assert {found[row.key].failure.status for row in poisoned} == {"model_error"}  # type: ignore[union-attr]
    assert {key: found[key] for key in clean} == {key: expected[key] for key in clean}


def test_a_broken_prompt_is_not_copied_before_it_is_known_to_be_sound(neox_folder: Path) -> None:
    """Each third row has a broken twin that is one token longer, and so taken in just before it."""
    spoilt = load_model(neox_folder, dtype="float32", device="cpu")
    requests = [row for row in mixed_requests(dolly(spoilt), 40, do_sample=False) if 200 not in row.prompt_ids]
    expected = answer(gpu_engine(spoilt), requests)
    requests = [row for row in requests if 200 not in expected[row.key].token_ids]
    twins = [replace(row, key=f"bad {row.key}", prompt_ids=(*row.prompt_ids, 200)) for row in requests[::3]]
    with torch.no_grad():
        spoilt.model.gpt_neox.embed_in.weight[200] = torch.nan
    engine = gpu_engine(spoilt)
    for _ in range(2):  # the second time in places that the broken rows have left
        found = answer(engine, [*requests, *twins])
        assert {found[row.key].failure.status for row in twins} == {"model_error"}  # type: ignore[union-attr]
        assert {row.key: found[row.key] for row in requests} == {row.key: expected[row.key] for row in requests}
    assert engine.stats()["num_shared_tokens"] > 0
