"""Keys and values in 8 bits (`engine/eight_bits.py`): rounded as they are stored in pages, and put back from there.

Numbers are rounded by arithmetic in float32, so that the conversion that follows is exact, and the bits are torch's on
any GPU and in Triton's interpreter.
"""

import triton
import triton.language as tl
from torch import Tensor

from dolly_batch.engine.eight_bits import LARGEST

# Adding and taking it away again rounds to the nearest integer, halves to even, as torch's `round` does.
ROUNDER = tl.constexpr(1.5 * 2**23)
SMALLEST = tl.constexpr(1e-30)


@triton.jit
def round_shares(shares, IS_INT8: tl.constexpr):
    """Round float32 numbers to those that int8 or e4m3 has, halves to even."""
    if IS_INT8:
        return (shares + ROUNDER) - ROUNDER
    # As above, for the last of three bits of mantissa: of 2^-6, the smallest with all of them, and of more.
    exponent = tl.maximum((shares.to(tl.int32, bitcast=True) >> 23) & 255, 121)
    rounder = (((exponent + 20) << 23) | 0x400000).to(tl.float32, bitcast=True)
    return (shares + rounder) - rounder


@triton.jit
def round_vector(vector, IS_INT8: tl.constexpr):
    """A vector's numbers in shares of its scale, rounded, and the scale; both float32. NaN and infinity make it NaN."""
    largest = tl.maximum(tl.max(tl.abs(vector), axis=0), SMALLEST)
    scale = tl.div_rn(largest, 127.0 if IS_INT8 else 448.0) + tl.sum(vector * 0.0, axis=0)  # a maximum passes over NaN
    shares = tl.div_rn(vector, tl.zeros_like(vector) + scale)
    return round_shares(shares, IS_INT8), scale


@triton.jit
def _store(
    vectors,  # [tokens, kv heads, head size]
    pages,  # [pages, kv heads, PAGE, HEAD_SIZE]
    scales,  # [pages, kv heads, PAGE]
    places,  # [tokens]: page times PAGE, and the token's place in it
    rounded,  # [tokens, kv heads, HEAD_SIZE], dense
    token_row,
    head_row,
    PAGE: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    IS_INT8: tl.constexpr,
):
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    num_heads = tl.num_programs(1)
    size = tl.arange(0, BLOCK_SIZE)
    inner = size < HEAD_SIZE
    vector = tl.load(vectors + token * token_row + head * head_row + size, mask=inner, other=0.0).to(tl.float32)
    shares, scale = round_vector(vector, IS_INT8)
    at = tl.load(places + token)
    place = (at // PAGE * num_heads + head) * PAGE + at % PAGE
    tl.store(pages + place * HEAD_SIZE + size, shares.to(pages.dtype.element_ty), mask=inner)
    tl.store(scales + place, scale)
    restored = (shares * scale).to(rounded.dtype.element_ty)
    tl.store(rounded + (token * num_heads + head) * HEAD_SIZE + size, restored, mask=inner)


@triton.jit
def _gather(
    pages,  # [pages, kv heads, PAGE, HEAD_SIZE]
    scales,  # [pages, kv heads, PAGE]
    places,  # [tokens]
    vectors,  # [tokens, kv heads, HEAD_SIZE], dense
    PAGE: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    num_heads = tl.num_programs(1)
    size = tl.arange(0, BLOCK_SIZE)
    inner = size < HEAD_SIZE
    at = tl.load(places + token)
    place = (at // PAGE * num_heads + head) * PAGE + at % PAGE
    shares = tl.load(pages + place * HEAD_SIZE + size, mask=inner, other=0.0).to(tl.float32)
    restored = (shares * tl.load(scales + place)).to(vectors.dtype.element_ty)
    tl.store(vectors + (token * num_heads + head) * HEAD_SIZE + size, restored, mask=inner)


def store(vectors: Tensor, pages: Tensor, scales: Tensor, places: Tensor) -> Tensor:
    """Store keys, or values, [tokens, kv heads, head size], and return them as they are there, dense in their dtype.

    `pages` are [pages, kv heads, page, head size] in int8 or fp8, `scales` float32 [pages, kv heads, page], both dense;
    `places` are int64 [tokens]: a page's number times its tokens, and the place in it, no two of them the same.
    """
    num_tokens, num_heads, head_size = vectors.shape
    rounded = vectors.new_empty(vectors.shape)
    _store[(num_tokens, num_heads)](
        vectors,
        pages,
        scales,
        places,
        rounded,
        vectors.stride(0),
        vectors.stride(1),
        PAGE=pages.shape[2],
        HEAD_SIZE=head_size,
        BLOCK_SIZE=triton.next_power_of_2(head_size),
        IS_INT8=LARGEST[pages.dtype] == 127,
        num_warps=1,
    )
    return rounded


def gather(pages: Tensor, scales: Tensor, places: Tensor, like: Tensor) -> Tensor:
    """The keys, or values, at these places, in the dtype and on the device of `like`: [tokens, kv heads, head size]."""
    _, num_heads, page, head_size = pages.shape
    vectors = like.new_empty((len(places), num_heads, head_size))
    _gather[(len(places), num_heads)](
        pages,
        scales,
        places,
        vectors,
        PAGE=page,
        HEAD_SIZE=head_size,
        BLOCK_SIZE=triton.next_power_of_2(head_size),
        num_warps=1,
    )
    return vectors
