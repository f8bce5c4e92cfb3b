"""The CPU kernels that numba compiles, each compared with torch before it is used; None where one is not available.

Without them torch's own products and passes do the same, more slowly. They are compiled for the CPU at hand, once, in
some twenty seconds, and kept on disk (`kept`); processes that are forked later have them too.
"""

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

log = logging.getLogger("dolly_batch.engine")

Kernel = Callable[..., None]
_DTYPES = (torch.float32, torch.bfloat16)
_MAX_THREADS = 2  # as many of torch's as the one thread of the pools' kernels keeps up with
# Rows around the borders of vectors; the float32 sums of a kernel are off by some 1e-6.
_POSITIONS = (0, 1, 7, 8, 31, 32, 63, 64, 100)
_MAX_ERROR = 1e-4


@dataclass(frozen=True, slots=True)
class RowKernels:
    """Before and after an integer product: see `int8_rows`."""

    quantize: Kernel
    finish: Kernel


@dataclass(frozen=True, slots=True)
class PoolKernels:
    """Attention over a pool: see `pool_decode` and `pool_prefill`."""

    decode: Kernel
    prefill: Kernel


@dataclass(frozen=True, slots=True)
class LayerKernels:
    """Between the integer products of a Llama-like layer: see `layer_rows`."""

    add_norm: Kernel
    rotate: Kernel
    quantize: Kernel
    gate: Kernel


class Mismatch(Exception):
    """A kernel's numbers are wrong."""


def find_pool_kernels(num_heads: int, num_kv_heads: int, head_size: int, dtype: torch.dtype) -> PoolKernels | None:
    """The kernels for pools of this shape, for few threads only: they are one thread."""
    return _pool_kernels(num_heads, num_kv_heads, head_size, dtype) if torch.get_num_threads() <= _MAX_THREADS else None


@functools.cache
def find_row_kernels(
    input_dtype: torch.dtype, output_dtype: torch.dtype, smallest: float, zero_point: int
) -> RowKernels | None:
    """`int8_rows` from one dtype to another."""

    def compile_and_check() -> RowKernels:
        from dolly_batch.engine.kernels.cpu.int8_rows import compile_finish, compile_quantize
        from dolly_batch.engine.kernels.cpu.kept import kept

        kernels = RowKernels(
            kept(compile_quantize, smallest, zero_point, is_bfloat16=input_dtype == torch.bfloat16),
            kept(compile_finish, is_bfloat16=output_dtype == torch.bfloat16),
        )
        _check_row_kernels(kernels, input_dtype, output_dtype, zero_point)
        return kernels

    is_known = input_dtype in _DTYPES and output_dtype in _DTYPES
    return _compile_or_none("int8's quantization", compile_and_check) if is_known else None


@functools.cache
def find_rms_norm() -> Kernel | None:
    """`rms_norm` in bfloat16."""

    def compile_and_check() -> Kernel:
        from dolly_batch.engine.kernels.cpu.kept import kept
        from dolly_batch.engine.kernels.cpu.rms_norm import compile_rms_norm

        normalize: Kernel = kept(compile_rms_norm, is_bfloat16=True)
        _check_rms_norm(normalize)
        return normalize

    found: Kernel | None = _compile_or_none("norms", compile_and_check)
    return found


@functools.cache
def find_layer_kernels(dtype: torch.dtype, smallest: float, zero_point: int) -> LayerKernels | None:
    """`layer_rows` for keys and values of this dtype."""

    def compile_and_check() -> LayerKernels:
        from dolly_batch.engine.kernels.cpu import layer_checks, layer_rows
        from dolly_batch.engine.kernels.cpu.kept import kept

        kernels = LayerKernels(
            kept(layer_rows.compile_add_norm, smallest, zero_point),
            kept(layer_rows.compile_rotate, is_bfloat16=dtype == torch.bfloat16),
            kept(layer_rows.compile_quantize, smallest, zero_point),
            kept(layer_rows.compile_gate, smallest, zero_point),
        )
        layer_checks.LayerChecks(kernels, dtype, zero_point).run()
        return kernels

    return _compile_or_none("a layer's small passes", compile_and_check) if dtype in _DTYPES else None


