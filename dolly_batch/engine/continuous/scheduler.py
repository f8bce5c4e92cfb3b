"""Which rows run in the next step: longest first, refilled as slots fall free, admitted as memory allows."""

from bisect import insort
from collections.abc import Sequence as SequenceOf
from dataclasses import asdict, dataclass

from dolly_batch.engine.continuous.cache import HEADROOM, Cache
from dolly_batch.engine.continuous.prefixes import MIN_SHARED, Prefixes, num_common
from dolly_batch.engine.continuous.sequence import Chunk, Sequence, Step
from dolly_batch.engine.memory import OUT_OF_MEMORY, RowLimit, allocator_errors
from dolly_batch.engine.requests import num_positions

MAX_ROWS = 64
# Chunks end at multiples of this in the row's own positions, so that where a row is cut depends on no other row.
CHUNK_TOKENS = 256
STEP_TOKENS = 512  # of prompts; beyond some hundred, more at once is no faster
_WORTH_WAITING = 16


@dataclass(frozen=True, slots=True)
class Pace:
    """How much goes into a step, by what the device is good at.

    Rows are admitted every `admit_every` steps while others decode, so that a device that runs prompts apart from the
    rest runs many at a time.
    """

    chunk_tokens: int = CHUNK_TOKENS
    step_tokens: int = STEP_TOKENS
    admit_every: int = 1


CPU_PACE = Pace()


@dataclass
class Usage:
    """What a schedule has done. Slot steps are counted while rows wait: the final drain can't be full."""

    num_steps: int = 0
    num_prompt_tokens: int = 0
    num_shared_tokens: int = 0
    num_answer_tokens: int = 0
    num_partial_tokens: int = 0  # of the answers' tokens, those that came with the requests
    slot_steps: int = 0
    slot_steps_used: int = 0
    num_out_of_memory: int = 0
    num_suspended: int = 0

    def summary(self) -> dict[str, float]:
        """The counts by name, and `occupancy`, the share of slots in use."""
        return {**asdict(self), "occupancy": self.slot_steps_used / max(1, self.slot_steps)}


