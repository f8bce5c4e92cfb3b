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
from dolly_batch.engine.kernels.cpu.compiled import PoolKernels, as_words

Arrays = Sequence[Any]  # by layer, each [2, slots, capacity, kv heads, words of a head]


@dataclass(frozen=True, slots=True)
class DecodeSequences:
    """The decoding sequences of one pool in one step."""

    arrays: Arrays
    slots: Any  # [sequences]
    positions: Any  # [sequences]
    tokens: slice  # of the packed tokens, one for each sequence


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """A chunk of one sequence in one step."""

    arrays: Arrays
    slot: int
    start: int  # position of its first token
    tokens: slice


class CompiledAttention:
    """The attention of one step over all pools."""

    def __init__(
        self,
        kernels: PoolKernels,
        pools: Sequence[tuple[Arrays, Sequence[tuple[int, CachedSequence]]]],
        chunks: Sequence[tuple[Arrays, int, Chunk]],
    ) -> None:
        """Each pool's decoding sequences with their slots, and chunks with theirs, packed in this order."""
        self._kernels = kernels
        self._decoding: list[DecodeSequences] = []
        self._chunks: list[PrefillChunk] = []
        self._num_tokens = 0
        for arrays, sequences in pools:
            slots = np.array([slot for slot, _ in sequences])
            positions = np.array([sequence.num_cached for _, sequence in sequences])
            self._decoding.append(DecodeSequences(arrays, slots, positions, self._next_tokens(len(sequences))))
        for arrays, slot, chunk in chunks:
            self._chunks.append(PrefillChunk(arrays, slot, chunk.start, self._next_tokens(chunk.stop - chunk.start)))

    def _next_tokens(self, count: int) -> slice:
        tokens = slice(self._num_tokens, self._num_tokens + count)
        self._num_tokens = tokens.stop
        return tokens

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Store a layer's keys and values and return the attended values, [1, tokens, heads, head size]."""
        scaled = query[0].transpose(0, 1).to(torch.float32, memory_format=torch.contiguous_format).mul_(scaling)
        queries = scaled.numpy()
        key_value = as_words(torch.stack((key[0].transpose(0, 1), value[0].transpose(0, 1)), dim=1))
        attended = np.empty_like(queries)
        attended[self._num_tokens :] = 0  # padding
        for rows in self._decoding:
            at = rows.tokens
            self._kernels.decode(
                rows.arrays[layer], rows.slots, rows.positions, queries[at], key_value[at], attended[at]
            )
        for part in self._chunks:
            at = part.tokens
            self._kernels.prefill(part.arrays[layer], part.slot, part.start, queries[at], key_value[at], attended[at])
        return torch.from_numpy(attended).to(query.dtype)[None]
