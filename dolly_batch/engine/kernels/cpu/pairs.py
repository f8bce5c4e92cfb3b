"""Rows of numbers read by pairs, as kernels compiled by numba read keys and values.

Of bfloat16 a pair is one 32-bit word, so that a vector of words becomes two of float32 by a shift and a mask. Of
float32 a pair is a number of the first half and its counterpart of the second.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from dolly_batch.engine.kernels.cpu.bits import as_float

_HALF_WORD, _UPPER = np.uint32(16), np.uint32(0xFFFF0000)


@dataclass(frozen=True)
class Pairs:
    """How a row of `2 * count` numbers, given as `num_words` words, is taken apart."""

    count: int
    num_words: int
    first: Callable[..., Any]
    """`first(words, pair)` as float32."""
    second: Callable[..., Any]
    first_place: Callable[..., Any]
    """`first_place(pair)`: which of the row's numbers it is."""
    second_place: Callable[..., Any]


def pairs_of(row_size: int, *, is_bfloat16: bool) -> Pairs:
    """For rows of an even number of numbers."""
    half = row_size // 2
    if is_bfloat16:

        @njit(inline="always")
        def first(words, pair):
            return as_float(words[pair] << _HALF_WORD)

        @njit(inline="always")
        def second(words, pair):
            return as_float(words[pair] & _UPPER)

        @njit(inline="always")
        def first_place(pair):
            return 2 * pair

        @njit(inline="always")
        def second_place(pair):
            return 2 * pair + 1

        return Pairs(half, half, first, second, first_place, second_place)

    @njit(inline="always")
    def lower(numbers, pair):
        return numbers[pair]

    @njit(inline="always")
    def upper(numbers, pair):
        return numbers[pair + half]

    @njit(inline="always")
    def lower_place(pair):
        return pair

    @njit(inline="always")
    def upper_place(pair):
        return pair + half

    return Pairs(half, row_size, lower, upper, lower_place, upper_place)
