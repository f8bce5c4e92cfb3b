"""Attention over pools by torch: for each pool one product of queries and keys, a softmax, one product with the values.

Each sequence gets the same bits whatever runs with it: a pool's products are batched by sequence and head, and the
queries of a chunk are padded to multiples of eight. Keys beyond a sequence's end have weight exactly 0. With numba,
compiled kernels do the same (`attention_numba.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dolly_batch.engine.continuous.sequence import CachedSequence, Chunk

_KEYS_STEP = 32
QUERIES_STEP = 8


@dataclass(frozen=True, slots=True)
class DecodeSequences:
    """The decoding sequences of one pool in one step."""

    layers: Sequence[Tensor]  # each [2, slots, kv heads, capacity, head size]
    tokens: slice  # of the packed tokens, one for each sequence
    slots: Tensor  # [sequences]
    positions: Tensor  # [sequences]
    token_of_slot: Tensor | None  # [slots in use]; None where slots and sequences are the same in number and order
    bias: Tensor  # [slots in use, 1, capacity]: 0 for the sequence's own keys, -inf for the others

    @classmethod
    def of(
        cls, layers: Sequence[Tensor], sequences: Sequence[tuple[int, CachedSequence]], start: int
    ) -> "DecodeSequences":
        """The pool's sequences with their slots, in the order of slots; their tokens are packed from `start` on."""
        num_slots = sequences[-1][0] + 1
        lengths, token_of_slot = [1] * num_slots, [start] * num_slots
        for index, (slot, sequence) in enumerate(sequences):
            lengths[slot], token_of_slot[slot] = sequence.num_cached + 1, start + index
        return cls(
            layers,
            slice(start, start + len(sequences)),
            torch.tensor([slot for slot, _ in sequences]),
            torch.tensor([sequence.num_cached for _, sequence in sequences]),
            None if num_slots == len(sequences) else torch.tensor(token_of_slot),
            _bias(torch.tensor(lengths)[:, None, None], layers[0].shape[3], layers[0].dtype),
        )

    def attend(self, layer: int, query: Tensor, key_value: Tensor, output: Tensor) -> None:
        """`query` and `output` are [tokens, heads, head size], `key_value` is [tokens, 2, kv heads, head size]."""
        pool = self.layers[layer]
        pool[:, self.slots, :, self.positions] = key_value[self.tokens]
        _, _, num_kv_heads, capacity, head_size = pool.shape
        by_slot = query[self.tokens] if self.token_of_slot is None else query[self.token_of_slot]
        num_slots, num_heads, _ = by_slot.shape
        # To the end of their capacity: keys cut shorter would be copied by the product.
        keys, values = pool[:, :num_slots].view(2, num_slots * num_kv_heads, capacity, head_size)
        weights = _products(by_slot.reshape(len(keys), -1, head_size), keys)
        weights = weights.reshape(num_slots, num_heads, capacity).add_(self.bias).softmax(dim=-1)
        attended = torch.bmm(weights.view(len(keys), -1, capacity), values).view(num_slots, num_heads, head_size)
        output[self.tokens] = attended if self.token_of_slot is None else attended[self.slots]


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """A chunk of one sequence in one step: its queries see the sequence's tokens up to themselves."""

    layers: Sequence[Tensor]
    slot: int
    tokens: slice
    positions: slice
    num_keys: int
    padding: int
    bias: Tensor  # [queries, keys]

    @classmethod
    def of(cls, layers: Sequence[Tensor], slot: int, chunk: Chunk, start: int) -> "PrefillChunk":
        """The chunk of the sequence at `slot`, packed from `start` on."""
        num_queries = chunk.stop - chunk.start
        padding = -num_queries % QUERIES_STEP
        num_keys = -(-chunk.stop // _KEYS_STEP) * _KEYS_STEP
        seen = torch.arange(chunk.start + 1, chunk.stop + padding + 1)[:, None]
        return cls(
            layers,
            slot,
            slice(start, start + num_queries),
            slice(chunk.start, chunk.stop),
            num_keys,
            padding,
            _bias(seen, num_keys, layers[0].dtype),
        )

    def attend(self, layer: int, query: Tensor, key_value: Tensor, output: Tensor) -> None:
        """Same shapes as `DecodeSequences.attend`."""
        pool_slot = self.layers[layer][:, self.slot]  # [2, kv heads, capacity, head size]
        pool_slot[:, :, self.positions] = key_value[self.tokens].permute(1, 2, 0, 3)
        keys, values = pool_slot[:, :, : self.num_keys]
        queries = query[self.tokens].transpose(0, 1)
        if self.padding:
            queries = torch.nn.functional.pad(queries, (0, 0, 0, self.padding))
        num_heads, num_queries, head_size = queries.shape
        # The queries of all heads that share a head of keys, one behind the other.
        weights = torch.bmm(queries.reshape(len(keys), -1, head_size), keys.transpose(1, 2))
        weights = weights.view(num_heads, num_queries, -1).add_(self.bias).softmax(dim=-1)
        attended = torch.bmm(weights.view(len(keys), -1, self.num_keys), values)
        attended = attended.view(num_heads, num_queries, head_size).transpose(0, 1)
        output[self.tokens] = attended[: attended.shape[0] - self.padding]


class PoolAttention:
    """The attention of one step over all pools."""

    def __init__(self, parts: Sequence[DecodeSequences | PrefillChunk]) -> None:
        self._parts = parts

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Store a layer's keys and values and return the attended values, [1, tokens, heads, head size]."""
        queries = (query[0] * scaling).transpose(0, 1)
        key_value = torch.stack((key[0].transpose(0, 1), value[0].transpose(0, 1)), dim=1)
        output = torch.zeros_like(queries, memory_format=torch.contiguous_format)
        for part in self._parts:
            part.attend(layer, queries, key_value, output)
        return output[None]


def _products(query: Tensor, keys: Tensor) -> Tensor:
    """[batch, queries, head size] and [batch, keys, head size] to the products of each pair, [batch, queries, keys].

    In float32 MKL reads rows of keys a third faster than columns of them; oneDNN, for bfloat16, would copy them.
    """
    if query.dtype == torch.float32:
        return torch.bmm(keys, query.transpose(1, 2)).transpose(1, 2)
    return torch.bmm(query, keys.transpose(1, 2))


def _bias(num_seen: Tensor, num_keys: int, dtype: torch.dtype) -> Tensor:
    """0 for the first keys and -inf for those behind, in the shape of `num_seen` but for its last dimension."""
    hidden = torch.arange(num_keys) >= num_seen
    return torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, -torch.inf)
