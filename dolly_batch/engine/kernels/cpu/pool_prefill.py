"""Attention of a chunk of one row over its slot of a pool on the CPU, compiled by numba for the CPU at hand.

Each query sees the row's tokens up to itself, and nothing of what is behind it, be it broken. All sums are in float32,
in an order that the row and its chunk decide.

The chunk's queries go by fours over tiles of keys: what is loaded of a key serves four of them. The working arrays are
flat, with distances that are known when this is compiled, or the compiler would not use vectors.
"""

from collections.abc import Callable

import numpy as np
from numba import njit

from dolly_batch.engine.kernels.cpu.bits import FLAGS
from dolly_batch.engine.kernels.cpu.pairs import pairs_of
from dolly_batch.engine.kernels.cpu.softmax import exponentiate

_TILE = 32  # keys that lie side by side
_STEP = 4  # queries, numbers of a key, or keys that are worked on at once


def compile_prefill(num_heads: int, num_kv_heads: int, head_size: int, *, is_bfloat16: bool) -> Callable[..., None]:
    """Return `prefill` for this shape and type of keys; it is compiled when it is first called.

    `prefill(pool, slot, start, query, key_value, output)` stores the keys and values of a row's tokens from `start` on
    and attends. All are arrays as for `pool_decode`, with the chunk's tokens in place of rows.
    """
    pairs = pairs_of(head_size, is_bfloat16=is_bfloat16)
    half, num_words = pairs.count, pairs.num_words
    first, second, first_place, second_place = pairs.first, pairs.second, pairs.first_place, pairs.second_place
    depth = -(-head_size // _STEP) * _STEP
    heads_a_key = num_heads // num_kv_heads

    @njit(fastmath=FLAGS)
    def multiply_keys(own, keys, products):
        """Products of four queries with a tile of keys, [4, keys of a tile]."""
        products[:] = 0
        for i in range(0, depth, _STEP):
            a0, a1, a2, a3 = own[i], own[i + 1], own[i + 2], own[i + 3]
            b0, b1, b2, b3 = own[depth + i], own[depth + i + 1], own[depth + i + 2], own[depth + i + 3]
            c0, c1, c2, c3 = own[2 * depth + i], own[2 * depth + i + 1], own[2 * depth + i + 2], own[2 * depth + i + 3]
            d0, d1, d2, d3 = own[3 * depth + i], own[3 * depth + i + 1], own[3 * depth + i + 2], own[3 * depth + i + 3]
            for key in range(_TILE):
                k0, k1 = keys[i * _TILE + key], keys[(i + 1) * _TILE + key]
                k2, k3 = keys[(i + 2) * _TILE + key], keys[(i + 3) * _TILE + key]
                products[key] += (a0 * k0 + a1 * k1) + (a2 * k2 + a3 * k3)
                products[_TILE + key] += (b0 * k0 + b1 * k1) + (b2 * k2 + b3 * k3)
                products[2 * _TILE + key] += (c0 * k0 + c1 * k1) + (c2 * k2 + c3 * k3)
                products[3 * _TILE + key] += (d0 * k0 + d1 * k1) + (d2 * k2 + d3 * k3)

    @njit(fastmath=FLAGS)
    def add_values(weights, values, num_blocks, attended):
        """Sums of blocks of four values by the weights of four queries, [4, head size]."""
        attended[:] = 0
        for block in range(num_blocks):
            numbers, key = values[block], _STEP * block
            a0, a1, a2, a3 = weights[0, key], weights[0, key + 1], weights[0, key + 2], weights[0, key + 3]
            b0, b1, b2, b3 = weights[1, key], weights[1, key + 1], weights[1, key + 2], weights[1, key + 3]
            c0, c1, c2, c3 = weights[2, key], weights[2, key + 1], weights[2, key + 2], weights[2, key + 3]
            d0, d1, d2, d3 = weights[3, key], weights[3, key + 1], weights[3, key + 2], weights[3, key + 3]
            for i in range(head_size):
                v0, v1 = numbers[i], numbers[head_size + i]
                v2, v3 = numbers[2 * head_size + i], numbers[3 * head_size + i]
                attended[i] += (a0 * v0 + a1 * v1) + (a2 * v2 + a3 * v3)
                attended[head_size + i] += (b0 * v0 + b1 * v1) + (b2 * v2 + b3 * v3)
                attended[2 * head_size + i] += (c0 * v0 + c1 * v1) + (c2 * v2 + c3 * v3)
                attended[3 * head_size + i] += (d0 * v0 + d1 * v1) + (d2 * v2 + d3 * v3)

    @njit(fastmath=FLAGS, error_model="numpy")
    def prefill(pool, slot, start, query, key_value, output):
        num_queries, num_keys = len(query), start + len(query)
        num_tiles = (num_keys + _TILE - 1) // _TILE
        keys = np.zeros((num_tiles, depth * _TILE), np.float32)  # each tile [depth, keys]
        values = np.zeros((num_tiles * _TILE // _STEP, _STEP * head_size), np.float32)
        weights = np.empty((_STEP, num_tiles * _TILE), np.float32)
        products, attended = np.empty(_STEP * _TILE, np.float32), np.empty(_STEP * head_size, np.float32)
        own, totals = np.zeros(_STEP * depth, np.float32), np.empty(_STEP, np.float32)
        for token in range(num_queries):
            for kv_head in range(num_kv_heads):
                for i in range(num_words):
                    pool[0, slot, start + token, kv_head, i] = key_value[token, 0, kv_head, i]
                    pool[1, slot, start + token, kv_head, i] = key_value[token, 1, kv_head, i]
        for head in range(num_heads):
            kv_head = head // heads_a_key
            if head % heads_a_key == 0:  # the heads of a group read the same keys and values
                for key in range(num_keys):
                    key_numbers, value_numbers = pool[0, slot, key, kv_head], pool[1, slot, key, kv_head]
                    columns, column = keys[key // _TILE], key % _TILE
                    block, offset = values[key // _STEP], key % _STEP * head_size
                    for i in range(half):
                        columns[first_place(i) * _TILE + column] = first(key_numbers, i)
                        columns[second_place(i) * _TILE + column] = second(key_numbers, i)
                    for i in range(half):
                        block[offset + first_place(i)] = first(value_numbers, i)
                        block[offset + second_place(i)] = second(value_numbers, i)
            for group in range(0, num_queries, _STEP):
                count = min(_STEP, num_queries - group)
                for member in range(count):
                    for i in range(head_size):
                        own[member * depth + i] = query[group + member, head, i]
                num_seen = start + group + count  # by the last of the group
                for tile in range((num_seen + _TILE - 1) // _TILE):
                    multiply_keys(own, keys[tile], products)
                    for member in range(_STEP):
                        for key in range(_TILE):
                            weights[member, tile * _TILE + key] = products[member * _TILE + key]
                for member in range(count):
                    num_own = start + group + member + 1
                    totals[member] = exponentiate(weights[member], num_own)
                num_blocks = (start + group + 1) // _STEP  # seen by all of the group
                add_values(weights, values, num_blocks, attended)
                for member in range(count):
                    for key in range(_STEP * num_blocks, start + group + member + 1):
                        weight, numbers = weights[member, key], values[key // _STEP]
                        for i in range(head_size):
                            attended[member * head_size + i] += weight * numbers[key % _STEP * head_size + i]
                    for i in range(head_size):
                        output[group + member, head, i] = attended[member * head_size + i] / totals[member]

    return prefill
