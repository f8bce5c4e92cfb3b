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
from dolly_batch.engine.kernels.gpu import Rotation


@dataclass(frozen=True, slots=True)
class Places:
    """Where tokens are stored: `flat` is a page's number times its tokens, and the place in it; int64, all [tokens].

    `packed` is where they are among the keys that a step's prompts attend to; None where nothing is packed.
    """

    flat: Tensor
    pages: Tensor
    offsets: Tensor
    packed: Tensor | None = None

    @classmethod
    def of(cls, chunks: Sequence[tuple[list[int], int, int]], page: int, device: torch.device) -> "Places":
        """Where the tokens `start` to `stop` of sequences with these pages are."""
        places = [pages[at // page] * page + at % page for pages, start, stop in chunks for at in range(start, stop)]
        return cls.at(upload(places, torch.int64, device), page)

    @classmethod
    def at(cls, flat: Tensor, page: int) -> "Places":
        """Those of places that are on the device already."""
        return cls(flat, flat // page, flat % page)

    def packed_at(self, places: Sequence[int]) -> "Places":
        """The same, packed there."""
        return Places(self.flat, self.pages, self.offsets, upload(places, torch.int64, self.flat.device))


@dataclass(frozen=True, slots=True)
class LayerPages:
    """`numbers` are [2, pages, kv heads, page, head size]; `scales` float32 [2, pages, kv heads, page] of 8 bits.

    `use_kernels` is whether Triton's kernels store and gather, instead of torch's own operations.
    """

    numbers: Tensor
    scales: Tensor | None = None
    use_kernels: bool = False

    def store(
        self,
        at: Places,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rotation: Rotation | None = None,
        packed: Tensor | None = None,
    ) -> Tensor:
        """Store keys and values, [tokens, kv heads, head size], and return the queries, [tokens, heads, head size].

        A rotation, which kernels alone can do, is of keys and queries. `packed`, [2, any number, kv heads, head
        size], gets keys and values as they are stored, at `at.packed`.
        """
        if self.use_kernels:
            from dolly_batch.engine.kernels.gpu.keys_values import store  # needs triton

            return store(query, key, value, self.numbers, self.scales, at.flat, rotation, packed, at.packed)
        for part, vectors in enumerate((key, value)):
            stored = self._put(part, at, vectors)
            if packed is not None:
                packed[part][at.packed] = stored
        return query

    def gather(self, at: Places, packed: Tensor) -> None:
        """Copy the keys and values of these tokens into `packed`, at `at.packed`."""
        if self.use_kernels and at.packed is not None:
            from dolly_batch.engine.kernels.gpu.gather import gather  # needs triton

            return gather(self.numbers, self.scales, at.flat, packed, at.packed)
        for part, vectors in enumerate(packed):
            numbers = as_bytes(self.numbers[part]) if self.scales is not None else self.numbers[part]
            found = numbers[at.pages, :, at.offsets]
            if self.scales is not None:
                scales = self.scales[part][at.pages, :, at.offsets]
                found = restore(found.view(self.numbers.dtype), scales, vectors.dtype)
            vectors[at.packed] = found
        return None

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

    def _put(self, part: int, at: Places, vectors: Tensor) -> Tensor:
        """Store keys, or values, and return them as they are there."""
        if self.scales is None:
            self.numbers[part][at.pages, :, at.offsets] = vectors
            return vectors
        numbers, scales = quantize(vectors, self.numbers.dtype)
        as_bytes(self.numbers[part])[at.pages, :, at.offsets] = as_bytes(numbers)
        self.scales[part][at.pages, :, at.offsets] = scales
        return restore(numbers, scales, vectors.dtype)


def as_bytes(numbers: Tensor) -> Tensor:
    """Numbers of 8 bits as integers: torch indexes, copies and compares few of the other dtypes."""
    return numbers.view(torch.int8)
