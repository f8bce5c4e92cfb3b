"""Triton kernels for int8 linear layers on a GPU, and rows in fp8. Imported where such a layer is made: needs triton.

The arithmetic is that of `int8_cpu.Int8Linear` to the last bit: division and sums round as IEEE says, the integer sums
are exact, and scaling is not fused with adding the bias. No kernel's choice of tile depends on anything but shapes, and
nothing is read back, so that all of them can be recorded in CUDA graphs.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dolly_batch.engine.kernels.gpu.eight_bits import SMALLEST, round_shares

_GROUP = tl.constexpr(8)  # tiles of rows that share a tile of weights while it is in the cache
_MAX_BLOCK = 4096


@dataclass(frozen=True, slots=True)
class Tile:
    """What one program multiplies: `num_rows` x `num_outputs`, `num_inputs` at a time."""

    num_rows: int
    num_outputs: int
    num_inputs: int = 128
    num_warps: int = 4
    num_stages: int = 3


def choose_tile(num_rows: int, num_outputs: int, num_processors: int) -> Tile:
    """The widest tile that still gives every multiprocessor one."""
    height = next((height for height in (16, 32, 64) if num_rows <= height), 128)
    tall = -(-num_rows // height)
    width = next((width for width in (128, 64) if tall * -(-num_outputs // width) >= num_processors), 32)
    return Tile(height, width, num_warps=8 if height * width >= 128 * 128 else 4)


def quantize_rows(rows: Tensor, width: int, stored: torch.dtype = torch.int8) -> tuple[Tensor, Tensor]:
    """Put [rows, features] into int8 or fp8 [rows, width], zeros behind the features, and float32 scales [rows].

    A row that holds a NaN or an infinity gets the scale NaN.
    """
    rows = rows.contiguous()
    num_rows, num_features = rows.shape
    quantized = torch.empty(num_rows, width, dtype=stored, device=rows.device)
    scales = torch.empty(num_rows, dtype=torch.float32, device=rows.device)
    block = min(_MAX_BLOCK, triton.next_power_of_2(width))
    _quantize_rows[(num_rows,)](
        rows,
        quantized,
        scales,
        num_features,
        width,
        BLOCK=block,
        IS_INT8=stored == torch.int8,
        num_warps=8 if block > 1024 else 4,
    )
    return quantized, scales


def multiply(
    rows: Tensor,
    row_scales: Tensor,
    weight: Tensor,
    weight_scales: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    tile: Tile | None = None,
) -> Tensor:
    """Multiply int8 [rows, in] by int8 [out, in] into `dtype` [rows, out], scaled and with the bias (float32) added."""
    num_rows, num_inputs = rows.shape
    num_outputs = weight.shape[0]
    tile = tile or choose_tile(num_rows, num_outputs, _num_processors(rows.device))
    outputs = torch.empty(num_rows, num_outputs, dtype=dtype, device=rows.device)
    num_tiles = triton.cdiv(num_rows, tile.num_rows) * triton.cdiv(num_outputs, tile.num_outputs)
    _multiply[(num_tiles,)](
        rows,
        row_scales,
        weight,
        weight_scales,
        weight_scales if bias is None else bias,
        outputs,
        num_rows,
        num_outputs,
        num_inputs,
        HAS_BIAS=bias is not None,
        EVEN=num_inputs % tile.num_inputs == 0,
        BLOCK_ROWS=tile.num_rows,
        BLOCK_OUTPUTS=tile.num_outputs,
        BLOCK_INPUTS=tile.num_inputs,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        enable_fp_fusion=False,
    )
    return outputs


def scale_sums(
    sums: Tensor, row_scales: Tensor, weight_scales: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Turn int32 sums [rows, out] into `dtype` [rows, out], scaled and with the bias (float32) added."""
    num_rows, num_outputs = sums.shape
    outputs = torch.empty(num_rows, num_outputs, dtype=dtype, device=sums.device)
    block = min(_MAX_BLOCK, triton.next_power_of_2(num_outputs))
    _scale_sums[(num_rows, triton.cdiv(num_outputs, block))](
        sums,
        row_scales,
        weight_scales,
        weight_scales if bias is None else bias,
        outputs,
        num_outputs,
        HAS_BIAS=bias is not None,
        BLOCK=block,
        num_warps=8 if block > 1024 else 4,
        enable_fp_fusion=False,
    )
    return outputs


