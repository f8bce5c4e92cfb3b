"""Single products at the sizes of decoding and of prompts: bf16, int8 fused, int8 through cuBLAS, fp8; the best tile.

What `int8_cuda.MAX_FUSED_ROWS` and `kernels.int8.choose_tile` should say is read off here.
"""

import time
from collections.abc import Callable
from itertools import cycle, product
from typing import Any

import torch

from benchmarks.gpu.rates import seconds
from benchmarks.gpu.work import Shape
from dolly_batch.models.sizing import FP8_FROM

ROWS = (16, 64, 128, 256, 384, 512, 1024, 2048, 4096)
_COPIES_BYTES = 2**28  # copies of a weight until they exceed any cache


def time_products(
    shape: Shape, device: torch.device, dtype: torch.dtype, ends: float, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Time a layer's four products and the output layer's, in microseconds; prints a line each."""
    found: list[dict[str, Any]] = []
    hidden = shape.hidden_size
    sizes = (
        (hidden, 3 * hidden),
        (hidden, hidden),
        (hidden, 4 * hidden),
        (4 * hidden, hidden),
        (hidden, shape.vocab_size),
    )
    for num_rows, (inputs, outputs) in product(ROWS, sizes):
        if outputs == shape.vocab_size and num_rows > 512:
            continue  # the output layer sees one token a row
        if time.monotonic() > ends:
            say("no time left for more products")
            break
        found.append(_time_one(num_rows, inputs, outputs, device, dtype))
        say(" ".join(f"{key} {value}" for key, value in found[-1].items()))
    return found


def _time_one(num_rows: int, inputs: int, outputs: int, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    num_copies = max(1, min(16, _COPIES_BYTES // (inputs * outputs))) if device.type == "cuda" else 1
    rows = torch.randn(num_rows, inputs, device=device, dtype=dtype)
    weights = [torch.randn(outputs, inputs, device=device, dtype=dtype) for _ in range(num_copies)]
    turn = cycle(weights)
    result: dict[str, Any] = {"rows": num_rows, "in": inputs, "out": outputs}
    result["float_us"] = _us(lambda: torch.nn.functional.linear(rows, next(turn)), device)
    packed = [torch.randint(-127, 128, (outputs, inputs), device=device, dtype=torch.int8) for _ in weights]
    del weights, turn
    turn = cycle(packed)
    integers = torch.randint(-127, 128, (num_rows, inputs), device=device, dtype=torch.int8)
    if num_rows > 16:
        result["cublas_us"] = _us(lambda: torch._int_mm(integers, next(turn).t()), device)
    if device.type != "cuda":
        return result
    if torch.cuda.get_device_capability(device) >= FP8_FROM:
        result["fp8_us"] = _fp8_us(rows, packed, device)
    from dolly_batch.engine.kernels.gpu import int8

    scales, row_scales = torch.rand(outputs, device=device), torch.rand(num_rows, device=device)
    result["quantize_us"] = _us(lambda: int8.quantize_rows(rows, inputs), device)
    if num_rows > 16:
        sums = torch._int_mm(integers, packed[0].t())
        result["scale_us"] = _us(lambda: int8.scale_sums(sums, row_scales, scales, scales, dtype), device)

    def fused(tile: Any) -> float:
        return _us(lambda: int8.multiply(integers, row_scales, next(turn), scales, scales, dtype, tile), device)

    processors = torch.cuda.get_device_properties(device).multi_processor_count
    result["fused_us"] = fused(int8.choose_tile(num_rows, outputs, processors))
    tried = {}
    for tile in _tiles(num_rows):
        try:
            tried[tile] = fused(tile)
        except Exception as error:  # a tile too large for the device's shared memory
            result["refused"] = f"{tile}: {type(error).__name__}"
    if tried:
        best = min(tried, key=lambda tile: tried[tile])
        result["best_us"] = tried[best]
        result["best_tile"] = f"{best.num_rows}x{best.num_outputs}x{best.num_inputs}w{best.num_warps}s{best.num_stages}"
    return result


def _fp8_us(rows: Any, packed: list[Any], device: torch.device) -> float:
    """Of a product with scales by row and by output."""
    weights = cycle([weight.float().to(torch.float8_e4m3fn) for weight in packed])
    numbers, scale = rows.float().to(torch.float8_e4m3fn), torch.rand(len(rows), 1, device=device)
    scales = torch.rand(1, len(packed[0]), device=device)

    def product() -> Any:
        weight = next(weights).t()
        return torch._scaled_mm(numbers, weight, scale_a=scale, scale_b=scales, out_dtype=torch.bfloat16)

    return _us(product, device)


def _tiles(num_rows: int) -> list[Any]:
    """Tiles worth a try at so many rows: some eight, each of which is built once a shape."""
    from dolly_batch.engine.kernels.gpu.int8 import Tile

    if num_rows <= 64:
        height = 16 if num_rows <= 16 else 64
        return [
            Tile(height, width, deep, 4, stages) for width in (32, 64, 128) for deep, stages in ((128, 4), (256, 3))
        ]
    wide = [Tile(128, 256, 128, 8, 3), Tile(128, 256, 128, 8, 4), Tile(256, 128, 128, 8, 3)]
    return [*wide, *(Tile(128, width, 128, warps, 4) for width, warps in ((32, 4), (64, 4), (128, 4), (128, 8)))]


def _us(function: Callable[[], Any], device: torch.device) -> float:
    return round(1e6 * seconds(function, device, repeats=15), 1)
