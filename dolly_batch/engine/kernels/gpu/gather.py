"""Keys and values of cached tokens out of their pages, one behind the other, for prompts that continue them."""

import triton
import triton.language as tl
from torch import Tensor

from dolly_batch.engine.kernels.gpu.heads import NUM_WARPS, block_sizes, load_heads, save_heads


@triton.jit
def _gather_heads(
    pages,
    scales,
    vectors,
    head,
    place,
    packed_at,
    KV_HEADS: tl.constexpr,
    PAGE: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HAS_SCALES: tl.constexpr,
):
    is_head = head < KV_HEADS
    stored = (place // PAGE * KV_HEADS + head) * PAGE + place % PAGE
    numbers = load_heads(pages + stored * HEAD_SIZE, is_head, 0, HEAD_SIZE, BLOCK_SIZE)
    if HAS_SCALES:
        numbers *= tl.load(scales + stored, mask=is_head, other=0.0)[:, None]
    save_heads(vectors + (packed_at * KV_HEADS + head) * HEAD_SIZE, numbers, is_head, 0, HEAD_SIZE, BLOCK_SIZE)


@triton.jit
def _gather(
    key_pages,  # [pages, KV_HEADS, PAGE, HEAD_SIZE], as value_pages
    value_pages,
    key_scales,  # [pages, KV_HEADS, PAGE], as value_scales; unused where pages are no 8 bits
    value_scales,
    places,  # [tokens]: page times PAGE, and the token's place in it
    packed_at,  # [tokens]
    keys,  # [packed tokens, KV_HEADS, HEAD_SIZE], dense, as values
    values,
    KV_HEADS: tl.constexpr,
    PAGE: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    HAS_SCALES: tl.constexpr,
):
    token = tl.program_id(0)
    block = tl.program_id(1)
    num_blocks = tl.cdiv(KV_HEADS, BLOCK_HEADS)
    place, at = tl.load(places + token), tl.load(packed_at + token)
    head = block % num_blocks * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    if block < num_blocks:
        _gather_heads(key_pages, key_scales, keys, head, place, at, KV_HEADS, PAGE, HEAD_SIZE, BLOCK_SIZE, HAS_SCALES)
    else:
        _gather_heads(
            value_pages, value_scales, values, head, place, at, KV_HEADS, PAGE, HEAD_SIZE, BLOCK_SIZE, HAS_SCALES
        )


def gather(pages: Tensor, scales: Tensor | None, places: Tensor, packed: Tensor, packed_at: Tensor) -> None:
    """Copy the keys and values at these places into `packed`; all as in `keys_values.store`."""
    num_kv_heads, page, head_size = pages.shape[2:]
    sizes = block_sizes(num_kv_heads, head_size, 0)
    block_heads = sizes["BLOCK_HEADS"]
    _gather[(len(places), 2 * triton.cdiv(num_kv_heads, block_heads))](
        pages[0],
        pages[1],
        pages if scales is None else scales[0],
        pages if scales is None else scales[1],
        places,
        packed_at,
        packed[0],
        packed[1],
        KV_HEADS=num_kv_heads,
        PAGE=page,
        HEAD_SIZE=head_size,
        BLOCK_SIZE=sizes["BLOCK_SIZE"],
        BLOCK_HEADS=block_heads,
        HAS_SCALES=scales is not None,
        num_warps=NUM_WARPS,
    )
