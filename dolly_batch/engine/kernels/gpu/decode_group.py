"""Decode attention over pages for heads that share keys: one program for all of a group's heads reads each key once.

Cut into parts, joined and stored as in `decode`, whose kernel would read a key anew for each head. A group's heads are
the rows of two products on tensor cores, padded to sixteen; a program has one softmax for each.
"""

import triton
import triton.language as tl

from dolly_batch.engine.kernels.gpu.eight_bits import round_vector

GROUP_BLOCK_KEYS = 64  # a step of the loop waits for the whole program a dozen times
_LEAST_MEMBERS = 16  # rows that a product on tensor cores has


def group_settings(group: int, has_scales: bool) -> dict[str, int]:
    """What the kernel needs for groups of so many heads.

    The next keys are fetched ahead, but for those of 8 bits: they would be converted out of shared memory, which takes
    more instructions.
    """
    return {"MEMBERS": max(_LEAST_MEMBERS, triton.next_power_of_2(group)), "num_stages": 1 if has_scales else 2}


@triton.jit
def _attend_group(
    query,  # the arguments of `_attend`
    key,
    value,
    key_pages,
    value_pages,
    key_scales,
    value_scales,
    tables,
    slots,
    positions,
    output,
    sums,
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
    MEMBERS: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    IS_INT8: tl.constexpr,
):
    kv_head = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    split = tl.program_id(2)
    num_kv_heads = tl.num_programs(0)
    member = tl.arange(0, MEMBERS)
    is_head = member < GROUP
    output_place = row * num_kv_heads * GROUP + kv_head * GROUP + member
    position = tl.load(positions + row).to(tl.int32)
    if NUM_SPLITS > 1:
        output_place = output_place * NUM_SPLITS + split
        if (split > 0) & (split * KEYS >= position):  # a part that this row does not have
            tl.store(sums + output_place, tl.full((MEMBERS,), -float("inf"), tl.float32), mask=is_head)
            return
    table = tables + tl.load(slots + row).to(tl.int64) * table_row
    size = tl.arange(0, BLOCK_SIZE)
    inner = size < HEAD_SIZE
    query_at = row * query_row + (kv_head * GROUP + member)[:, None] * query_head + size[None, :]
    queries = tl.load(query + query_at, mask=is_head[:, None] & inner[None, :], other=0.0)
    to_base_2 = scale * 1.4426950408889634

    own_key = tl.load(key + row * key_row + kv_head * key_head + size, mask=inner, other=0.0).to(tl.float32)
    own_value = tl.load(value + row * value_row + kv_head * value_head + size, mask=inner, other=0.0).to(tl.float32)
    own_page = tl.load(table + position // PAGE).to(tl.int64)
    own_place = (own_page * num_kv_heads + kv_head) * PAGE + position % PAGE
    is_first = split == 0
    own_score_scale, own_value_scale = 1.0, 1.0
    if HAS_SCALES:
        own_key, own_score_scale = round_vector(own_key, IS_INT8)
        own_value, own_value_scale = round_vector(own_value, IS_INT8)
        tl.store(key_scales + own_place, own_score_scale, mask=is_first)
        tl.store(value_scales + own_place, own_value_scale, mask=is_first)
    own_numbers = own_place * HEAD_SIZE + size
    tl.store(key_pages + own_numbers, own_key.to(key_pages.dtype.element_ty), mask=inner & is_first)
    tl.store(value_pages + own_numbers, own_value.to(value_pages.dtype.element_ty), mask=inner & is_first)
    own_score = tl.sum(queries.to(tl.float32) * own_key[None, :], axis=1) * (to_base_2 * own_score_scale)

    lane = tl.arange(0, BLOCK_KEYS)
    best = tl.full((MEMBERS,), -1.0e30, tl.float32)
    total = tl.zeros((MEMBERS,), tl.float32)
    sum_values = tl.zeros((MEMBERS, BLOCK_SIZE), tl.float32)
    begin = split * KEYS
    end = tl.minimum(begin + KEYS, position)
    for start in range(begin, end, BLOCK_KEYS):
        at = start + lane
        there = at < end
        page = tl.load(table + at // PAGE, mask=there, other=0).to(tl.int64)
        token = (page * num_kv_heads + kv_head) * PAGE + at % PAGE
        place = token * HEAD_SIZE
        mask = there[:, None] & inner[None, :]
        keys = tl.load(key_pages + place[:, None] + size[None, :], mask=mask, other=0.0)
        scores = tl.dot(queries, tl.trans(keys.to(tl.float32).to(queries.dtype))) * to_base_2
        if HAS_SCALES:
            scores *= tl.load(key_scales + token, mask=there, other=0.0)[None, :]
        new_best = tl.maximum(best, tl.max(tl.where(there[None, :], scores, -1.0e30), axis=1))
        factor = tl.exp2(best - new_best)
        weights = tl.where(there[None, :], tl.exp2(scores - new_best[:, None]), 0.0)
        total = total * factor + tl.sum(weights, axis=1)
        values = tl.load(value_pages + place[:, None] + size[None, :], mask=mask, other=0.0)
        if HAS_SCALES:  # bfloat16 holds any number of 8 bits, and the smallest weights times their scale
            weights *= tl.load(value_scales + token, mask=there, other=0.0)[None, :]
            part = tl.dot(weights.to(tl.bfloat16), values.to(tl.float32).to(tl.bfloat16))
        else:
            part = tl.dot(weights.to(values.dtype), values)
        sum_values = sum_values * factor[:, None] + part
        best = new_best

    own_score = tl.where(is_first, own_score, -1.0e30)
    highest = tl.maximum(best, own_score)
    factor = tl.exp2(best - highest)
    own_weight = tl.where(is_first, tl.exp2(own_score - highest), 0.0)
    whole = total * factor + own_weight
    own_part = tl.where(is_first, (own_weight * own_value_scale)[:, None] * own_value[None, :], 0.0)
    result = sum_values * factor[:, None] + own_part
    output_at = output_place[:, None] * HEAD_SIZE + size[None, :]
    written = is_head[:, None] & inner[None, :]
    some = whole > 0
    if NUM_SPLITS == 1:
        tl.store(output + output_at, (result / whole[:, None]).to(output.dtype.element_ty), mask=written)
    else:
        tl.store(output + output_at, result / tl.where(some, whole, 1.0)[:, None], mask=written)
        sum_ = tl.where(some, highest + tl.log2(tl.where(some, whole, 1.0)), -float("inf"))
        tl.store(sums + output_place, sum_, mask=is_head)
