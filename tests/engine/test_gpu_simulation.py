"""The GPU's engine at real sizes, without a forward: what running out of memory costs. dolly-v2-12b on an H200."""

from collections.abc import Callable
from functools import cache

import pytest
import torch

from benchmarks.gpu.simulation import Simulation, simulate
from benchmarks.gpu.work import SHAPES, Work
from dolly_batch.engine.continuous.sequence import Step

KV_BYTES = 116 * 10**9
WORK = Work.whole_table().part(1_000)
Fault = Callable[[Step, int], bool]


def run(is_short: Fault | None = None, work: Work = WORK) -> Simulation:
    """Run the rows; `is_short` says of a step and its number whether it runs out of memory."""

    def fault(step: Step, number: int) -> None:
        if is_short is not None and is_short(step, number):
            raise torch.OutOfMemoryError("injected")

    fine = len(whole().steps) if is_short else 2**30
    return simulate(SHAPES["12b"], work, KV_BYTES, fault=fault, max_steps=3 * fine)


@cache
def whole() -> Simulation:
    return run()


def num_tokens(step: Step) -> int:
    return sum(chunk.stop - chunk.start for chunk in step.chunks)


def test_rows_in_flight_and_steps_are_those_of_a_large_batch() -> None:
    found = whole()
    assert all(row.failure is None for row in found.completions)
    assert len({row.key for row in found.completions}) == len(WORK.lengths)
    assert sum(row.num_completion_tokens for row in found.completions) == found.stats["num_answer_tokens"]
    assert found.mean_rows > 400
    assert len(found.steps) < 400


@pytest.mark.parametrize("number", [1, 3, 101])  # one row alone, the longest prompts, a decode step
def test_one_out_of_memory_costs_less_than_a_tenth_of_the_steps_and_no_row(number: int) -> None:
    found = run(lambda step, at: at == number)
    assert found.stats["num_out_of_memory"] == 1
    assert all(row.failure is None for row in found.completions)
    assert len(found.completions) == len(WORK.lengths)
    assert len(found.steps) < 1.1 * len(whole().steps)


@pytest.mark.parametrize(
    ("is_short", "share"),
    [
        (lambda step, _: num_tokens(step) > 3_000, 1.2),
        (lambda step, _: len(step.decoding) > 400, 2.2),
    ],
    ids=["prompts", "rows"],
)
def test_where_memory_is_short_the_engine_finds_what_there_is_room_for(is_short: Fault, share: float) -> None:
    found = run(is_short)
    assert found.stats["num_out_of_memory"] < 60
    assert sum(row.failure is None for row in found.completions) == len(WORK.lengths)
    assert len(found.steps) < share * len(whole().steps)


def test_a_prompt_too_long_for_the_memory_fails_alone() -> None:
    longest = max(WORK.lengths)
    found = run(lambda step, _: any(chunk.stop >= longest[0] for chunk in step.chunks))
    failed = [row.failure.status for row in found.completions if row.failure]
    assert 0 < len(failed) <= 1 + sum(prompt >= longest[0] for prompt, _ in WORK.lengths)
    assert set(failed) == {"out_of_memory"}
    assert len(found.steps) < 1.8 * len(whole().steps)
