"""Attention over pools by compiled kernels: one pass over a sequence's keys and values, in the order of memory.

Each sequence gets the same bits whatever runs with it: no sum goes beyond one sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dolly_batch.engine.continuous.sequence import CachedSequence, Chunk
from dolly_batch.engine.kernels.cpu.compiled import Kernel, PoolKernels, as_words

Arrays = Sequence[Any]  # by layer, each [2, slots, capacity, kv heads, words of a head]


@dataclass(frozen=True, slots=True)
class Part:
    """What one call attends for: the decoding sequences of one pool, or a chunk of one sequence."""

    kernel: Kernel
    arrays: Arrays
    places: tuple[
        Any, Any
    ]  # slots and positions of the sequences; the chunk's slot and the position of its first token
    tokens: slice  # of the packed tokens


class CompiledAttention:
    """The attention of one step over all pools."""

    def __init__(
        self,
        kernels: PoolKernels,
        pools: Sequence[tuple[Arrays, Sequence[tuple[int, CachedSequence]]]],
        chunks: Sequence[tuple[Arrays, int, Chunk]],
    ) -> None:
        """Each pool's decoding sequences with their slots, and chunks with theirs, packed in this order."""
        self._parts: list[Part] = []
        self._num_tokens = 0
        for arrays, sequences in pools:
            slots = np.array([slot for slot, _ in sequences])
            positions = np.array([sequence.num_cached for _, sequence in sequences])
            self._add(kernels.decode, arrays, (slots, positions), len(sequences))
        for arrays, slot, chunk in chunks:
            self._add(kernels.prefill, arrays, (slot, chunk.start), chunk.stop - chunk.start)

    def _add(self, kernel: Kernel, arrays: Arrays, places: tuple[Any, Any], count: int) -> None:
        self._parts.append(Part(kernel, arrays, places, slice(self._num_tokens, self._num_tokens + count)))
        self._num_tokens += count

    def calls(self, queries: Any, keys_values: Any, attended: Any) -> list[tuple[Kernel, Arrays, tuple[Any, ...]]]:
        """How to attend in a layer: `kernel(arrays[layer], *arguments)` for each.

        `queries` [tokens, heads, head size] are times the scaling, `keys_values` [tokens, 2, kv heads, words of a head]
        are stored, `attended` is as the queries.
        """
        return [
            (
                part.kernel,
                part.arrays,
                (*part.places, *(array[part.tokens] for array in (queries, keys_values, attended))),
            )
            for part in self._parts
        ]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Store a layer's keys and values and return the attended values, [1, tokens, heads, head size]."""
        scaled = query[0].transpose(0, 1).to(torch.float32, memory_format=torch.contiguous_format).mul_(scaling)
        queries = scaled.numpy()
        keys_values = as_words(torch.stack((key[0].transpose(0, 1), value[0].transpose(0, 1)), dim=1))
        attended = np.empty_like(queries)
        attended[self._num_tokens :] = 0  # padding
        for kernel, arrays, arguments in self.calls(queries, keys_values, attended):
            kernel(arrays[layer], *arguments)
        return torch.from_numpy(attended).to(query.dtype)[None]
