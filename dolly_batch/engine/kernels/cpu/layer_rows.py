"""The passes between the integer products of a Llama-like layer, row after row; compiled by numba.

A pass takes a product's `outputs` [rows, features], which are still to be multiplied by their row's scale, and leaves
the next product's inputs in 8 bits. `scales` [rows] are, before, those of the product's inputs, and afterwards those of
what has been quantized; `outputs` are worked on in place. All between is float32. Sizes are the arrays': one
compilation serves all models. There are as many rows as scales; `outputs` and what is quantized may have more. Sums go
over one row, in an order by its length alone. NaN or an infinity makes the row's scale NaN.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from dolly_batch.engine.kernels.cpu.bits import FLAGS, as_bits, as_float, writer
from dolly_batch.engine.kernels.cpu.softmax import exponential

_WITHOUT_SIGN, _INFINITY, _NAN = np.uint32(0x7FFFFFFF), np.uint32(0x7F800000), np.uint32(0x7FC00000)
_ROUNDER = np.float32(1.5 * 2**23)
_ONE = np.float32(1)


@functools.cache
def _compile_quantize_row(smallest: float, zero_point: int) -> Callable[..., Any]:
    lowest, offset = np.float32(smallest), np.uint32(zero_point)

    @njit(fastmath=FLAGS, error_model="numpy")
    def quantize_row(numbers, integers):
        """Return the row's scale; its largest number becomes 127 away from the zero point."""
        largest_bits = as_bits(lowest)
        for i in range(integers.shape[0]):
            largest_bits = max(largest_bits, as_bits(numbers[i]) & _WITHOUT_SIGN)
        largest = as_float(largest_bits if largest_bits < _INFINITY else _NAN)
        factor = np.float32(127) / largest
        for i in range(integers.shape[0]):
            integers[i] = np.uint8(as_bits(numbers[i] * factor + _ROUNDER) + offset)
        return largest / np.float32(127)

    return quantize_row


def compile_quantize(smallest: float, zero_point: int) -> Callable[..., None]:
    """Return `quantize(rows, scales, quantized)`."""
    quantize_row = _compile_quantize_row(smallest, zero_point)

    @njit(error_model="numpy")
    def quantize(rows, scales, quantized):
        for row in range(scales.shape[0]):
            scales[row] = quantize_row(rows[row], quantized[row])

    return quantize


def compile_add_norm(smallest: float, zero_point: int) -> Callable[..., None]:
    """Return `add_norm(residual, outputs, scales, bias, weight, epsilon, quantized)`.

    The outputs are added to the residual stream [rows, features]; its root mean square norm is quantized.
    """
    quantize_row = _compile_quantize_row(smallest, zero_point)

    @njit(fastmath=FLAGS, error_model="numpy")
    def add_norm(residual, outputs, scales, bias, weight, epsilon, quantized):
        num_features = residual.shape[1]
        for row in range(scales.shape[0]):
            stream, numbers, scale = residual[row], outputs[row], scales[row]
            total = np.float32(0)
            for i in range(num_features):
                number = stream[i] + (numbers[i] * scale + bias[i])
                stream[i] = number
                total += number * number
            inverse = _ONE / np.sqrt(total / np.float32(num_features) + epsilon)
            for i in range(num_features):
                numbers[i] = stream[i] * inverse * weight[i]
            scales[row] = quantize_row(numbers, quantized[row])

    return add_norm


def compile_gate(smallest: float, zero_point: int) -> Callable[..., None]:
    """Return `gate(outputs, scales, bias, quantized)`: silu of the outputs' first half, times their second half."""
    quantize_row = _compile_quantize_row(smallest, zero_point)

    @njit(fastmath=FLAGS, error_model="numpy")
    def gate(outputs, scales, bias, quantized):
        num_features = quantized.shape[1]
        for row in range(scales.shape[0]):
            numbers, others, scale = outputs[row, :num_features], outputs[row, num_features:], scales[row]
            other_bias = bias[num_features:]
            for i in range(num_features):
                opening = numbers[i] * scale + bias[i]
                small = exponential(-abs(opening))  # of numbers up to 0 only
                share = (_ONE if opening >= 0 else small) / (_ONE + small)
                numbers[i] = opening * share * (others[i] * scale + other_bias[i])
            scales[row] = quantize_row(numbers, quantized[row])

    return gate


def compile_rotate(*, is_bfloat16: bool) -> Callable[..., None]:
    """Return `rotate(outputs, scales, bias, norms, epsilon, cosines, sines, scaling, queries, keys_values)`.

    The outputs are a row's queries, keys and values. Queries and keys get their heads' norms, where `norms` [2, head
    size] has any rows, and are turned by the row's angles [rows, half of a head at least]. `queries` [rows, heads, head
    size] are times the scaling, `keys_values` [rows, 2, kv heads, head size] in the pools' dtype, bfloat16 as uint16.
    """
    write = writer(is_bfloat16=is_bfloat16)

    @njit(fastmath=FLAGS, error_model="numpy")
    def rotate(outputs, scales, bias, norms, epsilon, cosines, sines, scaling, queries, keys_values):
        num_heads, head_size = queries.shape[1:]
        num_kv_heads = keys_values.shape[2]
        half = head_size // 2
        own = np.empty(head_size, np.float32)
        for row in range(scales.shape[0]):
            scale = scales[row]
            for head in range(num_heads + 2 * num_kv_heads):
                start, total = head * head_size, np.float32(0)
                for i in range(head_size):
                    number = outputs[row, start + i] * scale + bias[start + i]
                    own[i] = number
                    total += number * number
                is_query, is_value = head < num_heads, head >= num_heads + num_kv_heads
                if norms.shape[0] and not is_value:
                    inverse = _ONE / np.sqrt(total / np.float32(head_size) + epsilon)
                    for i in range(head_size):
                        own[i] *= inverse * norms[0 if is_query else 1, i]
                if not is_value:
                    for i in range(half):
                        first, second = own[i], own[half + i]
                        own[i] = first * cosines[row, i] - second * sines[row, i]
                        own[half + i] = second * cosines[row, i] + first * sines[row, i]
                if is_query:
                    for i in range(head_size):
                        queries[row, head, i] = own[i] * scaling
                else:
                    part, place = (head - num_heads) // num_kv_heads, (head - num_heads) % num_kv_heads
                    for i in range(head_size):
                        keys_values[row, part, place, i] = write(own[i])

    return rotate
