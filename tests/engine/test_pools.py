"""Pools of keys and values: they stay within their budget, empty slots and all, and rows keep what they hold."""

import random

import pytest
import torch

from dolly_batch.engine.continuous.cache import HEADROOM, CacheShape
from dolly_batch.engine.continuous.cpu.pools import KVPools, Pool
from dolly_batch.engine.continuous.sequence import CachedSequence
from dolly_batch.records import GenerationParams, Request

SHAPE = CacheShape(1, 1, 1, 2, torch.float32, torch.device("cpu"))
BUDGET_TOKENS = 14_000


def rows_like_dollys(draw: random.Random, number: int) -> list[CachedSequence]:
    """Few tokens mostly, at times very many; longest first, as the schedule takes them."""
    rows = []
    for _ in range(number):
        prompt = min(1_700, int(draw.lognormvariate(4.2, 1.0)) + 4)
        answer = min(256, int(draw.lognormvariate(3.9, 0.9)) + 1)
        rows.append(CachedSequence(Request("", (5,) * prompt, GenerationParams(max_new_tokens=answer))))
    return sorted(rows, key=lambda row: -row.max_tokens)


def pools_of(pools: KVPools) -> list[Pool]:
    return [pool for kept in pools._classes.values() for pool in kept]


@pytest.mark.parametrize("seed", range(6))
def test_pools_stay_within_their_budget(seed: int) -> None:
    draw = random.Random(seed)
    pools = KVPools(SHAPE, BUDGET_TOKENS * SHAPE.token_bytes)
    waiting = rows_like_dollys(draw, 500)
    mark = {id(row): float(number + 1) for number, row in enumerate(waiting)}
    running: list[CachedSequence] = []
    num_running: list[int] = []
    while waiting or running:
        for row in list(running):
            if row.num_tokens == row.max_tokens:
                pools.free(row)
                running.remove(row)
                continue
            row.token_ids.append(7)
            pools.allocate(row, row.num_tokens)
            row.num_cached = row.num_tokens
            pool, slot = row.location
            pool.tensor[:, :, slot, :, row.num_cached - 1] = mark[id(row)]
        while waiting and len(running) < 64 and pools.has_room(waiting[0]):
            row = waiting.pop(0)
            pools.allocate(row, min(row.max_tokens, row.num_tokens + HEADROOM))
            row.num_cached = row.num_tokens
            pool, slot = row.location
            pool.tensor[:, :, slot, :, : row.num_cached] = mark[id(row)]
            running.append(row)
        for row in running:
            pool, slot = row.location
            assert pool.sequences[slot] is row
            assert (pool.tensor[:, :, slot, :, : row.num_cached] == mark[id(row)]).all()
        assert pools.num_bytes == sum(pool.num_bytes for pool in pools_of(pools))
        if waiting:
            num_running.append(len(running))
    assert pools.peak_bytes <= 1.1 * pools.budget_bytes  # rows that run may grow past it
    assert pools.num_bytes == 0
    assert pools._reserved_bytes == 0
    assert sum(num_running) / len(num_running) > 30  # a budget for about 70 rows of 200 tokens is not left empty


def test_a_row_larger_than_the_budget_is_taken_in_alone() -> None:
    pools = KVPools(SHAPE, SHAPE.token_bytes)
    large, small = (CachedSequence(Request("", (5,) * count, GenerationParams(max_new_tokens=8))) for count in (900, 3))
    assert pools.has_room(large)
    pools.allocate(large, 908)
    assert not pools.has_room(small)
    pools.free(large)
    assert pools.has_room(small)