@functools.cache
def _tile_multiply() -> Kernel | None:
    def compile_and_check() -> Kernel | None:
        from dolly_batch.engine.kernels.cpu.amx import TileWeights, compile_multiply
        from dolly_batch.engine.kernels.cpu.kept import kept
        from dolly_batch.engine.kernels.cpu.tiles import is_available

        if not is_available("int8"):
            return None
        multiply: Kernel = kept(compile_multiply)
        weights = TileWeights(np.ones((3, 64), np.int8), np.ones(3, np.float32), 1)
        found = np.zeros((2, 3), np.float32)
        multiply(*weights.arrays, np.full((2, 64), 3, np.uint8), found)
        assert_close(torch.from_numpy(found), torch.full((2, 3), 128.0), 0.0)
        return multiply

    found: Kernel | None = _compile_or_none("integer products", compile_and_check)
    return found


def find_tile_multiply() -> Kernel | None:
    """`amx`'s product, for one thread; whether its largest sums are exact is for `int8_cpu` to test."""
    return _tile_multiply() if torch.get_num_threads() == 1 else None


def as_array(tensor: Tensor) -> Any:
    """The same memory for numpy, which has no bfloat16: that comes as uint16."""
    return tensor.view(torch.int16).numpy().view(np.uint16) if tensor.dtype == torch.bfloat16 else tensor.numpy()


def as_words(tensor: Tensor) -> Any:
    """The same memory for numpy in the words of `pairs`: of bfloat16 two numbers in each."""
    return tensor.view(torch.int32).numpy().view(np.uint32) if tensor.dtype == torch.bfloat16 else tensor.numpy()


@functools.cache
def _pool_kernels(num_heads: int, num_kv_heads: int, head_size: int, dtype: torch.dtype) -> PoolKernels | None:
    def compile_and_check() -> PoolKernels:
        from dolly_batch.engine.kernels.cpu.kept import kept
        from dolly_batch.engine.kernels.cpu.pool_decode import compile_decode
        from dolly_batch.engine.kernels.cpu.pool_prefill import compile_prefill
        from dolly_batch.engine.kernels.cpu.tile_prefill import compile_tile_prefill, fits
        from dolly_batch.engine.kernels.cpu.tiles import is_available

        shape, is_bfloat16 = (num_heads, num_kv_heads, head_size), dtype == torch.bfloat16
        if is_bfloat16 and fits(head_size) and is_available("bf16"):
            prefill = kept(compile_tile_prefill, *shape)
        else:
            prefill = kept(compile_prefill, *shape, is_bfloat16=is_bfloat16)
        kernels = PoolKernels(kept(compile_decode, *shape, is_bfloat16=is_bfloat16), prefill)
        _check_pool_kernels(kernels, (num_heads, num_kv_heads), head_size, dtype)
        return kernels

    is_known = dtype in _DTYPES and head_size % 2 == 0
    return _compile_or_none("the attention", compile_and_check) if is_known else None


def _compile_or_none(name: str, compile_and_check: Callable[[], Any]) -> Any:
    """Return the checked kernels, or log why not and return None. Compilers raise many kinds of errors."""
    try:
        return compile_and_check()
    except ModuleNotFoundError:
        log.info("numba is not installed: torch does %s, more slowly", name)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0][:300]
        log.warning("torch does %s, more slowly: compiled, %s: %s", name, type(error).__name__, reason)
    return None


