"""Vectors of some heads of one token, as kernels read, rotate and write them: in three parts, two that are rotated and
the rest, each a tile of a power of two numbers a head.
"""

import triton
import triton.language as tl

NUM_WARPS = 4
_BLOCK_HEADS = 16


@triton.jit
def load_heads(vectors, is_head, START: tl.constexpr, STOP: tl.constexpr, BLOCK: tl.constexpr):
    """Numbers START to STOP of each head's vector, in float32."""
    at = START + tl.arange(0, BLOCK)
    mask = is_head[:, None] & (at < STOP)[None, :]
    return tl.load(vectors[:, None] + at[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def save_heads(vectors, numbers, is_head, START: tl.constexpr, STOP: tl.constexpr, BLOCK: tl.constexpr):
    """Write them there, in the dtype that is there."""
    at = START + tl.arange(0, BLOCK)
    mask = is_head[:, None] & (at < STOP)[None, :]
    tl.store(vectors[:, None] + at[None, :], numbers.to(vectors.dtype.element_ty), mask=mask)


@triton.jit
def save_parts(
    vectors,
    first,
    second,
    rest,
    is_head,
    HALF: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    REST_BLOCK: tl.constexpr,
):
    """Write the three parts."""
    if HALF > 0:
        save_heads(vectors, first, is_head, 0, HALF, HALF_BLOCK)
        save_heads(vectors, second, is_head, HALF, 2 * HALF, HALF_BLOCK)
    if HEAD_SIZE > 2 * HALF:
        save_heads(vectors, rest, is_head, 2 * HALF, HEAD_SIZE, REST_BLOCK)


@triton.jit
def load_factors(weight, START: tl.constexpr, STOP: tl.constexpr, BLOCK: tl.constexpr):
    """Numbers START to STOP of a vector that all heads have, [1, BLOCK] in float32."""
    at = START + tl.arange(0, BLOCK)
    return tl.load(weight + at, mask=at < STOP, other=0.0).to(tl.float32)[None, :]


@triton.jit
def rotated_parts(
    vectors,  # [BLOCK_HEADS], where each begins
    is_head,
    weight,  # [HEAD_SIZE], of the heads' norm
    epsilon,
    cosines,  # [HALF]
    sines,
    HALF: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    REST_BLOCK: tl.constexpr,
    HAS_NORMS: tl.constexpr,
):
    """The two halves that are rotated, and the rest, each [BLOCK_HEADS, HALF_BLOCK or REST_BLOCK] in float32."""
    first = load_heads(vectors, is_head, 0, HALF, HALF_BLOCK)
    second = load_heads(vectors, is_head, HALF, 2 * HALF, HALF_BLOCK)
    rest = load_heads(vectors, is_head, 2 * HALF, HEAD_SIZE, REST_BLOCK)
    if HAS_NORMS:
        squares = tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1) + tl.sum(rest * rest, axis=1)
        factor = tl.rsqrt(squares / HEAD_SIZE + epsilon)[:, None]
        first = first * factor * load_factors(weight, 0, HALF, HALF_BLOCK)
        second = second * factor * load_factors(weight, HALF, 2 * HALF, HALF_BLOCK)
        rest = rest * factor * load_factors(weight, 2 * HALF, HEAD_SIZE, REST_BLOCK)
    if HALF > 0:
        cosine, sine = load_factors(cosines, 0, HALF, HALF_BLOCK), load_factors(sines, 0, HALF, HALF_BLOCK)
        turned = first * cosine - second * sine
        second = second * cosine + first * sine
        first = turned
    return first, second, rest


def block_sizes(num_kv_heads: int, head_size: int, half: int) -> dict[str, int]:
    """The kernels' blocks, all powers of two."""
    return {
        "HALF_BLOCK": triton.next_power_of_2(max(1, half)),
        "REST_BLOCK": triton.next_power_of_2(max(1, head_size - 2 * half)),
        "BLOCK_SIZE": triton.next_power_of_2(head_size),
        "BLOCK_HEADS": min(_BLOCK_HEADS, triton.next_power_of_2(num_kv_heads)),
    }
