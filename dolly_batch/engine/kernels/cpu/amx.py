"""Integer products by AMX's tiles on the CPU, compiled by numba: uint8 rows times int8 weights, sums in int32.

A call of a library that does as much looks up how to do it each time, which for few rows takes longer than the product.
Weights are packed in tiles, one after the other as they are read; what limits a product of few rows is the memory.
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

from dolly_batch.engine.memory import Arena

ROWS, DEPTH = 16, 64  # of a tile: rows, and bytes of each
_PAIR = 2 * ROWS
_TILE_BYTES = ROWS * DEPTH
_NUM_TILES = 8
_AHEAD = 8 * _TILE_BYTES
_weights = Arena()
_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18


def is_available() -> bool:
    """Whether numba compiles for AMX here, and this process may use it: Linux wants to be asked."""
    if not (sys.platform == "linux" and platform.machine() == "x86_64") or _is_for_another_cpu():
        return False
    features = binding.get_host_cpu_features()
    if not all(features.get(name) for name in ("amx-tile", "amx-int8")):
        return False
    return bool(ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) == 0)


def _is_for_another_cpu() -> bool:
    """Whether numba was told to compile for a CPU that is not this one."""
    settings: Any = config
    return bool(settings.CPU_NAME or settings.CPU_FEATURES)


class TileWeights:
    """Weights [features, depth] int8 in tiles, as `multiply` takes them.

    `arrays`: tiles [blocks of 16 features, blocks of 64 numbers, 1024], in pairs that zeros fill up; what takes the
    rows' zero point out of each sum; each feature's scale; and the tiles' shapes.
    """

    def __init__(self, weight: Any, scales: Any, zero_point: int) -> None:
        features, depth = weight.shape
        padding = -features % _PAIR
        padded = np.pad(weight, ((0, padding), (0, -depth % DEPTH)))
        tiles = padded.reshape(-1, 2, ROWS, padded.shape[1] // DEPTH, DEPTH // 4, 4).transpose(0, 3, 1, 4, 2, 5)
        packed = _weights.take(tiles.shape, np.int8)
        packed[:] = tiles
        offsets = (-zero_point * padded.sum(axis=1, dtype=np.int64)).astype(np.int32)
        factors = np.pad(scales, (0, padding))
        self.arrays = packed.reshape(len(tiles), -1, 2 * _TILE_BYTES), offsets, factors, _largest_shapes()


def _largest_shapes() -> Any:
    """The shapes of tiles, all as large as they can be, for the instruction: 1, bytes of each one's rows, its rows."""
    shapes = np.zeros(64, np.uint8)
    shapes[0] = 1
    shapes[16 : 16 + 2 * _NUM_TILES : 2] = DEPTH
    shapes[48 : 48 + _NUM_TILES] = ROWS
    return shapes


def _instruction(name: str, *tiles: int) -> Callable[..., None]:
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
def _address(typing_context, array):
    """Where an array's first number is; `ctypes.data` takes seconds to compile."""

    def generate(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.ptrtoint(data, ir.IntType(64))

    return types.int64(array), generate


@njit
def _keep(array):
    """An array is alive until here, however its address is used."""


@intrinsic
def _prefetch(typing_context, address):
    """Ask for the line at an address, be there memory or not, to come into the second cache."""

    def generate(context, builder, signature, arguments):
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [builder.inttoptr(arguments[0], byte), number(0), number(2), number(1)])
        return context.get_dummy_value()

    return types.void(types.int64), generate


