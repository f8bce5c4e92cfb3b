"""Attention of decoding rows over a pool on the CPU, compiled by numba for the CPU at hand.

Each row's keys and values are read once, to the row's own end and no further, at nearly the speed of the memory. All
sums are in float32 in an order that the row's own length decides, so no neighbour can change a bit.
"""

from collections.abc import Callable

import numpy as np
from numba import njit

from dolly_batch.engine.kernels.bits import FLAGS, as_float, reader

_LOG2_E = np.float32(1.44269504)
_LOG_2 = (np.float32(0.693359375), np.float32(-2.12194440e-4))  # in two parts, the first of few bits
# Of Cephes' expf: relative error 2e-7.
_EXP = tuple(np.float32(c) for c in (1.98756915e-4, 1.39819995e-3, 8.33345191e-3, 4.16657959e-2, 0.166666655, 0.5))
_LOWEST = np.float32(-87.0)  # e to that is the smallest normal number, next to 1 nothing


@njit(inline="always", fastmath=FLAGS)
def _exp(x):
    """e to the power of x, for x up to 0; NaN stays NaN."""
    if x < _LOWEST:
        x = _LOWEST
    whole = np.floor(x * _LOG2_E + np.float32(0.5))
    rest = x - whole * _LOG_2[0] - whole * _LOG_2[1]
    series = _EXP[0]
    series = series * rest + _EXP[1]
    series = series * rest + _EXP[2]
    series = series * rest + _EXP[3]
    series = series * rest + _EXP[4]
    series = series * rest + _EXP[5]
    series = series * rest * rest + rest + np.float32(1)
    return series * as_float(np.uint32(np.int32(whole) + np.int32(127)) << np.uint32(23))


def compile_decode(head_size: int, *, is_bfloat16: bool) -> Callable[..., None]:
    """Return `decode` for this head size and type of keys; it is compiled when it is first called.

    `decode(pool, slots, positions, query, key_value, output, weights)` stores the new keys and values of rows at their
    positions and attends. All are arrays in C order: `pool` [2, slots, heads, capacity, head size], `slots` and
    `positions` [rows], `query` [rows, heads, head size] in float32, times the scaling already, `key_value` [rows, 2,
    heads, head size], `output` as `query`, `weights` float32 of at least `capacity`, overwritten. bfloat16 comes as
    uint16.
    """
    read = reader(is_bfloat16=is_bfloat16)

    @njit(fastmath=FLAGS, error_model="numpy")
    def decode(pool, slots, positions, query, key_value, output, weights):
        for row in range(len(slots)):
            slot, num_keys = slots[row], positions[row] + 1
            for head in range(pool.shape[2]):
                keys, values = pool[0, slot, head], pool[1, slot, head]
                own, attended = query[row, head], output[row, head]
                for i in range(head_size):
                    keys[num_keys - 1, i] = key_value[row, 0, head, i]
                    values[num_keys - 1, i] = key_value[row, 1, head, i]
                for key in range(num_keys):
                    product = np.float32(0)
                    for i in range(head_size):
                        product += own[i] * read(keys[key, i])
                    weights[key] = product
                largest = weights[0]
                for key in range(num_keys):
                    if weights[key] > largest:
                        largest = weights[key]
                total = np.float32(0)
                for key in range(num_keys):
                    weight = _exp(weights[key] - largest)
                    weights[key] = weight
                    total += weight
                for i in range(head_size):
                    attended[i] = 0
                for key in range(num_keys):
                    weight = weights[key]
                    for i in range(head_size):
                        attended[i] += weight * read(values[key, i])
                for i in range(head_size):
                    attended[i] /= total

    return decode
