"""Decode attention over pages: one query of each row against all of the row's keys, read once.

A program takes one head of one row (in `decode_group`: the heads that share keys), and of that row a part of
`SPLIT_KEYS` keys, or some parts one after the other; a second kernel joins them. Where a row is cut depends on its own
length alone, and a row that is not cut gets the same bits with and without the second kernel; so its result depends on
no neighbour. Programs of parts that a short row does not have end at once. The new token's key and value are in their
page already (`keys_values`).

Where pages hold numbers of 8 bits, these are multiplied as they are, and each sum by its token's scale.

Each of `BLOCK_KEYS` lanes keeps a softmax of its own over every `BLOCK_KEYS`-th key (the running maximum of Milakov and
Gimelshein 2018); the lanes are joined once, at the end, so that no step of the loop waits for the whole program. The
parts of a long row are joined as in Flash-Decoding (Dao et al. 2023). All sums are in float32.

A key is read in pieces of a power of two, so that a head of 80 has no idle lanes, and its products are added up piece
by piece before lanes exchange anything: a piece of fewer numbers takes fewer exchanges, and more registers.
"""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from dolly_batch.engine.kernels.gpu import SPLIT_KEYS
from dolly_batch.engine.kernels.gpu.decode_group import GROUP_BLOCK_KEYS, _attend_group, group_settings

_BLOCK_KEYS = 32
_NUM_WARPS = 4
_SMALLEST_PIECE, _LARGEST_PIECE = 16, 64
_PARTS = 3  # behind a row's first that one program takes, where there are so many rows and heads that all are busy
_MANY = 4096


@triton.jit
def _append(items, item):
    return items + (item,)  # noqa: RUF005 - all that Triton knows


@triton.jit
def _parts_of(program, num_programs, num_parts, PARTS: tl.constexpr):
    """The first of a program's parts, and the end of them: the last program has the first part.

    The others have `PARTS` of what follows. They begin earlier, and so will not be what is waited for.
    """
    has_first = program == num_programs - 1
    first = tl.where(has_first, 0, 1 + program * PARTS)
    return first, tl.minimum(tl.where(has_first, 1, first + PARTS), num_parts)


