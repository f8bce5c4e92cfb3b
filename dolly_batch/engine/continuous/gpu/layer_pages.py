"""A layer's keys and values in pages: stored and read back, in the model's own dtype or in 8 bits.

In 8 bits every key and value is rounded before anything attends to it, those of the same step too: what a row computes
is the same whether its tokens are cached, shared with another row or computed again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dolly_batch.engine.eight_bits import quantize, restore
from dolly_batch.engine.host_device import upload


@dataclass(frozen=True, slots=True)
class Places:
    """Where tokens are stored: `flat` is a page's number times its tokens, and the place in it; all [tokens]."""

    flat: Tensor
    pages: Tensor
    offsets: Tensor

    @classmethod
    def of(cls, chunks: Sequence[tuple[list[int], int, int]], page: int, device: torch.device) -> "Places":
        """Where the tokens `start` to `stop` of sequences with these pages are."""
        places = [pages[at // page] * page + at % page for pages, start, stop in chunks for at in range(start, stop)]
        flat = upload(places, torch.int64, device)
        return cls(flat, flat // page, flat % page)


@dataclass(frozen=True, slots=True)
class LayerPages:
    """`numbers` are [2, pages, kv heads, page, head size]; `scales` float32 [2, pages, kv heads, page] of 8 bits.

    `use_kernels` is whether Triton's kernels round and restore, instead of torch's own operations.
    """

    numbers: Tensor
    scales: Tensor | None = None
    use_kernels: bool = False

    def store(self, at: Places, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values, both [tokens, kv heads, head size], and return them as they are there."""
        if self.scales is None:
            for part, vectors in zip(self.numbers, (key, value), strict=True):
                part[at.pages, :, at.offsets] = vectors
            return key, value
        return self._rounded(0, self.scales[0], at, key), self._rounded(1, self.scales[1], at, value)

    def gather(self, at: Places, like: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values of these tokens, in the dtype of `like`."""
        if self.scales is None:
            keys, values = (part[at.pages, :, at.offsets] for part in self.numbers)
            return keys, values
        return self._restored(0, self.scales[0], at, like), self._restored(1, self.scales[1], at, like)

    def of_row(self, own: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values of the pages `own`, [kv heads, tokens, head size]."""
        if self.scales is None:
            keys, values = (part[own].transpose(0, 1).flatten(1, 2) for part in self.numbers)
            return keys, values
        keys, values = (
            restore(as_bytes(part)[own].view(part.dtype), scales[own], like.dtype).transpose(0, 1).flatten(1, 2)
            for part, scales in zip(self.numbers, self.scales, strict=True)
        )
        return keys, values

    def _rounded(self, part: int, scales: Tensor, at: Places, vectors: Tensor) -> Tensor:
        if self.use_kernels:
            from dolly_batch.engine.kernels.gpu.eight_bits import store  # needs triton

            return store(vectors, self.numbers[part], scales, at.flat)
        numbers, own_scales = quantize(vectors, self.numbers.dtype)
        as_bytes(self.numbers[part])[at.pages, :, at.offsets] = as_bytes(numbers)
        scales[at.pages, :, at.offsets] = own_scales
        return restore(numbers, own_scales, vectors.dtype)

    def _restored(self, part: int, scales: Tensor, at: Places, like: Tensor) -> Tensor:
        if self.use_kernels:
            from dolly_batch.engine.kernels.gpu.eight_bits import gather  # needs triton

            return gather(self.numbers[part], scales, at.flat, like)
        numbers = as_bytes(self.numbers[part])[at.pages, :, at.offsets].view(self.numbers.dtype)
        return restore(numbers, scales[at.pages, :, at.offsets], like.dtype)


def as_bytes(numbers: Tensor) -> Tensor:
    """Numbers of 8 bits as integers: torch indexes, copies and compares few of the other dtypes."""
    return numbers.view(torch.int8)
