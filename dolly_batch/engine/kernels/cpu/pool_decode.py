"""Attention of decoding rows over a pool on the CPU, compiled by numba for the CPU at hand.

Each row's keys and values are read once, in the order in which they lie, to the row's own end and no further: at nearly
the speed of the memory. All sums are in float32 in an order that the row's own length decides, so no neighbour can
change a bit.
"""

from collections.abc import Callable

import numpy as np
from numba import njit

from dolly_batch.engine.kernels.cpu.bits import FLAGS, prefetcher
from dolly_batch.engine.kernels.cpu.pairs import pairs_of
from dolly_batch.engine.kernels.cpu.softmax import exponentiate

# Ahead of what is being read, into the second cache: what hardware fetches by itself hides half of the memory's delay.
_PREFETCH_BYTES = 8_192


def compile_decode(num_heads: int, num_kv_heads: int, head_size: int, *, is_bfloat16: bool) -> Callable[..., None]:
    """Return `decode` for this shape and type of keys; it is compiled when it is first called.

    `decode(pool, slots, positions, query, key_value, output)` stores the new keys and values of rows at their
    positions and attends. All are arrays in C order: `pool` [2, slots, capacity, kv heads, words of a head], `slots`
    and `positions` [rows], `query` [rows, heads, head size] in float32, times the scaling already, `key_value` [rows,
    2, kv heads, words of a head], `output` as `query`. Words are those of `kernels.pairs`. What is read of a key or a
    value serves all heads of its group.
    """
    pairs = pairs_of(head_size, is_bfloat16=is_bfloat16)
    half, num_words = pairs.count, pairs.num_words
    first, second, first_place, second_place = pairs.first, pairs.second, pairs.first_place, pairs.second_place
    prefetch = prefetcher(4 * num_words)
    ahead = max(1, _PREFETCH_BYTES // (4 * num_kv_heads * num_words))
    group = num_heads // num_kv_heads

    @njit(inline="always")
    def fetch_ahead(stream, following, token, num_tokens, head):
        """What comes `ahead` tokens later, of this stream or, behind its end, of the one that is read then."""
        if token + ahead < num_tokens:
            prefetch(stream[token + ahead, head])
        else:
            prefetch(following[token + ahead - num_tokens, head])

    @njit(fastmath=FLAGS, error_model="numpy")
    def decode(pool, slots, positions, query, key_value, output):
        # Arrays of its own: the compiler knows that nothing else writes to them.
        own = np.empty((num_heads, 2, half), np.float32)
        attended = np.empty((num_heads, 2, half), np.float32)
        weights, totals = np.empty((num_heads, pool.shape[2]), np.float32), np.empty(num_heads, np.float32)
        for row in range(len(slots)):
            num_keys = positions[row] + 1
            keys, values = pool[0, slots[row]], pool[1, slots[row]]
            for kv_head in range(num_kv_heads):
                for i in range(num_words):
                    keys[num_keys - 1, kv_head, i] = key_value[row, 0, kv_head, i]
                    values[num_keys - 1, kv_head, i] = key_value[row, 1, kv_head, i]
            for head in range(num_heads):
                for i in range(half):
                    own[head, 0, i] = query[row, head, first_place(i)]
                    own[head, 1, i] = query[row, head, second_place(i)]
            for key in range(num_keys):
                for kv_head in range(num_kv_heads):
                    fetch_ahead(keys, values, key, num_keys, kv_head)
                    for head in range(kv_head * group, (kv_head + 1) * group):
                        product = np.float32(0)
                        for i in range(half):
                            numbers = keys[key, kv_head]
                            product += own[head, 0, i] * first(numbers, i) + own[head, 1, i] * second(numbers, i)
                        weights[head, key] = product
            for head in range(num_heads):
                totals[head] = exponentiate(weights[head], num_keys)
            attended[:] = 0
            next_keys = pool[0, slots[min(row + 1, len(slots) - 1)]]
            for key in range(num_keys):
                for kv_head in range(num_kv_heads):
                    fetch_ahead(values, next_keys, key, num_keys, kv_head)
                    for head in range(kv_head * group, (kv_head + 1) * group):
                        weight = weights[head, key]
                        for i in range(half):
                            numbers = values[key, kv_head]
                            attended[head, 0, i] += weight * first(numbers, i)
                            attended[head, 1, i] += weight * second(numbers, i)
            for head in range(num_heads):
                for i in range(half):
                    output[row, head, first_place(i)] = attended[head, 0, i] / totals[head]
                    output[row, head, second_place(i)] = attended[head, 1, i] / totals[head]

    return decode
