"""`pool_prefill` for keys in bfloat16 on a CPU with AMX: products by tiles, sixteen queries at once.

Queries and weights are float32: each goes in as two bfloat16 (`tile_numbers`, `lanes`), keys and values as they are. A
query's bits are its own: tiles of keys begin at the row's first token, sums over them go in this order, and what a
query does not see has the weight 0. Only 0 times what is broken would not be 0: where a value of the row is, its
queries go one by one, each over values of which those behind it are zeros.
"""

from collections.abc import Callable

import numpy as np
from numba import njit

from dolly_batch.engine.kernels.cpu.lanes import pair_up, put_pairs, softmax_in_two, transpose
from dolly_batch.engine.kernels.cpu.tile_numbers import in_two
from dolly_batch.engine.kernels.cpu.tiles import (
    DEPTH,
    ROWS,
    TILE_BYTES,
    address,
    instruction,
    keep,
    largest_shapes,
)

_BLOCK = 2 * ROWS  # tokens, or numbers of a head, that a tile's rows of bfloat16 hold


def fits(head_size: int) -> bool:
    """Whether heads fill whole tiles."""
    return head_size % _BLOCK == 0


def compile_tile_prefill(num_heads: int, num_kv_heads: int, head_size: int) -> Callable[..., None]:
    """Return `prefill` for this shape, called as the one of `pool_prefill`."""
    num_words, num_parts, group = head_size // 2, head_size // _BLOCK, num_heads // num_kv_heads
    configure, release = instruction("ldtilecfg"), instruction("tilerelease")
    # Tiles 0 and 1 are sums; 2 and 3 the two parts of queries or weights; 4 and 5 keys, or values.
    clear, clear_second = instruction("tilezero", 0), instruction("tilezero", 1)
    store, store_second = instruction("tilestored64", 0), instruction("tilestored64", 1)
    load_high, load_low = instruction("tileloadd64", 2), instruction("tileloadd64", 3)
    load, load_second = instruction("tileloadd64", 4), instruction("tileloadd64", 5)
    add_high, add_low = instruction("tdpbf16ps", 0, 2, 4), instruction("tdpbf16ps", 0, 3, 4)
    add_high_second, add_low_second = instruction("tdpbf16ps", 1, 2, 5), instruction("tdpbf16ps", 1, 3, 5)

    largest = largest_shapes()

    @njit
    def pack_keys(stored, kv_head, num_keys, packed):
        """[tiles of 16 keys, parts, 16 pairs of a key's numbers, keys]."""
        num_whole = num_keys // ROWS
        for tile in range(num_whole):
            for part in range(num_parts):
                rows = address(stored[tile * ROWS, kv_head]) + part * DEPTH
                transpose(rows, num_kv_heads * 4 * num_words, address(packed[tile, part]))
        for key in range(num_whole * ROWS, num_keys):
            for part in range(num_parts):
                for i in range(ROWS):
                    packed[num_whole, part, i, key % ROWS] = stored[key, kv_head, part * ROWS + i]

    @njit
    def pack_values(stored, kv_head, first, num_keys, packed):
        """[blocks of 32 tokens, parts, 2, 16 pairs of tokens, 16]: of each pair of numbers the first ones, then the
        second ones, from a token on that begins a block."""
        nothing = np.zeros(num_words, np.uint32)  # where a token would be that makes the last one a pair
        for key in range(first, num_keys, 2):
            block, pair = packed[key // _BLOCK], key % _BLOCK // 2
            token = address(stored[key, kv_head])
            following = address(stored[key + 1, kv_head]) if key + 1 < num_keys else address(nothing)
            for part in range(num_parts):
                place = part * DEPTH
                pair_up(token + place, following + place, address(block[part, 0, pair]), address(block[part, 1, pair]))
        keep(nothing)

    @njit
    def has_broken(stored, num_keys):
        """Whether a number of the tokens is a NaN or infinite: all bits of its exponent are 1."""
        words = stored.reshape(-1)
        lower, upper = np.uint32(0), np.uint32(0)
        for i in range(num_keys * num_kv_heads * num_words):
            lower = max(lower, words[i] & np.uint32(0x7F80))
            upper = max(upper, words[i] & np.uint32(0x7F800000))
        return lower == np.uint32(0x7F80) or upper == np.uint32(0x7F800000)

    @njit
    def pack_queries(query, first, count, head, packed):
        """[2 parts, 16 queries, head size]."""
        for member in range(count):
            for i in range(head_size):
                packed[0, member, i], packed[1, member, i] = in_two(query[first + member, head, i])

    @njit
    def score(queries, keys, num_blocks, scores, distance):
        """Products of 16 queries with blocks of 32 keys, at addresses; rows of scores are `distance` bytes apart."""
        for block in range(num_blocks):
            tiles, found = keys + block * 2 * num_parts * TILE_BYTES, scores + block * 2 * DEPTH
            clear()
            clear_second()
            for part in range(num_parts):
                load_high(queries + part * DEPTH, 4 * num_words)
                load_low(queries + ROWS * 4 * num_words + part * DEPTH, 4 * num_words)
                load(tiles + part * TILE_BYTES, DEPTH)
                load_second(tiles + (num_parts + part) * TILE_BYTES, DEPTH)
                add_high()
                add_high_second()
                add_low()
                add_low_second()
            store(found, distance)
            store_second(found + DEPTH, distance)

    @njit
    def add_values(weights, distance, values, num_blocks, attended):
        """Sums of the values, [parts, 2, 16 queries, 16], by the two parts of the weights, all at addresses."""
        for part in range(num_parts):
            clear()
            clear_second()
            for block in range(num_blocks):
                load_high(weights + block * DEPTH, distance)
                load_low(weights + ROWS * distance + block * DEPTH, distance)
                tiles = values + (block * num_parts + part) * 2 * TILE_BYTES
                load(tiles, DEPTH)
                add_high()
                add_low()
                load_second(tiles + TILE_BYTES, DEPTH)
                add_high_second()
                add_low_second()
            store(attended + part * 2 * TILE_BYTES, DEPTH)
            store_second(attended + (part * 2 + 1) * TILE_BYTES, DEPTH)

    @njit(error_model="numpy")
    def prefill(pool, slot, start, query, key_value, output):
        num_queries, num_keys = len(query), start + len(query)
        all_blocks = (num_keys + _BLOCK - 1) // _BLOCK
        stored_keys, stored_values = pool[0, slot], pool[1, slot]
        for token in range(num_queries):
            for kv_head in range(num_kv_heads):
                for i in range(num_words):
                    stored_keys[start + token, kv_head, i] = key_value[token, 0, kv_head, i]
                    stored_values[start + token, kv_head, i] = key_value[token, 1, kv_head, i]
        keys = np.zeros((2 * all_blocks, num_parts, ROWS, ROWS), np.uint32)
        values = np.zeros((all_blocks, num_parts, 2, ROWS, ROWS), np.uint32)
        queries, shapes = np.zeros((2, ROWS, head_size), np.uint16), largest.copy()
        weights = np.zeros((ROWS, all_blocks * _BLOCK), np.float32)
        halves = np.zeros((2, ROWS, all_blocks * _BLOCK), np.uint16)
        attended, totals = np.empty((num_parts, 2, ROWS, ROWS), np.float32), np.empty(ROWS, np.float32)
        at_once = 1 if has_broken(stored_values, num_keys) else ROWS
        configure(address(shapes))
        for head in range(num_heads):
            kv_head = head // group
            if head % group == 0:  # the heads of a group read the same keys and values
                pack_keys(stored_keys, kv_head, num_keys, keys)
                pack_values(stored_values, kv_head, 0, num_keys, values)
            for first in range(0, num_queries, at_once):
                count, num_seen = min(at_once, num_queries - first), start + first + 1  # by the first of them
                num_blocks = (num_seen + count - 1 + _BLOCK - 1) // _BLOCK
                if at_once == 1:
                    values[num_blocks - 1] = 0
                    pack_values(stored_values, kv_head, (num_blocks - 1) * _BLOCK, num_seen, values)
                pack_queries(query, first, count, head, queries)
                score(address(queries), address(keys), num_blocks, address(weights), 4 * weights.shape[1])
                for member in range(count):
                    totals[member] = softmax_in_two(
                        address(weights[member]),
                        num_seen + member,
                        num_blocks * _BLOCK,
                        address(halves[0, member]),
                        address(halves[1, member]),
                    )
                add_values(address(halves), 2 * halves.shape[2], address(values), num_blocks, address(attended))
                for member in range(count):
                    for part in range(num_parts):
                        firsts, seconds = address(attended[part, 0, member]), address(attended[part, 1, member])
                        place = address(output[first + member, head]) + part * 2 * DEPTH
                        put_pairs(firsts, seconds, totals[member], place)
        keep(keys)
        keep(values)
        keep(queries)
        keep(weights)
        keep(halves)
        keep(attended)
        keep(shapes)
        release()

    return prefill
