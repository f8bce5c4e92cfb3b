"""Shared by the numba kernels: numbers by their bits, and compiler flags.

`FLAGS` let the compiler use vectors; none of them lets it assume that there are no NaN: a NaN in a row's numbers has to
come out, so that the row fails.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

FLAGS = {"contract", "reassoc", "nsz", "arcp"}
_LINE_BYTES = 64


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


def prefetch_line(builder: Any, place: Any) -> None:
    """Make an intrinsic ask for the line at a pointer to a byte, to be read: data, locality 2 of 3."""
    number = ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [place.type, number, number, number])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [place, number(0), number(2), number(1)])


def prefetcher(num_bytes: int) -> Callable[..., None]:
    """Return a function that prefetches so many bytes, from an array's first number on, into the L2 cache.

    It may lie anywhere, even where there is none: nothing is read.
    """

    @intrinsic
    def prefetch(typing_context, array):
        def generate(context, builder, signature, arguments):
            data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
            start = builder.bitcast(data, ir.IntType(8).as_pointer())
            for offset in range(0, num_bytes, _LINE_BYTES):
                prefetch_line(builder, builder.gep(start, [ir.IntType(64)(offset)]))
            return context.get_dummy_value()

        return types.void(array), generate

    return prefetch


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


def reader(*, is_bfloat16: bool) -> Callable[..., Any]:
    """The function that makes a float32 of a number as an array has it; bfloat16 comes as uint16."""
    return _from_bfloat16 if is_bfloat16 else _same


def writer(*, is_bfloat16: bool) -> Callable[..., Any]:
    """The other way round, to the nearest, of two the even one."""
    return _to_bfloat16 if is_bfloat16 else _same
