"""What the GPU's engine does with its pages: prefixes held once, rows that outgrow them, rows admitted beforehand."""

import random

import pytest

from dolly_batch.engine.continuous.cache import CacheShape
from dolly_batch.engine.continuous.gpu.pages import PAGE_TOKENS, Pages
from dolly_batch.engine.continuous.sequence import CachedSequence
from dolly_batch.engine.plain.engine import PlainEngine
from dolly_batch.engine.weights.loading import LoadedModel
from dolly_batch.records import GenerationParams, Request
from tests.engine.engines import TIGHT, answer, assert_empty, gpu_engine


def test_a_common_prefix_is_held_once(double: LoadedModel) -> None:
    draw = random.Random(1)
    start = tuple(draw.choices(range(4, 390), k=200))
    params = GenerationParams(max_new_tokens=3, do_sample=False)
    rows = [Request(str(row), (*start, *draw.choices(range(4, 390), k=20)), params) for row in range(30)]
    engine, without = gpu_engine(double), gpu_engine(double, prefix_sharing=False)
    assert answer(engine, rows) == answer(without, rows)
    assert engine.stats()["num_prompt_tokens"] <= 220 + 29 * 20
    token_bytes = engine._pages.shape.token_bytes
    assert engine.stats()["peak_kv_bytes"] <= (208 + 30 * 48) * token_bytes
    assert without.stats()["peak_kv_bytes"] >= 30 * 220 * token_bytes


def test_a_page_that_is_still_to_be_copied_is_copied_before_it_is_somebody_elses(double: LoadedModel) -> None:
    """Rows can be preempted between their admission and the step: source and target may then be taken again."""
    pages = Pages(CacheShape.of(double), TIGHT, max_sequences=8, max_positions=2048)
    pages.data.zero_()
    first, second, third = (CachedSequence(Request("", (5,) * 24, GenerationParams(4))) for _ in range(3))
    for sequence in (first, second):
        pages.allocate(sequence, 24)
    source, target = first.location.pages[1], second.location.pages[1]
    pages.data[:, :, source] = 1.0
    pages.share_prefix(first, second, 20)
    assert not pages.data[:, :, target].any()  # not yet
    pages.free(first)
    pages.data[:, :, source] = 2.0  # what its next owner writes
    pages.write_block_tables()
    assert (pages.data[:, :, target] == 1.0).all()
    pages.allocate(third, 24)
    pages.share_prefix(second, third, 20)
    target = third.location.pages[1]
    pages.free(third)  # nothing is left to be copied to
    pages.data[:, :, target] = 3.0
    pages.write_block_tables()
    assert (pages.data[:, :, target] == 3.0).all()


class Optimist(Pages):
    """Expects every row to end at once."""

    def _num_expected_for(self, row: CachedSequence) -> int:
        return -(-row.num_tokens // PAGE_TOKENS)


@pytest.mark.parametrize("prefix_sharing", [False, True])
def test_rows_that_outgrow_the_pages_are_preempted_and_resumed(double: LoadedModel, prefix_sharing: bool) -> None:
    engine, plain = (
        gpu_engine(double, pages=Optimist, kv_bytes=TIGHT, prefix_sharing=prefix_sharing),
        PlainEngine(double),
    )
    for seed in (3, 4, 5):  # what one batch leaves behind, the next one finds
        draw = random.Random(seed)
        start = draw.choices(range(4, 390), k=12)
        prompts = [(*start, *draw.choices(range(4, 390), k=18 + row % 7)) for row in range(36)]
        rows = [Request(str(row), ids, GenerationParams(90, row % 2 > 0), row) for row, ids in enumerate(prompts)]
        assert answer(engine, rows) == answer(plain, rows)
        assert_empty(engine)
    assert engine.stats()["num_preempted"] > 15
    assert engine.stats()["num_out_of_memory"] == 0
    longest = Request("longest", tuple(draw.choices(range(4, 390), k=2040)), GenerationParams(8))
    engine.submit(longest)
    ended = [completion for _ in range(40) for completion in engine.step()]
    assert [completion.key for completion in ended] == ["longest"]  # it needs all the pages that there are


def test_rows_are_admitted_by_what_others_came_to_need(double: LoadedModel) -> None:
    """Answers that end by themselves long before they must leave room for more rows."""
    pages = Pages(CacheShape.of(double), TIGHT, max_sequences=64, max_positions=2048)
    params = GenerationParams(max_new_tokens=512)
    ended, other = (CachedSequence(Request("", (5,) * 40, params)) for _ in range(2))
    for number in range(200):
        pages.allocate(ended, 60)
        if number == 0:
            assert pages._num_expected == -(-(40 + 511) // PAGE_TOKENS) - 4
        ended.token_ids, ended.finish_reason = [7] * 19, "stop"
        pages.free(ended)
        ended.token_ids, ended.finish_reason = [], None
    pages.allocate(other, 41)
    assert 41 + 20 <= PAGE_TOKENS * (len(other.location.pages) + pages._num_expected) <= 41 + 80