def _check_pool_kernels(kernels: PoolKernels, heads: tuple[int, int], head_size: int, dtype: torch.dtype) -> None:
    """Compare both with attention in float64: rows of any length, next to NaN, and chunks of one of them."""
    numbers = torch.Generator().manual_seed(4)
    num_rows = len(_POSITIONS)

    num_heads, num_kv_heads = heads

    def random(*sizes: int) -> Tensor:
        return torch.randn((*sizes, head_size), generator=numbers)

    pool = random(2, num_rows + 1, max(_POSITIONS) + 1, num_kv_heads).to(dtype)
    query, key_value = random(num_rows, num_heads), random(num_rows, 2, num_kv_heads).to(dtype)
    expected = []
    for row, position in enumerate(_POSITIONS):
        pool[:, row + 1, position:] = torch.nan
        keys, values = torch.cat((pool[:, row + 1, :position], key_value[row, :, None]), dim=1)
        expected.append(_attend(query[row, None], keys, values)[0])
    found = torch.empty_like(query)
    slots, positions = np.arange(1, num_rows + 1), np.array(_POSITIONS)
    kernels.decode(as_words(pool), slots, positions, query.numpy(), as_words(key_value), found.numpy())
    assert_close(found, torch.stack(expected), _MAX_ERROR)
    for start, stop in ((0, 1), (1, 39), (39, 72)):
        query, key_value = random(stop - start, num_heads), random(stop - start, 2, num_kv_heads).to(dtype)
        found = torch.empty_like(query)
        kernels.prefill(as_words(pool), 0, start, query.numpy(), as_words(key_value), found.numpy())
        keys, values = pool[:, 0, :stop]
        assert_close(found, _attend(query, keys, values), _MAX_ERROR)


def _attend(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Causal attention of a row's last tokens, in float64; all [tokens, heads or kv heads, head size]."""
    own, keys, values = (part.double().transpose(0, 1) for part in (query, keys, values))
    keys, values = (part.repeat_interleave(len(own) // len(part), dim=0) for part in (keys, values))
    scores = own @ keys.transpose(1, 2)
    hidden = torch.ones(scores.shape[1:], dtype=torch.bool).triu(len(keys[0]) - len(query) + 1)
    return (scores.masked_fill(hidden, -torch.inf).softmax(dim=-1) @ values).transpose(0, 1)


def _check_row_kernels(
    kernels: RowKernels, input_dtype: torch.dtype, output_dtype: torch.dtype, zero_point: int
) -> None:
    """Compare both with the same in float64, for rows of very small numbers and of very large ones."""
    numbers = torch.Generator().manual_seed(5)
    rows = (torch.randn((9, 203), generator=numbers) * torch.logspace(-9, 9, 9)[:, None]).to(input_dtype)
    quantized, scales = torch.empty(rows.shape, dtype=torch.uint8), torch.empty(len(rows))
    kernels.quantize(as_array(rows), quantized.numpy(), scales.numpy())
    expected_scales = rows.double().abs().amax(dim=1) / 127
    assert_close(scales / expected_scales, torch.ones(len(rows)), 1e-6)
    assert_close(quantized, rows.double() / expected_scales[:, None] + zero_point, 0.501)
    products, bias = torch.randn(rows.shape, generator=numbers), torch.randn(rows.shape[1], generator=numbers)
    outputs = torch.empty(rows.shape, dtype=output_dtype)
    kernels.finish(products.numpy(), scales.numpy(), bias.numpy(), as_array(outputs))
    scaled = products.double() * scales[:, None].double()
    sizes = scaled.abs() + bias.abs()
    assert_close(outputs / sizes, (scaled + bias) / sizes, torch.finfo(output_dtype).eps)


def _check_rms_norm(normalize: Kernel) -> None:
    """Compare with the same in float64, for rows of small numbers and of large ones."""
    numbers, epsilon = torch.Generator().manual_seed(6), np.float32(1e-5)
    rows = (torch.randn((9, 203), generator=numbers) * torch.logspace(-4, 9, 9)[:, None]).bfloat16()
    weight = torch.randn(203, generator=numbers).bfloat16()
    outputs = torch.empty_like(rows)
    normalize(as_array(rows), as_array(weight), epsilon, as_array(outputs))
    squares = rows.double().square().mean(dim=1, keepdim=True)
    expected = rows.double() * (squares + float(epsilon)).rsqrt() * weight.double()
    sizes = expected.abs().clamp(min=1e-30)
    assert_close(outputs / sizes, expected / sizes, 2 * torch.finfo(torch.bfloat16).eps)


def assert_close(found: Tensor, expected: Tensor, limit: float) -> None:
    """Raise Mismatch where two numbers are further apart."""
    distance = float((found.double() - expected.double()).abs().max())
    if not distance <= limit:  # a NaN is not
        raise Mismatch(f"off by {distance:.1e} where {limit:.0e} is to be expected")
