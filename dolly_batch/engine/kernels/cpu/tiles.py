"""AMX, the CPU's tiles, for kernels that numba compiles: whether they are there, and their instructions.

A tile has 16 rows of 64 bytes. A kernel configures tiles before it uses them, and releases them at its end.
"""

import ctypes
import platform
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils, config
from numba.extending import intrinsic

from dolly_batch.engine.kernels.cpu.bits import prefetch_line

ROWS, DEPTH = 16, 64  # of a tile: rows, and bytes of each
TILE_BYTES = ROWS * DEPTH
_NUM_TILES = 8
_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18


def is_available(kind: str) -> bool:
    """Whether numba compiles for AMX's products of a kind, `int8` or `bf16`, here, and this process may use them: Linux
    wants to be asked."""
    if not (sys.platform == "linux" and platform.machine() == "x86_64") or _is_for_another_cpu():
        return False
    features = binding.get_host_cpu_features()
    if not all(features.get(name) for name in ("amx-tile", f"amx-{kind}")):
        return False
    return bool(ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) == 0)


def _is_for_another_cpu() -> bool:
    """Whether numba was told to compile for a CPU that is not this one."""
    settings: Any = config
    return bool(settings.CPU_NAME or settings.CPU_FEATURES)


def largest_shapes() -> Any:
    """The shapes of tiles, all as large as they can be, for the instruction: 1, bytes of each one's rows, its rows."""
    shapes = np.zeros(64, np.uint8)
    shapes[0] = 1
    shapes[16 : 16 + 2 * _NUM_TILES : 2] = DEPTH
    shapes[48 : 48 + _NUM_TILES] = ROWS
    return shapes


def instruction(name: str, *tiles: int) -> Callable[..., None]:
    """An intrinsic of LLVM's for these tiles; it takes an address, and rows' distance, where the instruction does."""

    def declare(builder: Any, kinds: list[Any]) -> Any:
        byte = ir.IntType(8)
        kind = ir.FunctionType(ir.VoidType(), [*[byte] * len(tiles), *kinds])
        return cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.{name}")

    numbers = [ir.IntType(8)(tile) for tile in tiles]

    if name in ("tileloadd64", "tilestored64"):

        @intrinsic
        def at_rows(typing_context, address, distance):
            def generate(context, builder, signature, arguments):
                pointer = builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())
                function = declare(builder, [pointer.type, ir.IntType(64)])
                builder.call(function, [*numbers, pointer, arguments[1]])
                return context.get_dummy_value()

            return types.void(types.int64, types.int64), generate

        return at_rows
    if name == "ldtilecfg":

        @intrinsic
        def at_address(typing_context, address):
            def generate(context, builder, signature, arguments):
                pointer = builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())
                builder.call(declare(builder, [pointer.type]), [pointer])
                return context.get_dummy_value()

            return types.void(types.int64), generate

        return at_address

    @intrinsic
    def of_tiles(typing_context):
        def generate(context, builder, signature, arguments):
            builder.call(declare(builder, []), numbers)
            return context.get_dummy_value()

        return types.void(), generate

    return of_tiles


@intrinsic
def address(typing_context, array):
    """Where an array's first number is; `ctypes.data` takes seconds to compile."""

    def generate(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.ptrtoint(data, ir.IntType(64))

    return types.int64(array), generate


@njit
def keep(array):
    """An array is alive until here, however its address is used."""


@intrinsic
def prefetch(typing_context, address):
    """Ask for the line at an address, be there memory or not, to come into the second cache."""

    def generate(context, builder, signature, arguments):
        prefetch_line(builder, builder.inttoptr(arguments[0], ir.IntType(8).as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64), generate
