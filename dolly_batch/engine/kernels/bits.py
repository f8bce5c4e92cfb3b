"""What kernels compiled by numba have in common: numbers by their bits, and flags.

`FLAGS` let the compiler use vectors; none of them lets it assume that there are no NaN: a NaN in a row's numbers has to
come out, so that the row fails.
"""

from collections.abc import Callable

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

FLAGS = {"contract", "reassoc", "nsz", "arcp"}


@intrinsic
def as_float(typing_context, bits):
    """The float32 that has these 32 bits."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], context.get_value_type(types.float32))

    return types.float32(types.uint32), generate


@intrinsic
def as_bits(typing_context, number):
    """The 32 bits of a float32."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], context.get_value_type(types.uint32))

    return types.uint32(types.float32), generate


@njit(inline="always")
def _same(number):
    return number


@njit(inline="always")
def _from_bfloat16(bits):
    return as_float(np.uint32(bits) << np.uint32(16))


@njit(inline="always")
def _to_bfloat16(number):
    bits = as_bits(number)
    nearest = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    is_nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    return np.uint16(np.uint32(0x7FC0) if is_nan else nearest)


def reader(*, is_bfloat16: bool) -> Callable[..., None]:
    """The function that makes a float32 of a number as an array has it; bfloat16 comes as uint16."""
    return _from_bfloat16 if is_bfloat16 else _same


def writer(*, is_bfloat16: bool) -> Callable[..., None]:
    """The other way round, to the nearest, of two the even one."""
    return _to_bfloat16 if is_bfloat16 else _same
