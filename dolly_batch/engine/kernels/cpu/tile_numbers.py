"""Float32 as two bfloat16, for products by tiles: the nearest one, and the nearest one to what that leaves.

Together they hold 17 bits of the 24. A product of such a pair with a bfloat16, summed in float32, is off by some 4e-6
of itself; one bfloat16 alone would be off by 2e-3.
"""

from numba import njit

from dolly_batch.engine.kernels.cpu.bits import reader, writer

_to_bfloat16, _from_bfloat16 = writer(is_bfloat16=True), reader(is_bfloat16=True)


@njit(inline="always")
def in_two(number):
    """The two, as 16 bits each; of a NaN both are NaN."""
    high = _to_bfloat16(number)
    return high, _to_bfloat16(number - _from_bfloat16(high))
