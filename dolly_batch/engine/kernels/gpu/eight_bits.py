"""Numbers of 8 bits (`engine/eight_bits.py`) in kernels.

Numbers are rounded by arithmetic in float32, so that the conversion that follows is exact, and the bits are torch's on
any GPU and in Triton's interpreter.
"""

import triton
import triton.language as tl

# Adding and taking it away again rounds to the nearest integer, halves to even, as torch's `round` does.
ROUNDER = tl.constexpr(1.5 * 2**23)
SMALLEST = tl.constexpr(1e-30)


@triton.jit
def round_shares(shares, IS_INT8: tl.constexpr):
    """Round float32 numbers to those that int8 or e4m3 has, halves to even."""
    if IS_INT8:
        return (shares + ROUNDER) - ROUNDER
    # As above, for the last of three bits of mantissa: of 2^-6, the smallest with all of them, and of more.
    exponent = tl.maximum((shares.to(tl.int32, bitcast=True) >> 23) & 255, 121)
    rounder = (((exponent + 20) << 23) | 0x400000).to(tl.float32, bitcast=True)
    return (shares + rounder) - rounder


@triton.jit
def scale_of(largest, IS_INT8: tl.constexpr):
    """The scale of a vector whose numbers are no larger than this, float32."""
    return tl.div_rn(tl.maximum(largest, SMALLEST), tl.zeros_like(largest) + (127.0 if IS_INT8 else 448.0))
