"""Decode attention over pages: one query of each row against all of the row's keys, read once.

A program takes one head of one row (in `decode_group`: the heads that share keys), and of that row `SPLIT_KEYS` keys:
rows longer than that are taken by several and joined by a second kernel. Where a row is cut depends on its own length
alone, and a row that is not cut gets the same bits with and without the second kernel; so its result depends on no
neighbour. Programs of parts that a short row does not have end at once. The new token's key and value come from the
layer itself, and are written to their page on the way: nothing is read that was written in the same launch.

Where pages hold numbers of 8 bits, these are multiplied as they are, and each sum by its token's scale; those of the
new token too, so that a row's numbers do not depend on which of its tokens are cached.

Each of `BLOCK_KEYS` lanes keeps a softmax of its own over every `BLOCK_KEYS`-th key (the running maximum of Milakov and
Gimelshein 2018); the lanes are joined once, at the end, so that no step of the loop waits for the whole program. The
parts of a long row are joined as in Flash-Decoding (Dao et al. 2023). All sums are in float32.
"""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from dolly_batch.engine.kernels.gpu import SPLIT_KEYS
from dolly_batch.engine.kernels.gpu.decode_group import GROUP_BLOCK_KEYS, _attend_group, group_settings
from dolly_batch.engine.kernels.gpu.eight_bits import round_vector

_BLOCK_KEYS = 32
_NUM_WARPS = 4


