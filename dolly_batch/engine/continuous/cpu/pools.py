"""The CPU's cache: contiguous pools by length class.

A pool holds a few rows of the same length class, each with room for `capacity` tokens. A row starts in the class of its
prompt and moves, once a class, when it outgrows it; so rows of like length lie together and little is read in vain.
Pools come as they are needed and go when their rows fit into the others of their class.
"""

import math
from collections.abc import Iterator
from itertools import chain

from torch import Tensor

from dolly_batch.engine.continuous.cache import HEADROOM, CacheShape, StepAttention
from dolly_batch.engine.continuous.cpu.attention_numba import CompiledAttention
from dolly_batch.engine.continuous.cpu.attention_torch import PoolAttention, Stay, Visit
from dolly_batch.engine.continuous.sequence import Sequence, Step
from dolly_batch.engine.kernels.cpu.compiled import PoolKernels, as_words
from dolly_batch.engine.memory import map_zeros

_POOL_TOKENS = 2_048
_MAX_SLOTS = 16
_CLASS_STEP = 64
_QUERY_BLOCK = 128  # of a chunk, that sees nothing of what is behind it: less is computed in vain


def capacity_for(num_tokens: int) -> int:
    """The smallest length class that holds so many tokens: steps of 64 to 512, of 128 to 1,024, of 256 beyond."""
    step = _CLASS_STEP if num_tokens <= 512 else 128 if num_tokens <= 1024 else 256
    return max(1, -(-num_tokens // step)) * step


class Pool:
    """Room for a few rows of one length class: [layers, keys and values, slots, heads, capacity, head size].

    In memory a head's tokens lie side by side, as torch's products want them; with `by_token`, a token's heads, as the
    kernels read them. Zeros at first: what lies behind a row's end is read with weight 0, and must not be a NaN.
    """

    def __init__(self, shape: CacheShape, capacity: int, num_slots: int, *, by_token: bool) -> None:
        self.capacity = capacity
        inner = (capacity, shape.num_heads) if by_token else (shape.num_heads, capacity)
        sizes = (shape.num_layers, 2, num_slots, *inner, shape.head_size)
        memory = map_zeros(math.prod(sizes), shape.dtype).view(sizes)
        self.tensor = memory.transpose(3, 4) if by_token else memory
        self.layers: tuple[Tensor, ...] = self.tensor.unbind(0)
        self.arrays = [as_words(layer) for layer in memory] if by_token else []
        self.rows: list[Sequence | None] = [None] * num_slots

    @property
    def num_bytes(self) -> int:
        """Bytes that it takes."""
        return self.tensor.nbytes

    @property
    def num_free(self) -> int:
        """Slots without a row."""
        return self.rows.count(None)

    def seated(self) -> Iterator[tuple[int, Sequence]]:
        """Its rows with their slots."""
        return ((slot, row) for slot, row in enumerate(self.rows) if row is not None)


class Pools:
    """All pools of an engine. `budget_bytes` bounds what its rows may come to need, at their full lengths.

    `kernels` are the compiled attention, None torch's own products.

    The budget bounds the pools too, with the slots that no row fills: where a new pool would pass it, the others are
    closed up first, and it is made no larger than what is left. Rows that run have room to grow all the same: where
    nothing is left, a pool of one slot is made for them, which takes some percent more than the budget at times.
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

    def has_room(self, row: Sequence) -> bool:
        """Whether the row can be taken in, to its full length; a row larger than the budget is, when it is alone."""
        if not self._reserved_bytes:
            return True
        if self._reserved_bytes + self._bytes_for(row) > self.budget_bytes:
            return False
        capacity = capacity_for(min(row.max_tokens, row.num_tokens + HEADROOM))
        if self._with_free_slot(capacity):
            return True
        self._make_room(capacity)
        return self._num_slots_left(capacity) > 0

    def place(self, row: Sequence, num_tokens: int) -> None:
        """Make room for the row's first `num_tokens` tokens, moving it to a larger class if need be."""
        here: tuple[Pool, int] | None = row.place
        if here is not None and num_tokens <= here[0].capacity:
            return
        pool, slot = self._free_slot(capacity_for(num_tokens))
        here = row.place  # again: making room may have moved the row within its class
        if here is not None:
            self._move(here, (pool, slot), row.num_cached)
            self._vacate(*here)
        else:
            self._reserved_bytes += self._bytes_for(row)
        row.place = (pool, slot)
        pool.rows[slot] = row

    def copy_prefix(self, donor: Sequence, row: Sequence, num_tokens: int) -> None:
        """Copy the donor's first tokens to a row that is placed."""
        _copy(donor.place, row.place, num_tokens)

    def release(self, row: Sequence, spoilt: bool = False) -> None:
        """Forget the row; what may hold a NaN is wiped out."""
        if row.place is None:
            return
        pool, slot = row.place
        if spoilt:
            pool.tensor[:, :, slot] = 0
        row.place = None
        self._reserved_bytes -= self._bytes_for(row)
        self._vacate(pool, slot)

    def plan(self, step: Step) -> tuple[list[Sequence], StepAttention]:
        """Return the decoding rows pool by pool, and the step's attention."""
        decoding = set(step.decoding)
        seats = []
        for pool in chain.from_iterable(self._classes.values()):
            rows = [(slot, row) for slot, row in pool.seated() if row in decoding]
            if rows:
                seats.append((pool, rows))
        ordered = [row for _, rows in seats for _, row in rows]
        if self._kernels is not None:
            chunks = [(chunk.row.place[0].arrays, chunk.row.place[1], chunk) for chunk in step.chunks]
            return ordered, CompiledAttention(self._kernels, [(pool.arrays, rows) for pool, rows in seats], chunks)
        parts: list[Stay | Visit] = []
        start = 0
        for pool, rows in seats:
            parts.append(Stay.of(pool.layers, rows, start))
            start += len(rows)
        for chunk in step.chunks:
            pool, slot = chunk.row.place
            for block in chunk.cut(_QUERY_BLOCK):
                parts.append(Visit.of(pool.layers, slot, block, start))
                start += block.stop - block.start
        return ordered, PoolAttention(parts)

    def _bytes_for(self, row: Sequence) -> int:
        return capacity_for(row.max_tokens) * self.shape.token_bytes

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
        return pool, pool.rows.index(None)

    def _with_free_slot(self, capacity: int) -> list[Pool]:
        return [pool for pool in self._classes.get(capacity, ()) if pool.num_free]

    def _make_room(self, capacity: int) -> None:
        """Close all classes up where the budget has no room for a slot more."""
        if not self._num_slots_left(capacity):
            for pools in list(self._classes.values()):
                self._close_up(pools, spare=0)

    def _num_slots_left(self, capacity: int) -> int:
        """Slots of that capacity that the budget has room for."""
        return max(0, self.budget_bytes - self.num_bytes) // (capacity * self.shape.token_bytes)

    def _move(self, origin: tuple[Pool, int], target: tuple[Pool, int], num_tokens: int) -> None:
        _copy(origin, target, num_tokens)
        self.num_moves += 1

    def _vacate(self, pool: Pool, slot: int) -> None:
        """Free a slot; pools that their class can do without go.

        One pool's worth of slots is left free, so that a row more and a row less don't make and drop a pool in turn.
        """
        pool.rows[slot] = None
        self._close_up(self._classes[pool.capacity], spare=len(pool.rows))

    def _close_up(self, pools: list[Pool], spare: int) -> None:
        """Drop pools whose rows fit into the others of their class, if `spare` slots stay free there.

        Of a class without rows all go.
        """
        while pools:
            emptiest = max(pools, key=lambda pool: pool.num_free)
            num_free = sum(pool.num_free for pool in pools)
            has_rows = num_free < sum(len(pool.rows) for pool in pools)
            if num_free - len(emptiest.rows) < (spare if has_rows else 0):
                break
            self._drop(pools, emptiest)

    def _drop(self, pools: list[Pool], pool: Pool) -> None:
        """Move the rows of a pool into others of its class and let it go."""
        pools.remove(pool)
        for slot, row in pool.seated():
            place = self._free_slot(pool.capacity)
            self._move((pool, slot), place, row.num_cached)
            row.place = place
            place[0].rows[place[1]] = row
        self.num_bytes -= pool.num_bytes
        if not pools:
            self._classes.pop(pool.capacity)


def _copy(origin: tuple[Pool, int], target: tuple[Pool, int], num_tokens: int) -> None:
    source = origin[0].tensor[:, :, origin[1], :, :num_tokens]
    target[0].tensor[:, :, target[1], :, :num_tokens] = source
