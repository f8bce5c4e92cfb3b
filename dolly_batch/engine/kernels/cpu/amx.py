"""Integer products by AMX's tiles on the CPU, compiled by numba: uint8 rows times int8 weights, sums in int32.

A call of a library that does as much looks up how to do it each time, which for few rows takes longer than the product.
Weights are packed in tiles, one after the other as they are read; what limits a product of few rows is the memory.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from dolly_batch.engine.kernels.cpu.tiles import (
    DEPTH,
    ROWS,
    TILE_BYTES,
    address,
    instruction,
    keep,
    largest_shapes,
    prefetch,
)
from dolly_batch.engine.memory import Arena

_PAIR = 2 * ROWS
_BLOCK_LINES = 2 * TILE_BYTES // DEPTH
_weights = Arena()


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
        self.arrays = packed.reshape(len(tiles), -1, 2 * TILE_BYTES), offsets, factors, largest_shapes()


def compile_multiply() -> Callable[..., None]:
    """Return `multiply(packed, offsets, factors, shapes, rows, outputs)`, the first four of `TileWeights`.

    `rows` [rows, depth] uint8, the depth in whole tiles, give `outputs` [rows, features] float32: each feature's sum
    times its factor.
    """
    configure, release = instruction("ldtilecfg"), instruction("tilerelease")
    # Tiles 0 to 3 are sums, by rows and features; 4 and 5 rows, 6 and 7 weights.
    sums00, sums01, sums10, sums11 = (instruction("tileloadd64", tile) for tile in range(4))
    store00, store01, store10, store11 = (instruction("tilestored64", tile) for tile in range(4))
    upper, lower, left, right = (instruction("tileloadd64", tile) for tile in range(4, 8))
    add00, add01 = instruction("tdpbusd", 0, 4, 6), instruction("tdpbusd", 1, 4, 7)
    add10, add11 = instruction("tdpbusd", 2, 5, 6), instruction("tdpbusd", 3, 5, 7)

    @njit
    def fetch(place, num_lines):
        for line in range(num_lines):
            prefetch(place + line * DEPTH)

    @njit(error_model="numpy")
    def multiply_two(first, second, distance, weights, num_blocks, offset, found, ahead, num_lines):
        """32 rows times 32 features, and with each block of numbers so many lines fetched of what comes later."""
        sums00(offset, 0)
        sums01(offset + 4 * ROWS, 0)
        sums10(offset, 0)
        sums11(offset + 4 * ROWS, 0)
        for block in range(num_blocks):
            upper(first + block * DEPTH, distance)
            tiles = weights + block * 2 * TILE_BYTES
            fetch(ahead + block * num_lines * DEPTH, num_lines)
            left(tiles, DEPTH)
            add00()
            right(tiles + TILE_BYTES, DEPTH)
            add01()
            lower(second + block * DEPTH, distance)
            add10()
            add11()
        store00(found, 4 * _PAIR)
        store01(found + 4 * ROWS, 4 * _PAIR)
        store10(found + 4 * ROWS * _PAIR, 4 * _PAIR)
        store11(found + 4 * ROWS * _PAIR + 4 * ROWS, 4 * _PAIR)

    @njit(error_model="numpy")
    def multiply_one(first, distance, weights, num_blocks, offset, found, ahead, num_lines):
        """16 rows times 32 features, as above."""
        sums00(offset, 0)
        sums01(offset + 4 * ROWS, 0)
        for block in range(num_blocks):
            upper(first + block * DEPTH, distance)
            tiles = weights + block * 2 * TILE_BYTES
            fetch(ahead + block * num_lines * DEPTH, num_lines)
            left(tiles, DEPTH)
            add00()
            right(tiles + TILE_BYTES, DEPTH)
            add01()
        store00(found, 4 * _PAIR)
        store01(found + 4 * ROWS, 4 * _PAIR)

    @njit(error_model="numpy")
    def multiply(packed, offsets, factors, shapes, rows, outputs):
        sums = np.empty((_PAIR, _PAIR), np.int32)
        distance, num_blocks, num_rows = rows.shape[1], packed.shape[1], rows.shape[0]
        # The next features' weights come from afar: while these are at work, a share with each block of numbers.
        num_lines = -(-_BLOCK_LINES // -(-num_rows // _PAIR))
        num_whole = num_rows // ROWS * ROWS
        rest = np.empty((ROWS, distance), np.uint8)  # the last rows, in a tile that is no whole one
        for row in range(num_whole, num_rows):
            for i in range(distance):
                rest[row - num_whole, i] = rows[row, i]
        found, own_rows, last_rows = address(sums), address(rows), address(rest)
        configure(address(shapes))
        for pair in range(packed.shape[0]):
            start = pair * _PAIR
            weights, offset = address(packed) + start * distance, address(offsets) + 4 * start
            ahead = weights + num_blocks * 2 * TILE_BYTES
            for row in range(0, num_rows, _PAIR):
                first = own_rows + row * distance if row < num_whole else last_rows
                second = own_rows + (row + ROWS) * distance if row + ROWS < num_whole else last_rows
                if row + ROWS < num_rows:
                    multiply_two(first, second, distance, weights, num_blocks, offset, found, ahead, num_lines)
                else:
                    multiply_one(first, distance, weights, num_blocks, offset, found, ahead, num_lines)
                ahead += num_blocks * num_lines * DEPTH
                for member in range(min(_PAIR, num_rows - row)):
                    for i in range(min(_PAIR, outputs.shape[1] - start)):
                        outputs[row + member, start + i] = np.float32(sums[member, i]) * factors[start + i]
        keep(rest)
        release()

    return multiply
