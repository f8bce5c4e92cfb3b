"""Numbers in 8 bits, vectors with a scale each: what the GPU's kernels compute, in torch's own operations.

int8 or fp8 (e4m3: 3 bits of mantissa, up to 448). The largest number of a vector becomes the largest that there is.
"""

import torch
from torch import Tensor

EIGHT_BITS = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}  # by their names in job files
LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
SCALE_BYTES = 4
_SMALLEST = 1e-30  # of a vector's largest number: a vector of zeros is divided too


def quantize(vectors: Tensor, stored: torch.dtype) -> tuple[Tensor, Tensor]:
    """Put [..., size] into `stored`, rounded to the nearest, halves to even; and float32 scales, [...].

    A vector that holds a NaN or an infinity gets a scale that is not finite, and so spoils whatever it meets.
    """
    vectors = vectors.float()
    largest = torch.maximum(vectors.amax(dim=-1), -vectors.amin(dim=-1)).clamp_(min=_SMALLEST)
    # As IEEE says: by a plain number, torch multiplies with its reciprocal on a GPU, one bit off at times.
    scales = largest / largest.new_full((), LARGEST[stored])
    shares = vectors / scales[..., None]
    return (shares.round_() if stored == torch.int8 else shares).to(stored), scales


def restore(numbers: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """[..., size] in `dtype`, from what `quantize` gave: rounded once."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return (numbers.to(wide) * scales[..., None].to(wide)).to(dtype)
