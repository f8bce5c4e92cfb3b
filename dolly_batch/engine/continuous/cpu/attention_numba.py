"""Attention over pools by compiled kernels: one pass over a row's keys and values, in the order in which they lie.

Each row gets the same bits however many rows run with it: no sum goes beyond a row, or depends on another one.
"""

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dolly_batch.engine.continuous.sequence import Chunk, Sequence
from dolly_batch.engine.kernels.cpu.compiled import PoolKernels, as_words

Arrays = SequenceOf[Any]  # by layer, each [2, slots, capacity, heads, words of a head]


@dataclass(frozen=True, slots=True)
class Stays:
    """The decoding rows of one pool in one step."""

    arrays: Arrays
    slots: Any  # [rows]
    positions: Any  # [rows]
    tokens: slice  # of the packed tokens, one for each row


@dataclass(frozen=True, slots=True)
class Visit:
    """A chunk of one row in one step."""

    arrays: Arrays
    slot: int
    start: int  # position of its first token
    tokens: slice


class CompiledAttention:
    """The attention of one step over all pools."""

    def __init__(
        self,
        kernels: PoolKernels,
        pools: SequenceOf[tuple[Arrays, SequenceOf[tuple[int, Sequence]]]],
        chunks: SequenceOf[tuple[Arrays, int, Chunk]],
    ) -> None:
        """Each pool's decoding rows with their slots, and chunks with theirs, packed in this order."""
        self._kernels = kernels
        self._stays: list[Stays] = []
        self._visits: list[Visit] = []
        self._num_tokens = 0
        for arrays, rows in pools:
            slots = np.array([slot for slot, _ in rows])
            positions = np.array([row.num_cached for _, row in rows])
            self._stays.append(Stays(arrays, slots, positions, self._next_tokens(len(rows))))
        for arrays, slot, chunk in chunks:
            self._visits.append(Visit(arrays, slot, chunk.start, self._next_tokens(chunk.stop - chunk.start)))

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
        for stays in self._stays:
            at = stays.tokens
            self._kernels.decode(
                stays.arrays[layer], stays.slots, stays.positions, queries[at], key_value[at], attended[at]
            )
        for visit in self._visits:
            at = visit.tokens
            self._kernels.prefill(
                visit.arrays[layer], visit.slot, visit.start, queries[at], key_value[at], attended[at]
            )
        return torch.from_numpy(attended).to(query.dtype)[None]
