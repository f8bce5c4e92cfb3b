"""What is between a layer's products and its attention, in one pass: heads are split, rotated and stored in pages.

A program takes some heads of one token: of its keys, its values or its queries. Vectors are normalized (where a model's
heads have norms), rotated and, for pages of 8 bits, rounded in float32; nothing depends on another token. A rotary
embedding turns the first `2 x HALF` numbers of a vector, number `i` with number `i + HALF`, and leaves the rest.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dolly_batch.engine.kernels.gpu import Rotation
from dolly_batch.engine.kernels.gpu.eight_bits import round_shares, scale_of
from dolly_batch.engine.kernels.gpu.heads import NUM_WARPS, block_sizes, rotated_parts, save_parts


@triton.jit
def _largest(numbers):
    """Of each vector in magnitude; and 0 or NaN, since a maximum passes over NaN."""
    return tl.max(tl.abs(numbers), axis=1), tl.sum(numbers * 0.0, axis=1)


@triton.jit
def _shares(numbers, scale, IS_INT8: tl.constexpr):
    return round_shares(tl.div_rn(numbers, tl.zeros_like(numbers) + scale[:, None]), IS_INT8)


@triton.jit
def _store_heads(
    vectors,
    weight,
    epsilon,
    cosines,
    sines,
    head,
    place,  # of the token: page times PAGE, and its place in it
    packed_at,
    pages,
    scales,
    packed,
    KV_HEADS: tl.constexpr,
    PAGE: tl.constexpr,
    HALF: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    REST_BLOCK: tl.constexpr,
    HAS_NORMS: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    IS_INT8: tl.constexpr,
    IS_PACKED: tl.constexpr,
):
    is_head = head < KV_HEADS
    first, second, rest = rotated_parts(
        vectors, is_head, weight, epsilon, cosines, sines, HALF, HEAD_SIZE, HALF_BLOCK, REST_BLOCK, HAS_NORMS
    )
    stored = (place // PAGE * KV_HEADS + head) * PAGE + place % PAGE
    if HAS_SCALES:
        largest, spoilt = _largest(rest)
        if HALF > 0:
            of_first, spoilt_first = _largest(first)
            of_second, spoilt_second = _largest(second)
            largest = tl.maximum(largest, tl.maximum(of_first, of_second))
            spoilt += spoilt_first + spoilt_second
        scale = scale_of(largest, IS_INT8) + spoilt
        tl.store(scales + stored, scale, mask=is_head)
        first, second, rest = (
            _shares(first, scale, IS_INT8),
            _shares(second, scale, IS_INT8),
            _shares(rest, scale, IS_INT8),
        )
    save_parts(pages + stored * HEAD_SIZE, first, second, rest, is_head, HALF, HEAD_SIZE, HALF_BLOCK, REST_BLOCK)
    if IS_PACKED:
        if HAS_SCALES:
            first, second, rest = first * scale[:, None], second * scale[:, None], rest * scale[:, None]
        targets = packed + (packed_at * KV_HEADS + head) * HEAD_SIZE
        save_parts(targets, first, second, rest, is_head, HALF, HEAD_SIZE, HALF_BLOCK, REST_BLOCK)


@triton.jit
def _store(
    query,  # [tokens, HEADS, HEAD_SIZE]
    key,  # [tokens, KV_HEADS, HEAD_SIZE], as value
    value,
    query_weight,  # [HEAD_SIZE], of the heads' norms; unused where there are none
    key_weight,
    cosines,  # [tokens, HALF], float32; unused where nothing is rotated
    sines,
    key_pages,  # [pages, KV_HEADS, PAGE, HEAD_SIZE], as value_pages
    value_pages,
    key_scales,  # [pages, KV_HEADS, PAGE], as value_scales; unused where pages are no 8 bits
    value_scales,
    places,  # [tokens]: page times PAGE, and the token's place in it
    packed_at,  # [tokens]; unused if not IS_PACKED, as keys and values
    queries,  # [tokens, HEADS, HEAD_SIZE], dense
    keys,  # [packed tokens, KV_HEADS, HEAD_SIZE], dense, as values
    values,
    epsilon,
    query_row,
    query_head,
    key_row,
    key_head,
    value_row,
    value_head,
    angles_row,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    PAGE: tl.constexpr,
    HALF: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    REST_BLOCK: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    HAS_NORMS: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    IS_INT8: tl.constexpr,
    IS_PACKED: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    num_blocks = tl.cdiv(KV_HEADS, BLOCK_HEADS)
    cosines += token * angles_row
    sines += token * angles_row
    if block >= 2 * num_blocks:
        head = (block - 2 * num_blocks) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
        is_head = head < HEADS
        vectors = query + token * query_row + head * query_head
        first, second, rest = rotated_parts(
            vectors, is_head, query_weight, epsilon, cosines, sines, HALF, HEAD_SIZE, HALF_BLOCK, REST_BLOCK, HAS_NORMS
        )
        targets = queries + (token * HEADS + head) * HEAD_SIZE
        save_parts(targets, first, second, rest, is_head, HALF, HEAD_SIZE, HALF_BLOCK, REST_BLOCK)
        return
    place = tl.load(places + token)
    at = token
    if IS_PACKED:
        at = tl.load(packed_at + token)
    head = block % num_blocks * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    if block < num_blocks:
        _store_heads(
            key + token * key_row + head * key_head, key_weight, epsilon, cosines, sines, head, place, at,
            key_pages, key_scales, keys, KV_HEADS, PAGE, HALF, HEAD_SIZE, HALF_BLOCK, REST_BLOCK,
            HAS_NORMS, HAS_SCALES, IS_INT8, IS_PACKED,
        )  # fmt: skip
    else:
        _store_heads(
            value + token * value_row + head * value_head, key_weight, epsilon, cosines, sines, head, place, at,
            value_pages, value_scales, values, KV_HEADS, PAGE, 0, HEAD_SIZE, 1, BLOCK_SIZE,
            False, HAS_SCALES, IS_INT8, IS_PACKED,
        )  # fmt: skip


def store(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pages: Tensor,
    scales: Tensor | None,
    places: Tensor,
    rotation: Rotation | None = None,
    packed: Tensor | None = None,
    packed_at: Tensor | None = None,
) -> Tensor:
    """Store keys and values in pages and return the queries; keys and queries are rotated, where there is a rotation.

    `query` is [tokens, heads, head size], `key` and `value` [tokens, kv heads, head size], dense in their last
    dimension. `pages` is a layer's [2, pages, kv heads, page, head size], in the keys' dtype or, with `scales` [2,
    pages, kv heads, page], in 8 bits; `places` int64 [tokens]: a page's number times its tokens, and the place in it,
    no two of them the same but for tokens whose results are not wanted. `packed`, dense [2, any number, kv heads,
    head size], gets keys and values as they are stored, at `packed_at`, int64 [tokens].
    """
    num_tokens, num_heads, head_size = query.shape
    num_kv_heads, page = pages.shape[2:4]
    half = 0 if rotation is None else rotation.cosines.shape[1]
    sizes = block_sizes(num_kv_heads, head_size, half)
    num_blocks = 2 * triton.cdiv(num_kv_heads, sizes["BLOCK_HEADS"])
    queries = query
    if rotation is not None:
        queries = query.new_empty(query.shape)
        num_blocks += triton.cdiv(num_heads, sizes["BLOCK_HEADS"])
    unused: Any = query
    norms = rotation.norms if rotation else None
    _store[(num_tokens, num_blocks)](
        query,
        key,
        value,
        *(norms or (unused, unused)),
        rotation.cosines if rotation else unused,
        rotation.sines if rotation else unused,
        pages[0],
        pages[1],
        unused if scales is None else scales[0],
        unused if scales is None else scales[1],
        places,
        unused if packed_at is None else packed_at,
        queries,
        unused if packed is None else packed[0],
        unused if packed is None else packed[1],
        rotation.epsilon if rotation else 0.0,
        query.stride(0),
        query.stride(1),
        key.stride(0),
        key.stride(1),
        value.stride(0),
        value.stride(1),
        rotation.cosines.stride(0) if rotation else 0,
        HEADS=num_heads,
        KV_HEADS=num_kv_heads,
        PAGE=page,
        HALF=half,
        HEAD_SIZE=head_size,
        **sizes,
        HAS_NORMS=norms is not None,
        HAS_SCALES=scales is not None,
        IS_INT8=pages.dtype == torch.int8,
        IS_PACKED=packed is not None,
        num_warps=NUM_WARPS,
    )
    return queries