class Schedule:
    """Rows that wait and rows that run. `next_step` may run out of memory, as the step itself may: see `give_way`.

    A row that waits takes nothing from those that run: where there is no memory to admit it, it waits on.
    """

    def __init__(
        self, cache: Cache, max_rows: int = MAX_ROWS, prefix_sharing: bool = True, pace: Pace = CPU_PACE
    ) -> None:
        self.waiting: list[Sequence] = []  # longest first
        self.running: list[Sequence] = []
        self.usage = Usage()
        self._cache = cache
        self._limit = RowLimit(max_rows)
        self._prefixes = Prefixes() if prefix_sharing else None
        self._donor: Sequence | None = None  # ended, and kept as long as no running row can give its prefix
        self._unread: set[Sequence] = set()  # prompts that are computed, of which no token is known yet
        self._pace = pace
        self._num_slots = max_rows
        self._pause = 0  # steps until rows are admitted again

    def add(self, row: Sequence) -> None:
        """Let a row wait for its turn."""
        insort(self.waiting, row, key=lambda waiting: -num_positions(waiting.request))

    def next_step(self) -> Step:
        """Lay out the next step, empty only when there is nothing to do."""
        step = Step()
        num_left = self._pace.step_tokens
        for row in self.running:
            if row.is_full:
                continue
            self._cache.place(row, row.num_tokens)
            if row.is_decoding:
                step.decoding.append(row)
            else:
                num_left -= self._add_chunks(step, row, num_left)
        self._pause -= 1
        if self._pause <= 0 or not step.decoding:
            self._fill(step, num_left)
        if self.waiting:
            self.usage.slot_steps += self._num_slots
            self.usage.slot_steps_used += len(step.decoding) + len({id(chunk.row) for chunk in step.chunks})
        return step

    def advance(self, step: Step) -> None:
        """The step's tokens have been computed."""
        self.usage.num_steps += 1
        for row in step.decoding:
            row.num_cached += 1
        for chunk in step.chunks:
            chunk.row.num_cached = chunk.stop
            self.usage.num_prompt_tokens += chunk.stop - chunk.start
            if chunk.is_last and not chunk.row.token_ids:
                self._unread.add(chunk.row)

    def read(self, rows: SequenceOf[Sequence]) -> None:
        """The rows' newest tokens are known. Prompts that gave a sound one may be copied from now on.

        Not before: what a NaN in a prompt has spoilt begins at the prompt's first token.
        """
        for row in rows:
            if row in self._unread:
                self._unread.remove(row)
                if self._prefixes is not None and row.failure is None:
                    self._prefixes.add(row)
                    self._drop_donor()

    def end(self, row: Sequence) -> None:
        """A row has ended: its place is free for the next step."""
        self.running.remove(row)
        self.usage.num_answer_tokens += len(row.token_ids)
        self.usage.num_partial_tokens += row.num_partial
        if self._prefixes is not None:
            if self._prefixes.holds_only(row) and row.failure is None:
                self._donor = row
                return
            self._prefixes.remove(row)
        self._cache.release(row, spoilt=row.failure is not None)

    def give_way(self) -> Sequence | None:
        """Memory ran out: half of the rows go back to wait. Returns the row if it was alone: it can't be run.

        Where nothing runs, memory ran out for the first row that waits. What a donor takes is given back first.
        """
        self.usage.num_out_of_memory += 1
        had_donor = self._donor is not None
        self._drop_donor()
        num_rows = len(self.running)
        if had_donor and num_rows <= 1:
            return None
        self._limit.fail(num_rows)
        if num_rows == 0:
            self.running.append(self.waiting.pop(0))
        if num_rows <= 1:
            return self.running[0]
        for row in self.running[self._limit.max_rows :]:
            if self._prefixes is not None:
                self._prefixes.remove(row)
            # What was being written when memory ran out is not known, so nothing is left of it.
            self._unread.discard(row)
            self._cache.release(row)
            row.restart()
            self.add(row)
        del self.running[self._limit.max_rows :]
        return None

    def suspend(self) -> None:
        """The rows have outgrown the cache: the one taken in last waits again, and goes on from the answer it has.

        A donor that has ended is let go of first.
        """
        if self._donor is not None:
            self._drop_donor()
            return
        row = self.running.pop()
        self.usage.num_suspended += 1
        if self._prefixes is not None:
            self._prefixes.remove(row)
        self._cache.release(row)
        row.num_cached = 0
        self.add(row)
        self._pause = self._pace.admit_every

    def _fill(self, step: Step, num_left: int) -> None:
        """Admit rows that wait, as long as there are slots, memory and prompt tokens left in the step."""
        memory_left = True
        while self.waiting and num_left > 0 and len(self.running) < self._limit.max_rows:
            row = self.waiting[0]
            memory_left = self._has_room(row)
            if not memory_left or self._should_wait(row, step):
                break
            memory_left = self._admit(row)
            if not memory_left:
                break
            num_left -= self._add_chunks(step, row, num_left)
        self._num_slots = self._limit.max_rows if memory_left else len(self.running)
        if len(self.running) >= self._num_slots:
            self._pause = self._pace.admit_every

    def _has_room(self, row: Sequence) -> bool:
        if not self._cache.has_room(row) and not self.running:
            self._drop_donor()
        return self._cache.has_room(row)

    def _should_wait(self, row: Sequence, step: Step) -> bool:
        """Whether a row that is being computed will have much of this one's prompt that none has yet."""
        if self._prefixes is None:
            return False
        others = {*(chunk.row for chunk in step.chunks), *self._unread}
        in_work = max((num_common(other, row) for other in others), default=0)
        return in_work >= _WORTH_WAITING + self._prefixes.longest(row)[1]

    def _admit(self, row: Sequence) -> bool:
        """Take in the first row that waits. False, and it goes on waiting, when rows run and leave no memory for it."""
        try:
            with allocator_errors():
                self._cache.place(row, min(row.max_tokens, row.num_tokens + HEADROOM))
        except OUT_OF_MEMORY:
            if not self.running:
                raise
            self.usage.num_out_of_memory += 1
            return False
        del self.waiting[0]
        self.running.append(row)
        if self._prefixes is None:
            return True
        donor, num_shared = self._prefixes.longest(row)
        if donor is not None and num_shared >= MIN_SHARED:
            self._cache.copy_prefix(donor, row, num_shared)
            row.num_cached = num_shared
            self.usage.num_shared_tokens += num_shared
        return True

    def _add_chunks(self, step: Step, row: Sequence, max_tokens: int) -> int:
        """Add the row's next chunks to the step, the last one as long as it is; return the number of their tokens."""
        num_tokens = 0
        for chunk in Chunk(row, row.num_cached, row.num_tokens).cut(self._pace.chunk_tokens):
            if num_tokens >= max_tokens:
                break
            step.chunks.append(chunk)
            num_tokens += chunk.stop - chunk.start
        return num_tokens

    def _drop_donor(self) -> None:
        if self._donor is not None and self._prefixes is not None:
            self._prefixes.remove(self._donor)
            self._cache.release(self._donor)
            self._donor = None
