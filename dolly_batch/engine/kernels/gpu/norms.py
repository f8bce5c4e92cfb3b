"""What is between two products of a layer that follow a residual: the addition, and the next norms, in one pass.

A program takes one row, whose numbers it holds in float32: so they depend on no other row.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_NARROW = 2048  # numbers of a row that four warps hold


@dataclass(frozen=True, slots=True)
class Norm:
    """A norm's weight and bias, [features], and its epsilon. `centers`: a layer norm, else a root mean square norm."""

    weight: Tensor
    bias: Tensor | None
    epsilon: float
    centers: bool

    @classmethod
    def of(cls, module: Any) -> "Norm":
        """Of a module: torch's LayerNorm, or one of the root mean square norms of transformers."""
        if isinstance(module, torch.nn.LayerNorm):
            return cls(module.weight, module.bias, module.eps, centers=True)
        return cls(module.weight, None, module.variance_epsilon, centers=False)


@triton.jit
def _add_norms(
    stream,  # [rows, SIZE], as all others
    first_added,
    second_added,
    summed,
    first_weight,  # [SIZE], as the other weights and biases
    first_bias,
    first_output,
    second_weight,
    second_bias,
    second_output,
    epsilon,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    NUM_ADDED: tl.constexpr,
    NUM_NORMS: tl.constexpr,
    CENTERS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    start = tl.program_id(0).to(tl.int64) * SIZE
    size = tl.arange(0, BLOCK)
    inner = size < SIZE
    row = tl.load(stream + start + size, mask=inner, other=0.0).to(tl.float32)
    if NUM_ADDED > 0:
        row += tl.load(first_added + start + size, mask=inner, other=0.0).to(tl.float32)
        if NUM_ADDED > 1:
            row += tl.load(second_added + start + size, mask=inner, other=0.0).to(tl.float32)
        rounded = row.to(summed.dtype.element_ty)
        tl.store(summed + start + size, rounded, mask=inner)
        row = rounded.to(tl.float32)  # as the next layer reads it
    if CENTERS:
        row = tl.where(inner, row - tl.sum(row, axis=0) / SIZE, 0.0)
    row = row * tl.rsqrt(tl.sum(row * row, axis=0) / SIZE + epsilon)
    result = row * tl.load(first_weight + size, mask=inner, other=0.0).to(tl.float32)
    if HAS_BIAS:
        result += tl.load(first_bias + size, mask=inner, other=0.0).to(tl.float32)
    tl.store(first_output + start + size, result.to(first_output.dtype.element_ty), mask=inner)
    if NUM_NORMS > 1:
        result = row * tl.load(second_weight + size, mask=inner, other=0.0).to(tl.float32)
        if HAS_BIAS:
            result += tl.load(second_bias + size, mask=inner, other=0.0).to(tl.float32)
        tl.store(second_output + start + size, result.to(second_output.dtype.element_ty), mask=inner)


def num_warps(block: int) -> int:
    """For rows of so many numbers, rounded up to a power of two."""
    return 4 if block <= _NARROW else 8


def add_norms(stream: Tensor, added: tuple[Tensor, ...], norms: tuple[Norm, ...]) -> tuple[Tensor, list[Tensor]]:
    """Return the stream with up to two tensors added, and one or two norms of it; all [rows, features].

    Sums are in float32, rounded to the stream's dtype before they are normalized. Two norms are of one kind.
    """
    num_rows, size = stream.shape
    first, last = norms[0], norms[-1]
    added = tuple(each.contiguous() for each in added)  # of layers in 8 bits they may be parts of padded rows
    block = triton.next_power_of_2(size)
    summed = stream.new_empty(stream.shape) if added else stream
    outputs = [stream.new_empty(stream.shape) for _ in norms]
    _add_norms[(num_rows,)](
        stream,
        added[0] if added else stream,
        added[-1] if added else stream,
        summed,
        first.weight,
        first.weight if first.bias is None else first.bias,
        outputs[0],
        last.weight,
        last.weight if last.bias is None else last.bias,
        outputs[-1],
        first.epsilon,
        SIZE=size,
        BLOCK=block,
        NUM_ADDED=len(added),
        NUM_NORMS=len(norms),
        CENTERS=first.centers,
        HAS_BIAS=first.bias is not None,
        num_warps=num_warps(block),
    )
    return summed, outputs
