"""Quantizing the inputs of an integer product and scaling its outputs, each in one pass; compiled by numba.

Without fast-math flags: each operation rounds as torch's does, so that the bits are those of torch's passes. A row that
holds NaN or an infinity gets a scale of NaN, so that all of its outputs are.
"""

from collections.abc import Callable

import numpy as np
from numba import njit

from dolly_batch.engine.kernels.cpu.bits import as_bits, as_float, reader, writer

_WITHOUT_SIGN, _INFINITY, _NAN = np.uint32(0x7FFFFFFF), np.uint32(0x7F800000), np.uint32(0x7FC00000)
_ROUNDER = np.float32(1.5 * 2**23)


def compile_quantize(smallest: float, zero_point: int, *, is_bfloat16: bool) -> Callable[..., None]:
    """Return `quantize(rows, quantized, scales)`: [rows, features] to uint8 of the same shape, and float32 scales.

    Each row's largest number becomes 127 away from the zero point.
    """
    read, lowest, offset = reader(is_bfloat16=is_bfloat16), np.float32(smallest), np.uint32(zero_point)

    @njit(error_model="numpy")
    def quantize(rows, quantized, scales):
        for row in range(rows.shape[0]):
            numbers, integers = rows[row], quantized[row]
            largest_bits = as_bits(lowest)
            for i in range(numbers.shape[0]):
                # Without their sign, floats are ordered as their bits are, NaN above all.
                largest_bits = max(largest_bits, as_bits(read(numbers[i])) & _WITHOUT_SIGN)
            largest = as_float(largest_bits if largest_bits < _INFINITY else _NAN)
            scale = largest / np.float32(127)
            scales[row] = scale
            for i in range(numbers.shape[0]):
                # The lowest bits of the sum are the nearest integer's.
                integers[i] = np.uint8(as_bits(read(numbers[i]) / scale + _ROUNDER) + offset)

    return quantize


def compile_finish(*, is_bfloat16: bool) -> Callable[..., None]:
    """Return `finish(products, scales, bias, outputs)`: [rows, features] times each row's scale, plus the bias.

    `outputs` may be `products` itself where it is float32.
    """
    write = writer(is_bfloat16=is_bfloat16)

    @njit(error_model="numpy")
    def finish(products, scales, bias, outputs):
        for row in range(products.shape[0]):
            scale, numbers, found = scales[row], products[row], outputs[row]
            for i in range(numbers.shape[0]):
                found[i] = write(numbers[i] * scale + bias[i])

    return finish