@triton.jit
def _attend(
    query,  # [rows, heads, head size], of the new tokens
    key,  # [rows, kv heads, head size], as value
    value,
    key_pages,  # [pages, kv heads, PAGE, HEAD_SIZE], as value_pages
    value_pages,
    key_scales,  # [pages, kv heads, PAGE], as value_scales; unused where pages are no 8 bits
    value_scales,
    tables,  # [slots, pages of a row]
    slots,  # [rows]
    positions,  # [rows], of the new tokens
    output,  # [rows, heads, HEAD_SIZE]; of parts [rows, heads, NUM_SPLITS, HEAD_SIZE] in float32
    sums,  # [rows, heads, NUM_SPLITS]: base-2 logarithms of the parts' sums of weights; unused without parts
    scale,
    query_row,
    query_head,
    key_row,
    key_head,
    value_row,
    value_head,
    table_row,
    NUM_SPLITS: tl.constexpr,
    KEYS: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    GROUP: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    IS_INT8: tl.constexpr,
):
    head = tl.program_id(0)
    kv_head = head // GROUP
    row = tl.program_id(1).to(tl.int64)
    split = tl.program_id(2)
    num_heads = tl.num_programs(0)
    num_kv_heads = num_heads // GROUP
    position = tl.load(positions + row).to(tl.int32)
    if NUM_SPLITS > 1:  # noqa: SIM102 - known when the kernel is compiled, what follows is not
        if (split > 0) & (split * KEYS >= position):  # a part that this row does not have
            tl.store(sums + (row * num_heads + head) * NUM_SPLITS + split, -float("inf"))
            return
    table = tables + tl.load(slots + row).to(tl.int64) * table_row
    size = tl.arange(0, BLOCK_SIZE)
    inner = size < HEAD_SIZE
    own_query = tl.load(query + row * query_row + head * query_head + size, mask=inner, other=0.0).to(tl.float32)
    own_query = own_query * (scale * 1.4426950408889634)  # of 2 instead of e

    own_key = tl.load(key + row * key_row + kv_head * key_head + size, mask=inner, other=0.0)
    own_value = tl.load(value + row * value_row + kv_head * value_head + size, mask=inner, other=0.0)
    own_page = tl.load(table + position // PAGE).to(tl.int64)
    own_place = (own_page * num_kv_heads + kv_head) * PAGE + position % PAGE
    is_first = split == 0
    stores_scale = is_first & (head % GROUP == 0)
    stores = inner & stores_scale
    own_score_scale, own_value_scale = 1.0, 1.0
    if HAS_SCALES:
        own_key, own_score_scale = round_vector(own_key.to(tl.float32), IS_INT8)
        own_value, own_value_scale = round_vector(own_value.to(tl.float32), IS_INT8)
        tl.store(key_scales + own_place, own_score_scale, mask=stores_scale)
        tl.store(value_scales + own_place, own_value_scale, mask=stores_scale)
    own_numbers = own_place * HEAD_SIZE + size
    tl.store(key_pages + own_numbers, own_key.to(key_pages.dtype.element_ty), mask=stores)
    tl.store(value_pages + own_numbers, own_value.to(value_pages.dtype.element_ty), mask=stores)

    lane = tl.arange(0, BLOCK_KEYS)
    best = tl.full((BLOCK_KEYS,), -1.0e30, tl.float32)
    total = tl.zeros((BLOCK_KEYS,), tl.float32)
    sum_values = tl.zeros((BLOCK_KEYS, BLOCK_SIZE), tl.float32)
    begin = split * KEYS
    end = tl.minimum(begin + KEYS, position)
    for start in range(begin, end, BLOCK_KEYS):
        at = start + lane
        there = at < end
        page = tl.load(table + at // PAGE, mask=there, other=0).to(tl.int64)
        token = (page * num_kv_heads + kv_head) * PAGE + at % PAGE
        place = token * HEAD_SIZE
        # Nothing beyond the row's end is read: what lies there may be another row's, even a NaN.
        mask = there[:, None] & inner[None, :]
        keys = tl.load(key_pages + place[:, None] + size[None, :], mask=mask, other=0.0).to(tl.float32)
        values = tl.load(value_pages + place[:, None] + size[None, :], mask=mask, other=0.0).to(tl.float32)
        score = tl.sum(keys * own_query[None, :], axis=1)
        if HAS_SCALES:  # numbers are multiplied as they are
            score *= tl.load(key_scales + token, mask=there, other=0.0)
        new_best = tl.where(there, tl.maximum(best, score), best)
        factor = tl.exp2(best - new_best)
        weight = tl.where(there, tl.exp2(score - new_best), 0.0)
        total = total * factor + weight
        if HAS_SCALES:
            weight *= tl.load(value_scales + token, mask=there, other=0.0)
        sum_values = sum_values * factor[:, None] + weight[:, None] * values
        best = new_best

    own_score = tl.sum(own_query * own_key.to(tl.float32), axis=0) * own_score_scale
    own_score = tl.where(is_first, own_score, -1.0e30)
    highest = tl.maximum(tl.max(best, axis=0), own_score)
    factor = tl.exp2(best - highest)
    own_weight = tl.where(is_first, tl.exp2(own_score - highest), 0.0)
    whole = tl.sum(total * factor, axis=0) + own_weight
    # A weight of 0 must not meet a NaN of the new token's.
    own_part = tl.where(is_first, own_weight * own_value_scale * own_value.to(tl.float32), 0.0)
    result = tl.sum(sum_values * factor[:, None], axis=0) + own_part
    place = row * num_heads + head
    if NUM_SPLITS == 1:
        tl.store(output + place * HEAD_SIZE + size, (result / whole).to(output.dtype.element_ty), mask=inner)
    else:
        place = place * NUM_SPLITS + split
        some = whole > 0
        tl.store(output + place * HEAD_SIZE + size, result / tl.where(some, whole, 1.0), mask=inner)
        tl.store(sums + place, tl.where(some, highest + tl.log2(tl.where(some, whole, 1.0)), -float("inf")))


@triton.jit
def _join(
    parts,  # [rows, heads, NUM_SPLITS, HEAD_SIZE]
    sums,  # [rows, heads, NUM_SPLITS]
    output,  # [rows, heads, HEAD_SIZE]
    NUM_SPLITS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    place = tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    split = tl.arange(0, NUM_SPLITS)
    size = tl.arange(0, BLOCK_SIZE)
    inner = size < HEAD_SIZE
    sum_ = tl.load(sums + place * NUM_SPLITS + split)
    weight = tl.exp2(sum_ - tl.max(sum_, axis=0))
    at = (place * NUM_SPLITS + split[:, None]) * HEAD_SIZE + size[None, :]
    # Of a part that the row does not have only the sum was written.
    part = tl.load(parts + at, mask=inner[None, :] & (sum_ > -float("inf"))[:, None], other=0.0)
    result = tl.sum(part * weight[:, None], axis=0) / tl.sum(weight, axis=0)
    tl.store(output + place * HEAD_SIZE + size, result.to(output.dtype.element_ty), mask=inner)


def paged_decode(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pages: Tensor,
    tables: Tensor,
    slots: Tensor,
    positions: Tensor,
    scaling: float,
    num_splits: int,
    scales: Tensor | None = None,
) -> Tensor:
    """Store the new tokens' keys and values and return the attended values, [rows, heads, head size].

    `query` is [rows, heads, head size], `key` and `value` [rows, kv heads, head size], dense in their last dimension;
    each of their heads is for a group of the queries'. `pages` is a layer's [2, pages, kv heads, page, head size], in
    the queries' dtype or, with `scales` [2, pages, kv heads, page], in 8 bits,
    `tables` the page numbers by slot, [slots, pages of a row]. `slots` and `positions` are [rows]; a row has
    `position` keys in its pages already, no more than `num_splits` times `SPLIT_KEYS`. No two
    rows may have the same slot, but for one whose results are not wanted.
    """
    num_rows, num_heads, head_size = query.shape
    num_kv_heads, page = pages.shape[2:4]
    block_size = triton.next_power_of_2(head_size)
    output = torch.empty((num_rows, num_heads, head_size), dtype=query.dtype, device=query.device)
    parts, sums = output, output
    if num_splits > 1:
        parts = output.new_empty((num_rows, num_heads, num_splits, head_size), dtype=torch.float32)
        sums = output.new_empty((num_rows, num_heads, num_splits), dtype=torch.float32)
    group = num_heads // num_kv_heads
    # Before 8.0 Triton has no products on tensor cores, nor of float32 anywhere that are exact.
    is_joint = group > 1 and query.dtype.itemsize == 2 and _has_products(query.device)
    kernel = _attend_group if is_joint else _attend
    kernel[(num_kv_heads if is_joint else num_heads, num_rows, num_splits)](
        query,
        key,
        value,
        pages[0],
        pages[1],
        pages if scales is None else scales[0],
        pages if scales is None else scales[1],
        tables,
        slots,
        positions,
        parts,
        sums,
        scaling,
        query.stride(0),
        query.stride(1),
        key.stride(0),
        key.stride(1),
        value.stride(0),
        value.stride(1),
        tables.stride(0),
        NUM_SPLITS=num_splits,
        KEYS=SPLIT_KEYS,
        PAGE=page,
        BLOCK_KEYS=GROUP_BLOCK_KEYS if is_joint else _BLOCK_KEYS,
        HEAD_SIZE=head_size,
        BLOCK_SIZE=block_size,
        GROUP=group,
        HAS_SCALES=scales is not None,
        IS_INT8=pages.dtype == torch.int8,
        num_warps=_NUM_WARPS,
        **(group_settings(group, scales is not None) if is_joint else {}),
    )
    if num_splits > 1:
        _join[(num_heads, num_rows)](
            parts, sums, output, NUM_SPLITS=num_splits, HEAD_SIZE=head_size, BLOCK_SIZE=block_size, num_warps=1
        )
    return output


@cache
def _has_products(device: torch.device) -> bool:
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0)