def compile_multiply() -> Callable[..., None]:
    """Return `multiply(packed, offsets, factors, shapes, rows, outputs)`, the first four of `TileWeights`.

    `rows` [rows, depth] uint8, the depth in whole tiles, give `outputs` [rows, features] float32: each feature's sum
    times its factor.
    """
    configure, release = _instruction("ldtilecfg"), _instruction("tilerelease")
    # Tiles 0 to 3 are sums, by rows and features; 4 and 5 rows, 6 and 7 weights.
    sums00, sums01, sums10, sums11 = (_instruction("tileloadd64", tile) for tile in range(4))
    store00, store01, store10, store11 = (_instruction("tilestored64", tile) for tile in range(4))
    upper, lower, left, right = (_instruction("tileloadd64", tile) for tile in range(4, 8))
    add00, add01 = _instruction("tdpbusd", 0, 4, 6), _instruction("tdpbusd", 1, 4, 7)
    add10, add11 = _instruction("tdpbusd", 2, 5, 6), _instruction("tdpbusd", 3, 5, 7)

    @njit
    def fetch(tiles):
        for line in range(0, 2 * _TILE_BYTES, DEPTH):
            _prefetch(tiles + line)

    @njit(error_model="numpy")
    def multiply_two(first, second, distance, weights, num_blocks, offset, found, is_first):
        """32 rows times 32 features; where those rows are the first, the weights come from afar."""
        sums00(offset, 0)
        sums01(offset + 4 * ROWS, 0)
        sums10(offset, 0)
        sums11(offset + 4 * ROWS, 0)
        for block in range(num_blocks):
            upper(first + block * DEPTH, distance)
            tiles = weights + block * 2 * _TILE_BYTES
            if is_first:
                fetch(tiles + _AHEAD)
            left(tiles, DEPTH)
            add00()
            right(tiles + _TILE_BYTES, DEPTH)
            add01()
            lower(second + block * DEPTH, distance)
            add10()
            add11()
        store00(found, 4 * _PAIR)
        store01(found + 4 * ROWS, 4 * _PAIR)
        store10(found + 4 * ROWS * _PAIR, 4 * _PAIR)
        store11(found + 4 * ROWS * _PAIR + 4 * ROWS, 4 * _PAIR)

    @njit(error_model="numpy")
    def multiply_one(first, distance, weights, num_blocks, offset, found, is_first):
        """16 rows times 32 features."""
        sums00(offset, 0)
        sums01(offset + 4 * ROWS, 0)
        for block in range(num_blocks):
            upper(first + block * DEPTH, distance)
            tiles = weights + block * 2 * _TILE_BYTES
            if is_first:
                fetch(tiles + _AHEAD)
            left(tiles, DEPTH)
            add00()
            right(tiles + _TILE_BYTES, DEPTH)
            add01()
        store00(found, 4 * _PAIR)
        store01(found + 4 * ROWS, 4 * _PAIR)

    @njit(error_model="numpy")
    def multiply(packed, offsets, factors, shapes, rows, outputs):
        sums = np.empty((_PAIR, _PAIR), np.int32)
        distance, num_blocks, num_rows = rows.shape[1], packed.shape[1], rows.shape[0]
        num_whole = num_rows // ROWS * ROWS
        rest = np.empty((ROWS, distance), np.uint8)  # the last rows, in a tile that is no whole one
        for row in range(num_whole, num_rows):
            for i in range(distance):
                rest[row - num_whole, i] = rows[row, i]
        found, own_rows, last_rows = _address(sums), _address(rows), _address(rest)
        configure(_address(shapes))
        for pair in range(packed.shape[0]):
            start = pair * _PAIR
            weights, offset = _address(packed) + start * distance, _address(offsets) + 4 * start
            for row in range(0, num_rows, _PAIR):
                first = own_rows + row * distance if row < num_whole else last_rows
                second = own_rows + (row + ROWS) * distance if row + ROWS < num_whole else last_rows
                if row + ROWS < num_rows:
                    multiply_two(first, second, distance, weights, num_blocks, offset, found, row == 0)
                else:
                    multiply_one(first, distance, weights, num_blocks, offset, found, row == 0)
                for member in range(min(_PAIR, num_rows - row)):
                    for i in range(min(_PAIR, outputs.shape[1] - start)):
                        outputs[row + member, start + i] = np.float32(sums[member, i]) * factors[start + i]
        _keep(rest)
        release()

    return multiply
