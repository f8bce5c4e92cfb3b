"""Attention over pages: decoding sequences by one kernel, chunks of prompts packed one behind the other.

Chunks attend to keys and values that are packed too, their own as they are stored. Where chunks continue cached
sequences, what is cached is gathered from its pages between them.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from dolly_batch.engine.continuous.gpu.layer_pages import LayerPages, Places
from dolly_batch.engine.continuous.sequence import Chunk
from dolly_batch.engine.host_device import upload
from dolly_batch.engine.kernels.gpu import SPLIT_KEYS, Rotation


@dataclass(frozen=True, slots=True)
class Packing:
    """How sequences are packed: the queries of each, and its keys, of which the last are the queries' own."""

    num_queries: tuple[int, ...]
    num_keys: tuple[int, ...]
    query_starts: Tensor  # [sequences + 1], int32
    key_starts: Tensor

    @classmethod
    def of(cls, num_queries: Sequence[int], num_keys: Sequence[int], device: torch.device) -> "Packing":
        """The packing of sequences of so many queries and keys."""
        return cls(
            tuple(num_queries),
            tuple(num_keys),
            upload([0, *accumulate(num_queries)], torch.int32, device),
            upload([0, *accumulate(num_keys)], torch.int32, device),
        )


# (queries, keys, values, packing, scaling) -> [queries, heads, head size]; a query sees the keys up to its own. Of keys
# and values there may be fewer heads, each for a group of the queries'.
Prefiller = Callable[[Tensor, Tensor, Tensor, Packing, float], Tensor]


def prefill_by_sdpa(query: Tensor, key: Tensor, value: Tensor, packing: Packing, scaling: float) -> Tensor:
    """Sequence by sequence through torch's own attention, on any device and in any dtype."""
    output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    query_at = key_at = 0
    for num_queries, num_keys in zip(packing.num_queries, packing.num_keys, strict=True):
        queries = query[query_at : query_at + num_queries].transpose(0, 1)[None]
        keys, values = (rows[key_at : key_at + num_keys].transpose(0, 1)[None] for rows in (key, value))
        if num_queries == num_keys:
            attended = scaled_dot_product_attention(
                queries, keys, values, is_causal=True, scale=scaling, enable_gqa=queries.shape[1] != keys.shape[1]
            )
        else:
            seen = torch.ones(num_queries, num_keys, dtype=torch.bool, device=query.device)
            seen = seen.tril(num_keys - num_queries)
            attended = scaled_dot_product_attention(
                queries, keys, values, attn_mask=seen, scale=scaling, enable_gqa=queries.shape[1] != keys.shape[1]
            )
        output[query_at : query_at + num_queries] = attended[0].transpose(0, 1)
        query_at += num_queries
        key_at += num_keys
    return output


def varlen_prefill() -> Prefiller:
    """All sequences in one launch of torch's FlashAttention; raises ImportError where this torch has none.

    Which GPUs and dtypes it takes is left to the self test: compute capability 8.0 and newer, in two bytes.
    """
    from torch.nn.attention import varlen

    attend: Any = varlen.varlen_attn
    known = inspect.signature(attend).parameters
    # Torch 2.10 has a flag of its own, and always scales by the head size, as our models do.
    causal: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    if "num_splits" in known:
        causal["num_splits"] = 1  # left to itself it splits keys by the longest row, and so by a sequence's neighbours

    def prefill(query: Tensor, key: Tensor, value: Tensor, packing: Packing, scaling: float) -> Tensor:
        settings = {**causal, "scale": scaling} if "scale" in known else causal
        if query.shape[1] != key.shape[1] and "enable_gqa" in known:
            settings = {**settings, "enable_gqa": True}
        output: Tensor = attend(
            query,
            key,
            value,
            packing.query_starts,
            packing.key_starts,
            max(packing.num_queries),
            max(packing.num_keys),
            **settings,
        )
        return output

    return prefill


