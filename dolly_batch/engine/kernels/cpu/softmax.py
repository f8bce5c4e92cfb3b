"""The softmax of CPU kernels compiled by numba.

Its functions become part of each kernel. As functions of their own they would be there once for each kernel that a
process compiled or loaded, compiled alone or with what calls them, and the linker takes one of them: their vectors may
sum in another order, so a row's last bits would depend on what its process had compiled.
"""

import numpy as np
from numba import njit

from dolly_batch.engine.kernels.cpu.bits import as_bits, as_float

LOG2_E = np.float32(1.44269504)
LOG_2 = (np.float32(0.693359375), np.float32(-2.12194440e-4))  # in two parts, the first of few bits
# Of Cephes' expf: relative error 2e-7.
EXP = tuple(np.float32(c) for c in (1.98756915e-4, 1.39819995e-3, 8.33345191e-3, 4.16657959e-2, 0.166666655, 0.5))
LOWEST = np.float32(-87.0)  # e to that is the smallest normal number, next to 1 nothing


@njit(inline="always")
def exponential(x):
    """e to the power of x, for x up to 0; NaN stays NaN."""
    if x < LOWEST:
        x = LOWEST
    whole = np.floor(x * LOG2_E + np.float32(0.5))
    rest = x - whole * LOG_2[0] - whole * LOG_2[1]
    series = EXP[0]
    series = series * rest + EXP[1]
    series = series * rest + EXP[2]
    series = series * rest + EXP[3]
    series = series * rest + EXP[4]
    series = series * rest + EXP[5]
    series = series * rest * rest + rest + np.float32(1)
    return series * as_float(np.uint32(np.int32(whole) + np.int32(127)) << np.uint32(23))


@njit(inline="always")
def largest_of(scores, count):
    """The largest of the first `count` float32 scores; of some with a NaN, it or the largest of the others.

    As integers, which are compared in vectors: of floats, any of which may be a NaN, the compiler takes one by one.
    """
    largest = np.int32(-(2**31))
    for i in range(count):
        bits = np.int32(as_bits(scores[i]))
        largest = max(largest, bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))
    return as_float(np.uint32(largest ^ ((largest >> np.int32(31)) & np.int32(0x7FFFFFFF))))


@njit(inline="always")
def exponentiate(scores, count):
    """Put e to the power of each of the first `count` float32 scores, less the largest, in its place; their sum."""
    largest = largest_of(scores, count)
    total = np.float32(0)
    for i in range(count):
        weight = exponential(scores[i] - largest)
        scores[i] = weight
        total += weight
    return total
