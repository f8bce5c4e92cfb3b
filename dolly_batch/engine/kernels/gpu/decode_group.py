"""Decode attention over pages for heads that share keys: one program for all of a group's heads reads each key once.

Cut into parts, joined and stored as in `decode`, whose kernel would read a key anew for each head. A group's heads are
the rows of two products on tensor cores, padded to sixteen; a program has one softmax for each.
"""

import triton
import triton.language as tl

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
):
    kv_head = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    split = tl.program_id(2)
    num_kv_heads = tl.num_programs(0)
    member = tl.arange(0, MEMBERS)
    is_head = member < GROUP
    output_place = row * num_kv_heads * GROUP + kv_head * GROUP + member
    num_keys = tl.load(positions + row).to(tl.int32) + 1
    if NUM_SPLITS > 1:
        output_place = output_place * NUM_SPLITS + split
        if split * KEYS >= num_keys:  # a part that this row does not have
            return
    table = tables + tl.load(slots + row).to(tl.int64) * table_row
    size = tl.arange(0, BLOCK_SIZE)
    inner = size < HEAD_SIZE
    query_at = row * query_row + (kv_head * GROUP + member)[:, None] * query_head + size[None, :]
    queries = tl.load(query + query_at, mask=is_head[:, None] & inner[None, :], other=0.0)
    to_base_2 = scale * 1.4426950408889634

    lane = tl.arange(0, BLOCK_KEYS)
    best = tl.full((MEMBERS,), -1.0e30, tl.float32)
    total = tl.zeros((MEMBERS,), tl.float32)
    sum_values = tl.zeros((MEMBERS, BLOCK_SIZE), tl.float32)
    begin = split * KEYS
    end = tl.minimum(begin + KEYS, num_keys)
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

    result = sum_values / total[:, None]
    output_at = output_place[:, None] * HEAD_SIZE + size[None, :]
    if NUM_SPLITS > 1:
        tl.store(sums + output_place, best + tl.log2(total), mask=is_head)
    tl.store(output + output_at, result.to(output.dtype.element_ty), mask=is_head[:, None] & inner[None, :])