def round_up_keys(num_keys: int) -> int:
    """The most keys that are read in no more parts than so many, of which there is a power of two."""
    num_splits = -(-max(1, num_keys) // SPLIT_KEYS)
    return SPLIT_KEYS * (1 << (num_splits - 1).bit_length())


class Decode:
    """Decoding sequences. `slots` and `positions` are on the device, [sequences]; no sequence has over `max_keys` keys,
    its newest token's among them.
    """

    def __init__(
        self,
        layers: Sequence[LayerPages],
        block_tables: Tensor,
        tokens: slice,
        slots: Tensor,
        positions: Tensor,
        max_keys: int,
        use_kernel: bool,
    ) -> None:
        self.tokens = tokens
        self._layers = layers
        self._block_tables = block_tables
        self._slots = slots
        self._positions = positions
        page = layers[0].numbers.shape[3]
        self._own = Places.at(
            block_tables[slots.long(), positions.long() // page].long() * page + positions % page, page
        )
        self._attend = decode_by_sdpa
        self._num_splits = 1
        if use_kernel:
            from dolly_batch.engine.kernels.gpu.decode import paged_decode  # needs triton

            self._attend = paged_decode
            self._num_splits = round_up_keys(max_keys) // SPLIT_KEYS

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, rotation: Rotation | None
    ) -> Tensor:
        """Rotate, store keys and values and return the attended values; all [sequences, heads, head size]."""
        pages = self._layers[layer]
        query = pages.store(self._own, query, key, value, rotation)
        tables, slots, positions = self._block_tables, self._slots, self._positions
        return self._attend(query, pages.numbers, tables, slots, positions, scaling, self._num_splits, pages.scales)


def decode_by_sdpa(
    query: Tensor,
    pages: Tensor,
    tables: Tensor,
    slots: Tensor,
    positions: Tensor,
    scaling: float,
    num_splits: int,
    scales: Tensor | None = None,
) -> Tensor:
    """As the kernel's `paged_decode`, sequence by sequence through torch's own attention: slow, exact in any dtype."""
    output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    stored, page = LayerPages(pages, scales), pages.shape[3]
    for row, (slot, position) in enumerate(zip(slots.tolist(), positions.tolist(), strict=True)):
        own = tables[slot, : position // page + 1].long()
        keys, values = (part[None, :, : position + 1] for part in stored.of_row(own, query))
        attended = scaled_dot_product_attention(
            query[row][None, :, None], keys, values, scale=scaling, enable_gqa=query.shape[1] != keys.shape[1]
        )
        output[row] = attended[0, :, 0]
    return output


@dataclass(frozen=True, slots=True)
class Prefill:
    """Chunks of prompts: `tokens` of the packed ones, in the chunks' order."""

    layers: Sequence[LayerPages]
    tokens: slice
    packing: Packing
    own: Places
    cached: Places | None  # of the keys before the chunks; None where every chunk starts its sequence
    prefill: Prefiller

    @classmethod
    def of(cls, layers: Sequence[LayerPages], chunks: Sequence[Chunk], start: int, prefill: Prefiller) -> "Prefill":
        """The chunks, packed from `start` on."""
        page, device = layers[0].numbers.shape[3], layers[0].numbers.device
        num_queries, num_keys = [chunk.stop - chunk.start for chunk in chunks], [chunk.stop for chunk in chunks]
        first = [0, *accumulate(num_keys)]

        def places(parts: Sequence[tuple[int, int]]) -> Places:
            tables = [(chunk.sequence.location.pages, *part) for chunk, part in zip(chunks, parts, strict=True)]
            packed = [key + at for key, part in zip(first, parts, strict=False) for at in range(*part)]
            return Places.of(tables, page, device).packed_at(packed)

        return cls(
            layers,
            slice(start, start + sum(num_queries)),
            Packing.of(num_queries, num_keys, device),
            places([(chunk.start, chunk.stop) for chunk in chunks]),
            places([(0, chunk.start) for chunk in chunks]) if any(chunk.start for chunk in chunks) else None,
            prefill,
        )

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, rotation: Rotation | None
    ) -> Tensor:
        """Rotate, store keys and values and return the attended values; all [tokens, heads, head size]."""
        pages = self.layers[layer]
        packed = key.new_empty((2, sum(self.packing.num_keys), *key.shape[1:]))
        query = pages.store(self.own, query, key, value, rotation, packed)
        if self.cached is not None:
            pages.gather(self.cached, packed)
        return self.prefill(query, packed[0], packed[1], self.packing, scaling)


class PageAttention:
    """The attention of one step: decoding sequences, then chunks."""

    def __init__(self, parts: Sequence[Decode | Prefill]) -> None:
        self._parts = parts

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """As `StepAttention` says, for modules that have rotated queries and keys."""
        query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        return self.attend_tokens(layer, query, key, value, scaling)[None]

    def attend_tokens(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        rotation: Rotation | None = None,
    ) -> Tensor:
        """Store a layer's keys and values and return the attended values, all [tokens, heads, head size].

        Queries and keys are rotated first, where there is a rotation.
        """
        if len(self._parts) == 1 and self._parts[0].tokens == slice(0, len(query)):
            return self._parts[0].attend(layer, query, key, value, scaling, rotation)
        outputs = []
        for part in self._parts:
            own = part.tokens
            own_rotation = rotation and rotation.of(own)
            outputs.append(part.attend(layer, query[own], key[own], value[own], scaling, own_rotation))
        num_padding = len(query) - self._parts[-1].tokens.stop
        if num_padding:
            outputs.append(query.new_zeros((num_padding, *query.shape[1:])))
        return torch.cat(outputs)