@triton.jit
def _attend(
    query,  # [rows, heads, head size], of the new tokens
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
    table_row,
    NUM_SPLITS: tl.constexpr,
    PARTS: tl.constexpr,
    KEYS: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    PIECE: tl.constexpr,
    GROUP: tl.constexpr,
    HAS_SCALES: tl.constexpr,
):
    head = tl.program_id(0)
    kv_head = head // GROUP
    row = tl.program_id(1).to(tl.int64)
    num_heads = tl.num_programs(0)
    num_kv_heads = num_heads // GROUP
    num_keys = tl.load(positions + row).to(tl.int32) + 1
    first_part, end_part = _parts_of(tl.program_id(2), tl.num_programs(2), tl.cdiv(num_keys, KEYS), PARTS)
    if NUM_SPLITS > 1:  # noqa: SIM102 - known when the kernel is compiled, what follows is not
        if first_part >= end_part:
            return
    table = tables + tl.load(slots + row).to(tl.int64) * table_row
    size = tl.arange(0, PIECE)
    inner = size < HEAD_SIZE  # all, but where the head is one piece with padding
    own_query = query + row * query_row + head * query_head + size
    queries = ()
    for start in tl.static_range(0, HEAD_SIZE, PIECE):
        piece = tl.load(own_query + start, mask=inner, other=0.0).to(tl.float32)
        queries = _append(queries, piece * (scale * 1.4426950408889634))  # of 2 instead of e

    lane = tl.arange(0, BLOCK_KEYS)
    for split in range(first_part, end_part):
        best = tl.full((BLOCK_KEYS,), -1.0e30, tl.float32)
        total = tl.zeros((BLOCK_KEYS,), tl.float32)
        sum_values = ()
        for _ in tl.static_range(0, HEAD_SIZE, PIECE):
            sum_values = _append(sum_values, tl.zeros((BLOCK_KEYS, PIECE), tl.float32))
        end = tl.minimum((split + 1) * KEYS, num_keys)
        for first in range(split * KEYS, end, BLOCK_KEYS):
            at = first + lane
            there = at < end
            page = tl.load(table + at // PAGE, mask=there, other=0).to(tl.int64)
            token = (page * num_kv_heads + kv_head) * PAGE + at % PAGE
            place = (token * HEAD_SIZE)[:, None] + size[None, :]
            # Nothing beyond the row's end is read: what lies there may be another row's, even a NaN.
            mask = there[:, None]
            if HEAD_SIZE < PIECE:
                mask = mask & inner[None, :]
            products = tl.zeros((BLOCK_KEYS, PIECE), tl.float32)
            for start in tl.static_range(0, HEAD_SIZE, PIECE):
                keys = tl.load(key_pages + place + start, mask=mask, other=0.0).to(tl.float32)
                products += keys * queries[start // PIECE][None, :]
            score = tl.sum(products, axis=1)
            if HAS_SCALES:  # numbers are multiplied as they are
                score *= tl.load(key_scales + token, mask=there, other=0.0)
            new_best = tl.where(there, tl.maximum(best, score), best)
            factor = tl.exp2(best - new_best)
            weight = tl.where(there, tl.exp2(score - new_best), 0.0)
            total = total * factor + weight
            if HAS_SCALES:
                weight *= tl.load(value_scales + token, mask=there, other=0.0)
            new_sums = ()
            for start in tl.static_range(0, HEAD_SIZE, PIECE):
                values = tl.load(value_pages + place + start, mask=mask, other=0.0).to(tl.float32)
                new_sum = sum_values[start // PIECE] * factor[:, None] + weight[:, None] * values
                new_sums = _append(new_sums, new_sum)
            sum_values = new_sums
            best = new_best

        highest = tl.max(best, axis=0)
        factor = tl.exp2(best - highest)
        whole = tl.sum(total * factor, axis=0)  # of at least one key
        place = row * num_heads + head
        if NUM_SPLITS > 1:
            place = place * NUM_SPLITS + split
            tl.store(sums + place, highest + tl.log2(whole))
        for start in tl.static_range(0, HEAD_SIZE, PIECE):
            result = tl.sum(sum_values[start // PIECE] * factor[:, None], axis=0) / whole
            tl.store(output + place * HEAD_SIZE + start + size, result.to(output.dtype.element_ty), mask=inner)


@triton.jit
def _join(
    parts,  # [rows, heads, NUM_SPLITS, HEAD_SIZE]
    sums,  # [rows, heads, NUM_SPLITS]
    output,  # [rows, heads, HEAD_SIZE]
    positions,  # [rows]
    NUM_SPLITS: tl.constexpr,
    KEYS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)
    place = row * tl.num_programs(0) + tl.program_id(0)
    split = tl.arange(0, NUM_SPLITS)
    size = tl.arange(0, BLOCK_SIZE)
    inner = size < HEAD_SIZE
    # Nothing was written of parts that the row does not have.
    there = split * KEYS <= tl.load(positions + row).to(tl.int32)
    sum_ = tl.load(sums + place * NUM_SPLITS + split, mask=there, other=-float("inf"))
    weight = tl.exp2(sum_ - tl.max(sum_, axis=0))
    at = (place * NUM_SPLITS + split[:, None]) * HEAD_SIZE + size[None, :]
    part = tl.load(parts + at, mask=inner[None, :] & there[:, None], other=0.0)
    result = tl.sum(part * weight[:, None], axis=0) / tl.sum(weight, axis=0)
    tl.store(output + place * HEAD_SIZE + size, result.to(output.dtype.element_ty), mask=inner)


def piece_size(head_size: int) -> int:
    """How many numbers of a head are read at once: a divisor of its size, or all of them and padding."""
    divisor, whole = head_size & -head_size, int(triton.next_power_of_2(head_size))
    if divisor < _SMALLEST_PIECE:
        return whole
    return min(_LARGEST_PIECE, divisor, max(_SMALLEST_PIECE, whole // 2))


def paged_decode(
    query: Tensor,
    pages: Tensor,
    tables: Tensor,
    slots: Tensor,
    positions: Tensor,
    scaling: float,
    num_splits: int,
    scales: Tensor | None = None,
    parts_a_program: int | None = None,
) -> Tensor:
    """The attended values of one new token of each row, [rows, heads, head size].

    `query` is [rows, heads, head size], dense in its last dimension. `pages` is a layer's [2, pages, kv heads, page,
    head size], in the queries' dtype or, with `scales` [2, pages, kv heads, page], in 8 bits; each of their heads is
    for a group of the queries'. `tables` are the page numbers by slot, [slots, pages of a row]. `slots` and `positions`
    are [rows]; a row's pages hold its keys and values up to its position, no more than `num_splits` x `SPLIT_KEYS`.
    Parts behind the first are taken so many by a program, where heads are not in groups; results do not depend on it.
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
    if is_joint:
        settings = {
            "BLOCK_KEYS": GROUP_BLOCK_KEYS,
            "BLOCK_SIZE": block_size,
            **group_settings(group, scales is not None),
        }
        kernel, grid = _attend_group, (num_kv_heads, num_rows, num_splits)
    else:
        parts_a_program = parts_a_program or (_PARTS if num_rows * num_heads >= _MANY else 1)
        settings = {"BLOCK_KEYS": _BLOCK_KEYS, "PIECE": piece_size(head_size), "PARTS": parts_a_program}
        kernel, grid = _attend, (num_heads, num_rows, 1 + triton.cdiv(num_splits - 1, parts_a_program))
    kernel[grid](
        query,
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
        tables.stride(0),
        NUM_SPLITS=num_splits,
        KEYS=SPLIT_KEYS,
        PAGE=page,
        HEAD_SIZE=head_size,
        GROUP=group,
        HAS_SCALES=scales is not None,
        num_warps=_NUM_WARPS,
        **settings,
    )
    if num_splits > 1:
        _join[(num_heads, num_rows)](
            parts,
            sums,
            output,
            positions,
            NUM_SPLITS=num_splits,
            KEYS=SPLIT_KEYS,
            HEAD_SIZE=head_size,
            BLOCK_SIZE=block_size,
            num_warps=1,
        )
    return output


@cache
def _has_products(device: torch.device) -> bool:
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0)
