"""Root mean square normalization of rows on the CPU in one pass, compiled by numba for the CPU at hand."""

from collections.abc import Callable

import numpy as np
from numba import njit

from dolly_batch.engine.kernels.cpu.bits import FLAGS, reader, writer


def compile_rms_norm(*, is_bfloat16: bool) -> Callable[..., None]:
    """Return `normalize(rows, weight, epsilon, outputs)`: [rows, features], times the weight [features].

    It rounds where Hugging Face's modules do; a row's sum of squares is in float32, in an order by its length alone.
    """
    read, write = reader(is_bfloat16=is_bfloat16), writer(is_bfloat16=is_bfloat16)

    @njit(fastmath=FLAGS, error_model="numpy")
    def normalize(rows, weight, epsilon, outputs):
        num_features = rows.shape[1]
        for row in range(rows.shape[0]):
            numbers, found = rows[row], outputs[row]
            total = np.float32(0)
            for i in range(num_features):
                number = read(numbers[i])
                total += number * number
            inverse = np.float32(1) / np.sqrt(total / np.float32(num_features) + epsilon)
            for i in range(num_features):
                found[i] = write(read(write(read(numbers[i]) * inverse)) * read(weight[i]))

    return normalize