@cache
def _num_processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1  # Triton's interpreter
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@triton.jit
def _quantize_rows(
    rows,
    quantized,
    scales,
    num_features,
    width,
    BLOCK: tl.constexpr,
    IS_INT8: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    largest = tl.zeros((BLOCK,), tl.float32)
    spoilt = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, num_features, BLOCK):
        inside = start + columns < num_features
        values = tl.load(rows + row * num_features + start + columns, mask=inside, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, tl.abs(values))
        spoilt += values * 0.0  # a maximum passes over NaN
    scale = tl.div_rn(tl.maximum(tl.max(largest, axis=0), SMALLEST), 127.0 if IS_INT8 else 448.0) + tl.sum(
        spoilt, axis=0
    )
    tl.store(scales + row, scale)
    for start in range(0, width, BLOCK):
        inside = start + columns < num_features
        values = tl.load(rows + row * num_features + start + columns, mask=inside, other=0.0).to(tl.float32)
        shares = tl.div_rn(values, tl.zeros((BLOCK,), tl.float32) + scale)
        rounded = round_shares(shares, IS_INT8).to(quantized.dtype.element_ty)
        tl.store(quantized + row * width + start + columns, rounded, mask=start + columns < width)


@triton.jit(do_not_specialize=["num_rows"])
def _multiply(
    rows,
    row_scales,
    weight,
    weight_scales,
    bias,
    outputs,
    num_rows,
    num_outputs,
    num_inputs,
    HAS_BIAS: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_OUTPUTS: tl.constexpr,
    BLOCK_INPUTS: tl.constexpr,
):
    program = tl.program_id(0)
    num_tall, num_wide = tl.cdiv(num_rows, BLOCK_ROWS), tl.cdiv(num_outputs, BLOCK_OUTPUTS)
    first = program // (_GROUP * num_wide) * _GROUP
    num_in_group = tl.minimum(num_tall - first, _GROUP)
    within = program % (_GROUP * num_wide)
    row = (first + within % num_in_group) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    output = within // num_in_group * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
    inputs = tl.arange(0, BLOCK_INPUTS)
    # Beyond the last row and output the first ones are read again: cheaper than a mask, and never stored.
    row_at = rows + (row % num_rows).to(tl.int64)[:, None] * num_inputs + inputs[None, :]
    weight_at = weight + (output % num_outputs).to(tl.int64)[None, :] * num_inputs + inputs[:, None]
    sums = tl.zeros((BLOCK_ROWS, BLOCK_OUTPUTS), tl.int32)
    for start in range(0, num_inputs, BLOCK_INPUTS):
        if EVEN:
            row_tile, weight_tile = tl.load(row_at), tl.load(weight_at)
        else:
            inside = inputs < num_inputs - start
            row_tile = tl.load(row_at, mask=inside[None, :], other=0)
            weight_tile = tl.load(weight_at, mask=inside[:, None], other=0)
        sums = tl.dot(row_tile, weight_tile, sums, out_dtype=tl.int32)
        row_at += BLOCK_INPUTS
        weight_at += BLOCK_INPUTS
    stored = (row < num_rows)[:, None] & (output < num_outputs)[None, :]
    result = sums.to(tl.float32) * tl.load(weight_scales + output % num_outputs)[None, :]
    result = result * tl.load(row_scales + row % num_rows)[:, None]
    if HAS_BIAS:
        result += tl.load(bias + output % num_outputs)[None, :]
    at = outputs + row.to(tl.int64)[:, None] * num_outputs + output[None, :]
    tl.store(at, result.to(outputs.dtype.element_ty), mask=stored)


@triton.jit
def _scale_sums(
    sums,
    row_scales,
    weight_scales,
    bias,
    outputs,
    num_outputs,
    HAS_BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    output = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = output < num_outputs
    at = row * num_outputs + output
    result = tl.load(sums + at, mask=inside, other=0).to(tl.float32)
    result = result * tl.load(weight_scales + output, mask=inside, other=0.0) * tl.load(row_scales + row)
    if HAS_BIAS:
        result += tl.load(bias + output, mask=inside, other=0.0)
    tl.store(outputs + at, result.to(outputs.dtype.element_ty), mask=inside)


def is_interpreted() -> bool:
    """Whether the kernels run in Triton's interpreter, on CPU tensors (TRITON_INTERPRET=1)."""
    kernel: Any = _multiply
    return not isinstance(kernel, triton.JITFunction)
