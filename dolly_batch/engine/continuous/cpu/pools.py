"""The CPU's KV cache: contiguous pools by length class.

A pool holds a few sequences of one length class, each with room for `capacity` tokens. A sequence starts in the class
of its prompt and moves to the next one when it outgrows it: sequences of similar length lie together, and little is
read in vain. Pools are made when needed and dropped when their sequences fit into the others of their class.
"""

import math
from collections.abc import Iterator
from itertools import chain

from torch import Tensor

from dolly_batch.engine.continuous.cache import HEADROOM, CacheShape, StepAttention
from dolly_batch.engine.continuous.cpu.attention_numba import CompiledAttention
from dolly_batch.engine.continuous.cpu.attention_torch import DecodeSequences, PoolAttention, PrefillChunk
from dolly_batch.engine.continuous.sequence import CachedSequence, Step
from dolly_batch.engine.kernels.cpu.compiled import PoolKernels, as_words, find_pool_kernels
from dolly_batch.engine.memory import map_zeros

_POOL_TOKENS = 2_048
_MAX_SLOTS = 16
_CLASS_STEP = 64
_QUERY_BLOCK = 128  # queries at once: they see no keys behind themselves, so less is computed in vain


def capacity_for(num_tokens: int) -> int:
    """The smallest length class that holds so many tokens: steps of 64 to 512, of 128 to 1,024, of 256 beyond."""
    step = _CLASS_STEP if num_tokens <= 512 else 128 if num_tokens <= 1024 else 256
    return max(1, -(-num_tokens // step)) * step


class Pool:
    """Room for a few sequences of one length class: [layers, keys and values, slots, kv heads, capacity, head size].

    In memory a head's tokens lie side by side, as torch's products want them; with `by_token`, a token's heads, as the
    kernels read them. Zeros at first: what lies behind a sequence's end is read with weight 0, and must not be a NaN.
    """

    def __init__(self, shape: CacheShape, capacity: int, num_slots: int, *, by_token: bool) -> None:
        self.capacity = capacity
        inner = (capacity, shape.num_kv_heads) if by_token else (shape.num_kv_heads, capacity)
        sizes = (shape.num_layers, 2, num_slots, *inner, shape.head_size)
        memory = map_zeros(math.prod(sizes), shape.dtype).view(sizes)
        self.tensor = memory.transpose(3, 4) if by_token else memory
        self.layers: tuple[Tensor, ...] = self.tensor.unbind(0)
        self.arrays = [as_words(layer) for layer in memory] if by_token else []
        self.sequences: list[CachedSequence | None] = [None] * num_slots

    @property
    def num_bytes(self) -> int:
        """Bytes that it takes."""
        return self.tensor.nbytes

    @property
    def num_free(self) -> int:
        """Slots without a sequence."""
        return self.sequences.count(None)

    def occupied(self) -> Iterator[tuple[int, CachedSequence]]:
        """Its sequences with their slots."""
        return ((slot, sequence) for slot, sequence in enumerate(self.sequences) if sequence is not None)


class KVPools:
    """All pools of an engine. `budget_bytes` bounds what its sequences may come to need, at their full lengths.

    `kernels` are the compiled attention, None torch's own products.

    The budget also bounds the pools with their free slots: a new pool that would exceed it comes after compacting the
    others, and takes no more than what is left. Running sequences can always grow: where nothing is left, they get a
    pool of one slot, which at times exceeds the budget by some percent.
    """

    def __init__(self, shape: CacheShape, budget_bytes: int, kernels: PoolKernels | None = None) -> None:
        self.shape = shape
        self.budget_bytes = budget_bytes
        self.num_bytes = 0
        self.peak_bytes = 0
        self.num_moves = 0
        self._kernels = kernels
        self._reserved_bytes = 0
        self._pool_tokens = min(_POOL_TOKENS, budget_bytes // shape.token_bytes // 16)
        self._classes: dict[int, list[Pool]] = {}

    @classmethod
    def with_kernels(cls, shape: CacheShape, budget_bytes: int) -> "KVPools":
        """The pools with the fastest attention that runs here."""
        kernels = find_pool_kernels(shape.num_heads, shape.num_kv_heads, shape.head_size, shape.dtype)
        return cls(shape, budget_bytes, kernels)

    @property
    def is_compiled(self) -> bool:
        """Whether its attention is the compiled one."""
        return self._kernels is not None

    def has_room(self, sequence: CachedSequence) -> bool:
        """Whether the sequence can be admitted, to its full length; one larger than the budget is admitted alone."""
        if not self._reserved_bytes:
            return True
        if self._reserved_bytes + self._bytes_for(sequence) > self.budget_bytes:
            return False
        capacity = capacity_for(min(sequence.max_tokens, sequence.num_tokens + HEADROOM))
        if self._with_free_slot(capacity):
            return True
        self._make_room(capacity)
        return self._num_slots_left(capacity) > 0

    def allocate(self, sequence: CachedSequence, num_tokens: int) -> None:
        """Make room for the sequence's first `num_tokens` tokens, moving it to a larger class if need be."""
        location: tuple[Pool, int] | None = sequence.location
        if location is not None and num_tokens <= location[0].capacity:
            return
        pool, slot = self._free_slot(capacity_for(num_tokens))
        location = sequence.location  # again: making room may have moved the sequence within its class
        if location is not None:
            self._move(location, (pool, slot), sequence.num_cached)
            self._vacate(*location)
        else:
            self._reserved_bytes += self._bytes_for(sequence)
        sequence.location = (pool, slot)
        pool.sequences[slot] = sequence

    def share_prefix(self, source: CachedSequence, sequence: CachedSequence, num_tokens: int) -> None:
        """Copy the first tokens of another sequence to an allocated one."""
        _copy(source.location, sequence.location, num_tokens)

    def free(self, sequence: CachedSequence, has_nan: bool = False) -> None:
        """Forget the sequence; with `has_nan` its slot is zeroed."""
        if sequence.location is None:
            return
        pool, slot = sequence.location
        if has_nan:
            pool.tensor[:, :, slot] = 0
        sequence.location = None
        self._reserved_bytes -= self._bytes_for(sequence)
        self._vacate(pool, slot)

    def plan(self, step: Step) -> tuple[list[CachedSequence], StepAttention]:
        """Return the decoding sequences pool by pool, and the step's attention."""
        decoding = set(step.decoding)
        decoding_by_pool = []
        for pool in chain.from_iterable(self._classes.values()):
            sequences = [(slot, sequence) for slot, sequence in pool.occupied() if sequence in decoding]
            if sequences:
                decoding_by_pool.append((pool, sequences))
        ordered = [sequence for _, sequences in decoding_by_pool for _, sequence in sequences]
        if self._kernels is not None:
            chunks = [(chunk.sequence.location[0].arrays, chunk.sequence.location[1], chunk) for chunk in step.chunks]
            arrays = [(pool.arrays, sequences) for pool, sequences in decoding_by_pool]
            return ordered, CompiledAttention(self._kernels, arrays, chunks)
        parts: list[DecodeSequences | PrefillChunk] = []
        start = 0
        for pool, sequences in decoding_by_pool:
            parts.append(DecodeSequences.of(pool.layers, sequences, start))
            start += len(sequences)
        for chunk in step.chunks:
            pool, slot = chunk.sequence.location
            for block in chunk.split(_QUERY_BLOCK):
                parts.append(PrefillChunk.of(pool.layers, slot, block, start))
                start += block.stop - block.start
        return ordered, PoolAttention(parts)

    def _bytes_for(self, sequence: CachedSequence) -> int:
        return capacity_for(sequence.max_tokens) * self.shape.token_bytes

    def _free_slot(self, capacity: int) -> tuple[Pool, int]:
        """A slot of the fullest pool that has one, or of a new pool."""
        pools = self._with_free_slot(capacity)
        if pools:
            pool = min(pools, key=lambda pool: pool.num_free)
        else:
            self._make_room(capacity)
            num_slots = min(_MAX_SLOTS, self._pool_tokens // capacity, self._num_slots_left(capacity))
            pool = Pool(self.shape, capacity, max(1, num_slots), by_token=self._kernels is not None)
            self._classes.setdefault(capacity, []).append(pool)
            self.num_bytes += pool.num_bytes
            self.peak_bytes = max(self.peak_bytes, self.num_bytes)
        return pool, pool.sequences.index(None)

    def _with_free_slot(self, capacity: int) -> list[Pool]:
        return [pool for pool in self._classes.get(capacity, ()) if pool.num_free]

    def _make_room(self, capacity: int) -> None:
        """Compact all classes where the budget has no room for another slot."""
        if not self._num_slots_left(capacity):
            for pools in list(self._classes.values()):
                self._compact(pools, spare=0)

    def _num_slots_left(self, capacity: int) -> int:
        """Slots of that capacity that the budget has room for."""
        return max(0, self.budget_bytes - self.num_bytes) // (capacity * self.shape.token_bytes)

    def _move(self, origin: tuple[Pool, int], target: tuple[Pool, int], num_tokens: int) -> None:
        _copy(origin, target, num_tokens)
        self.num_moves += 1

    def _vacate(self, pool: Pool, slot: int) -> None:
        """Free a slot, and drop the pools that their class can do without.

        One pool's worth of slots stays free, so that sequences that come and go don't make and drop pools in turn.
        """
        pool.sequences[slot] = None
        self._compact(self._classes[pool.capacity], spare=len(pool.sequences))

    def _compact(self, pools: list[Pool], spare: int) -> None:
        """Drop pools whose sequences fit into the others of their class, if `spare` slots stay free there.

        A class without sequences loses all of its pools.
        """
        while pools:
            emptiest = max(pools, key=lambda pool: pool.num_free)
            num_free = sum(pool.num_free for pool in pools)
            has_sequences = num_free < sum(len(pool.sequences) for pool in pools)
            if num_free - len(emptiest.sequences) < (spare if has_sequences else 0):
                break
            self._drop(pools, emptiest)

    def _drop(self, pools: list[Pool], pool: Pool) -> None:
        """Move the sequences of a pool into others of its class and drop it."""
        pools.remove(pool)
        for slot, sequence in pool.occupied():
            target = self._free_slot(pool.capacity)
            self._move((pool, slot), target, sequence.num_cached)
            sequence.location = target
            target[0].sequences[target[1]] = sequence
        self.num_bytes -= pool.num_bytes
        if not pools:
            self._classes.pop(pool.capacity)


def _copy(origin: tuple[Pool, int], target: tuple[Pool, int], num_tokens: int) -> None:
    source = origin[0].tensor[:, :, origin[1], :, :num_tokens]
    target[0].tensor[:, :, target[1], :, :num_tokens] = source
