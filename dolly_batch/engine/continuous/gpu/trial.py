"""What the checks of the self test have in common."""

import torch
from torch import Tensor

from dolly_batch.engine.continuous.cache import CacheShape
from dolly_batch.engine.eight_bits import restore


class Unsupported(Exception):
    """A part of the engine does not run here, or its numbers are wrong."""


def as_numbers(pages: Tensor, scales: Tensor | None) -> Tensor:
    """Pages in float64, with 0 for NaN."""
    return (pages.double() if scales is None else restore(pages, scales, torch.float64)).nan_to_num()


def random_heads(shape: CacheShape, sizes: tuple[int, ...], numbers: torch.Generator) -> Tensor:
    """[*sizes, head size] in the shape's dtype."""
    return torch.randn((*sizes, shape.head_size), generator=numbers, device=shape.device).to(shape.dtype)


def assert_close(found: Tensor, expected: Tensor, limit: float, where: str) -> None:
    """Raise Unsupported where the relative distance, by norm, is above the limit or no number."""
    distance = float((found.double() - expected.double()).norm() / expected.double().norm())
    if not distance <= limit:  # a NaN is not
        raise Unsupported(f"off by {distance:.1e} {where}, where {limit:.0e} is to be expected")
