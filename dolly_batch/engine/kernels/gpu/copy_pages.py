"""Copies of whole pages, all of a step's in one launch: a tensor of pages spans more bytes than one of torch's may."""

import math

import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 4096
_NUM_WARPS = 4


@triton.jit
def _copy_pages(
    pages,  # [layers x 2, pages, PAGE_ITEMS]
    sources,  # [copies]
    targets,  # [copies]
    num_pages,
    PAGE_ITEMS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    copy = tl.program_id(0)
    first = tl.program_id(1).to(tl.int64) * num_pages
    source = (first + tl.load(sources + copy)) * PAGE_ITEMS
    target = (first + tl.load(targets + copy)) * PAGE_ITEMS
    for start in range(0, PAGE_ITEMS, BLOCK):
        at = start + tl.arange(0, BLOCK)
        items = tl.load(pages + source + at, mask=at < PAGE_ITEMS)
        tl.store(pages + target + at, items, mask=at < PAGE_ITEMS)


def copy_pages(pages: Tensor, sources: Tensor, targets: Tensor) -> None:
    """Copy pages of all layers. `pages` are [layers, 2, pages, ...], dense; the others int64 [copies]. No page may be
    both a source and a target, nor a target twice.
    """
    num_layers, two, num_pages = pages.shape[:3]
    _copy_pages[(len(sources), num_layers * two)](
        pages,
        sources,
        targets,
        num_pages,
        PAGE_ITEMS=math.prod(pages.shape[3:]),
        BLOCK=_BLOCK,
        num_warps=_NUM_WARPS,
    )
