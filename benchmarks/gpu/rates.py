"""What the device can do, measured, and from it the least time that the work can take."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.work import Shape, Work

_PROMPT_TOKENS = {"cuda": 4096, "cpu": 64}  # rows of the products that are timed
_COPY_BYTES = {"cuda": 2**31, "cpu": 2**24}


@dataclass(frozen=True)
class Rates:
    """`copy_bytes_s` counts bytes read and bytes written; `flops_s` is that of the model's own products."""

    copy_bytes_s: float
    flops_s: float


@dataclass(frozen=True)
class Floor:
    """The least time of prompts (arithmetic) and of answers (memory) with so many rows in flight."""

    prefill_s: float
    decode_s: float
    rows_in_flight: int
    overlapped_s: float  # if prompts were computed while answers wait for memory
    serial_s: float  # if a decode step's bytes and arithmetic came one after the other, as most kernels have them

    @property
    def total_s(self) -> float:
        return self.prefill_s + self.decode_s


def seconds(function: Callable[[], Any], device: torch.device, repeats: int = 10) -> float:
    """Median seconds of a call, after three to warm up."""
    for _ in range(3):
        function()
    times = []
    for _ in range(repeats):
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            function()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / 1e3)
        else:
            started = time.perf_counter()
            function()
            times.append(time.perf_counter() - started)
    return statistics.median(times)


def measure(shape: Shape, device: torch.device, dtype: torch.dtype, kind: str = "") -> Rates:
    """Time a large copy and the products of one layer, on random numbers, in `dtype` or, by `kind`, int8 or fp8."""
    hidden, num_rows = shape.hidden_size, _PROMPT_TOKENS.get(device.type, 64)
    product_s = 0.0
    for inputs, outputs in ((hidden, 3 * hidden), (hidden, hidden), (hidden, 4 * hidden), (4 * hidden, hidden)):
        product_s += seconds(_product(num_rows, inputs, outputs, device, dtype, kind), device)
    return Rates(_copy_rate(device), 2 * num_rows * 12 * hidden**2 / product_s)


def _copy_rate(device: torch.device) -> float:
    source = torch.empty(_COPY_BYTES.get(device.type, 2**24) // 4, device=device).normal_()
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source), device)


def _product(
    num_rows: int, inputs: int, outputs: int, device: torch.device, dtype: torch.dtype, kind: str
) -> Callable[[], Tensor]:
    if kind == "fp8":
        numbers, weights = (
            torch.randn(size, inputs, device=device).to(torch.float8_e4m3fn) for size in (num_rows, outputs)
        )
        scales = (torch.ones(num_rows, 1, device=device), torch.ones(1, outputs, device=device))
        return lambda: torch._scaled_mm(
            numbers, weights.t(), scale_a=scales[0], scale_b=scales[1], out_dtype=torch.bfloat16
        )
    if kind != "int8":
        rows = torch.randn(num_rows, inputs, device=device, dtype=dtype)
        weight = torch.randn(outputs, inputs, device=device, dtype=dtype)
        return lambda: torch.nn.functional.linear(rows, weight)
    integers = torch.randint(-127, 128, (num_rows, inputs), device=device, dtype=torch.int8)
    packed = torch.randint(-127, 128, (outputs, inputs), device=device, dtype=torch.int8).t()
    return lambda: torch._int_mm(integers, packed)


def floor(shape: Shape, work: Work, rates: Rates, weight_item_bytes: int, item_bytes: int, kv_bytes: float) -> Floor:
    """The floor of the work with as many rows in flight as keys and values of mean length fit `kv_bytes`.

    Prompts: the products of every prompt token but those of the common beginning, causal attention, and the output
    layer once a row. Answers: each step reads all weights once and every row's keys and values, at the copy's rate.
    """
    token_bytes, context = shape.token_bytes(item_bytes), max(1.0, work.decoded_context)
    rows = max(1, min(len(work.lengths), int(kv_bytes / (context * token_bytes))))
    attention = 2 * shape.hidden_size * shape.num_layers * sum(prompt**2 for prompt, _ in work.lengths)
    prefill = 2 * shape.layer_weights * work.prefilled_tokens + attention
    prefill += 2 * shape.head_weights * len(work.lengths)
    num_steps = work.decoded_tokens / rows
    step_bytes = weight_item_bytes * (shape.layer_weights + shape.head_weights) + rows * context * token_bytes
    step_flops = (
        2 * rows * (shape.layer_weights + shape.head_weights + 2 * shape.hidden_size * shape.num_layers * context)
    )
    step_s = max(step_bytes / rates.copy_bytes_s, step_flops / rates.flops_s)
    return Floor(
        prefill / rates.flops_s,
        num_steps * step_s,
        rows,
        max(num_steps * step_bytes / rates.copy_bytes_s, (prefill + num_steps * step_flops) / rates.flops_s),
        prefill / rates.flops_s + num_steps * (step_bytes / rates.copy_bytes_s + step_flops / rates.flops_s),
    )
