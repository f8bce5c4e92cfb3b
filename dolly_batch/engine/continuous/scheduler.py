"""Scheduling: which sequences run in the next step. In the order of `waiting.py`, admitted as memory allows."""

from bisect import insort
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass

from dolly_batch.engine.continuous.cache import HEADROOM, Cache
from dolly_batch.engine.continuous.pace import CPU_LIMITS, Pace, StepLimits
from dolly_batch.engine.continuous.prefixes import MIN_SHARED, Prefixes, num_common
from dolly_batch.engine.continuous.sequence import CachedSequence, Chunk, Step
from dolly_batch.engine.memory import OUT_OF_MEMORY, allocator_errors
from dolly_batch.engine.requests import num_positions
from dolly_batch.engine.sequence import append_tokens
from dolly_batch.engine.waiting import UNRANKED, WaitingOrder

MAX_SEQUENCES = 64
_MIN_WAITED_FOR = 16
_CALM_STEPS = 16  # a shortage that comes back within so many is none of a moment
_LOOKED_AT = 32  # waiting sequences, for one that need not wait for a prompt that is being computed


@dataclass
class SchedulerStats:
    """What a scheduler has done. Slot steps are counted while sequences wait: the final drain can't be full."""

    num_steps: int = 0
    num_prompt_tokens: int = 0
    num_shared_tokens: int = 0
    num_answer_tokens: int = 0
    num_partial_tokens: int = 0  # of the answers' tokens, those that came with the requests
    slot_steps: int = 0
    slot_steps_used: int = 0
    num_out_of_memory: int = 0
    num_preempted: int = 0

    def summary(self) -> dict[str, float]:
        """The counts by name, and `occupancy`, the share of slots in use."""
        return {**asdict(self), "occupancy": self.slot_steps_used / max(1, self.slot_steps)}


class Scheduler:
    """Sequences that wait and sequences that run.

    `next_step` may run out of memory, as the step itself may: see `preempt_half`, and `shrink` for GPUs. A waiting
    sequence takes nothing from those that run: where there is no memory to admit it, it keeps waiting.
    """

    def __init__(
        self,
        cache: Cache,
        max_sequences: int = MAX_SEQUENCES,
        prefix_sharing: bool = True,
        limits: StepLimits = CPU_LIMITS,
        stop_ids: Collection[int] = (),
    ) -> None:
        self.waiting: list[CachedSequence] = []  # by rank
        self._order = WaitingOrder()
        self.running: list[CachedSequence] = []
        self.stats = SchedulerStats()
        self._cache = cache
        self._pace = Pace(max_sequences, limits)
        self._limits = limits
        self._stop_ids = stop_ids
        self._prefixes = Prefixes() if prefix_sharing else None
        # Has ended, and stays cached as long as no running sequence can be the source of its prefix.
        self._kept_source: CachedSequence | None = None
        self._prefilled: set[CachedSequence] = set()  # their first token is not known yet
        self._suspect: CachedSequence | None = None  # of the last step that ran out of memory
        self._calm_from = 0
        self._num_slots = max_sequences
        self._steps_to_admission = 0

    def add(self, sequence: CachedSequence) -> None:
        """Let a sequence wait for its turn."""
        if sequence.rank is UNRANKED:
            sequence.rank = self._order.rank(sequence.request.prompt_ids, num_positions(sequence.request))
        insort(self.waiting, sequence, key=lambda waiting: waiting.rank)

    def next_step(self) -> Step:
        """Lay out the next step, empty only when there is nothing to do."""
        step = Step()
        num_left = self._pace.step_tokens
        for sequence in self.running:
            if sequence.is_full:
                continue
            self._cache.allocate(sequence, sequence.num_tokens)
            if sequence.is_decoding:
                step.decoding.append(sequence)
            else:
                num_left -= self._add_chunks(step, sequence, num_left)
        self._steps_to_admission -= 1
        if self._steps_to_admission <= 0 or not step.decoding:
            self._admit_waiting(step, num_left)
        if self.waiting:
            self.stats.slot_steps += self._num_slots
            num_prefilling = len({id(chunk.sequence) for chunk in step.chunks})
            self.stats.slot_steps_used += len(step.decoding) + num_prefilling
        return step

    def postprocess(
        self, step: Step, sequences: Sequence[CachedSequence], token_ids: Sequence[int], sound: Sequence[bool]
    ) -> list[CachedSequence]:
        """Record a step that has run, and the next tokens of `sequences`; return those that ended, and free them.

        The GPU engine calls the two halves apart: `launched`, and one step later `collected`.
        """
        self.launched(step, sequences)
        return self.collected(sequences, token_ids, sound)

    def launched(self, step: Step, sequences: Sequence[CachedSequence]) -> None:
        """The step's keys and values are computed before those of any later step; `sequences` have a token pending."""
        self.stats.num_steps += 1
        self._pace.succeed()
        for sequence in step.decoding:
            sequence.num_cached += 1
        for chunk in step.chunks:
            chunk.sequence.num_cached = chunk.stop
            self.stats.num_prompt_tokens += chunk.stop - chunk.start
            if chunk.is_last and not chunk.sequence.token_ids:
                self._prefilled.add(chunk.sequence)
        for sequence in sequences:
            sequence.num_pending += 1

    def collected(
        self, sequences: Sequence[CachedSequence], token_ids: Sequence[int], sound: Sequence[bool]
    ) -> list[CachedSequence]:
        """The pending tokens of a launched step are known; return the sequences that ended, and free them."""
        for sequence in sequences:
            sequence.num_pending -= 1
        ended = append_tokens(sequences, token_ids, sound, self._stop_ids)
        for sequence in sequences:
            if sequence in self._prefilled:
                self._prefilled.remove(sequence)
                # Not shared before: a NaN of the prompt may be in its very first keys and values.
                if self._prefixes is not None and sequence.failure is None:
                    self._prefixes.add(sequence)
                    self._free_kept_source()
        for sequence in ended:
            self.end(sequence)
        return ended

    def end(self, sequence: CachedSequence) -> None:
        """Remove a sequence that has ended: its slot is free for the next step."""
        self.running.remove(sequence)
        self.stats.num_answer_tokens += len(sequence.token_ids)
        self.stats.num_partial_tokens += sequence.num_partial
        if self._prefixes is not None:
            if self._prefixes.is_only(sequence) and sequence.failure is None:
                self._kept_source = sequence
                return
            self._prefixes.remove(sequence)
        self._cache.free(sequence, has_nan=sequence.failure is not None)

    def preempt_half(self) -> CachedSequence | None:
        """Memory ran out: half of the sequences wait again, and start over.

        Returns the sequence that has no memory even alone; where nothing runs, that is the first one that waits. A kept
        prefix source is freed first.
        """
        self.stats.num_out_of_memory += 1
        had_source = self._kept_source is not None
        self._free_kept_source()
        num_sequences = len(self.running)
        if had_source and num_sequences <= 1:
            return None
        self._pace.fail(num_sequences)
        if num_sequences == 0:
            self.running.append(self.waiting.pop(0))
        if num_sequences <= 1:
            return self.running[0]
        for sequence in self.running[self._pace.max_sequences :]:
            # What was being written when memory ran out is unknown, so nothing of it is kept.
            sequence.restart()
            self._wait_again(sequence)
        del self.running[self._pace.max_sequences :]
        return None

    def shrink(self) -> CachedSequence | None:
        """A step ran out of memory on a device whose keys and values are reserved: the next ones take less.

        Of several prompts in it, fewer go into a step. Anything else is tried once more, with the memory that can be
        given back; if that fails, half of the sequences wait again, with their answers so far. Returns the sequence
        that had no memory alone.
        """
        self.stats.num_out_of_memory += 1
        if not self.running:
            self.running.append(self.waiting.pop(0))
        prompts = [sequence for sequence in self.running if not sequence.is_decoding]
        if len(prompts) > 1:
            self._pace.fail_prompts(sum(sequence.num_tokens - sequence.num_cached for sequence in prompts))
        elif not self._is_second_failure(prompts[0] if prompts else self.running[0]):
            pass
        elif len(self.running) == 1:
            self._pace.fail(1)
            return self.running[0]
        else:
            self._pace.fail(len(self.running))
            prompts = self.running[self._pace.max_sequences :]
        for sequence in prompts:
            self.running.remove(sequence)
            self._wait_again(sequence)
        return None

    def _is_second_failure(self, suspect: CachedSequence) -> bool:
        """Whether memory ran out with the same suspect, or some steps ago: `suspect` is what the step began with."""
        is_second = self._suspect is suspect or self.stats.num_steps < self._calm_from
        self._suspect, self._calm_from = suspect, self.stats.num_steps + _CALM_STEPS
        return is_second

    def _wait_again(self, sequence: CachedSequence) -> None:
        if self._prefixes is not None:
            self._prefixes.remove(sequence)
        self._prefilled.discard(sequence)
        self._cache.free(sequence)
        sequence.num_cached = 0
        self.add(sequence)

    def preempt(self) -> None:
        """The sequences have outgrown the cache: the one admitted last waits again, and keeps its answer so far.

        A kept prefix source is freed instead, if there is one.
        """
        if self._kept_source is not None:
            self._free_kept_source()
            return
        self.stats.num_preempted += 1
        self._wait_again(self.running.pop())
        self._steps_to_admission = self._limits.admit_every

    def _admit_waiting(self, step: Step, num_left: int) -> None:
        """Admit waiting sequences, as long as there are slots, memory and prompt tokens left in the step."""
        memory_left = True
        while self.waiting and num_left > 0 and len(self.running) < self._pace.max_sequences:
            index = self._next_waiting(step)
            if index is None:
                break
            memory_left = self._has_room(self.waiting[index]) and self._admit(index)
            if not memory_left:
                break
            num_left -= self._add_chunks(step, self.running[-1], num_left)
        self._num_slots = self._pace.max_sequences if memory_left else len(self.running)
        if len(self.running) >= self._num_slots:
            self._steps_to_admission = self._limits.admit_every

    def _has_room(self, sequence: CachedSequence) -> bool:
        if not self._cache.has_room(sequence) and not self.running:
            self._free_kept_source()
        return self._cache.has_room(sequence)

    def _next_waiting(self, step: Step) -> int | None:
        """Which waiting sequence is next: one behind those that had better wait until a prompt is computed."""
        candidates = enumerate(self.waiting[:_LOOKED_AT])
        return next((index for index, sequence in candidates if not self._should_wait(sequence, step)), None)

    def _should_wait(self, sequence: CachedSequence, step: Step) -> bool:
        """Whether a prompt that is being computed will share much more with this one than any cached prompt does."""
        if self._prefixes is None:
            return False
        others = {*(chunk.sequence for chunk in step.chunks), *self._prefilled}
        in_work = max((num_common(other, sequence) for other in others), default=0)
        return in_work >= _MIN_WAITED_FOR + self._prefixes.longest(sequence)[1]

    def _admit(self, index: int) -> bool:
        """Admit a waiting sequence. False, and it keeps waiting, when those that run leave it no memory."""
        sequence = self.waiting[index]
        try:
            with allocator_errors():
                self._cache.allocate(sequence, min(sequence.max_tokens, sequence.num_tokens + HEADROOM))
        except OUT_OF_MEMORY:
            if not self.running:
                raise
            self.stats.num_out_of_memory += 1
            return False
        del self.waiting[index]
        self.running.append(sequence)
        if self._prefixes is None:
            return True
        source, num_shared = self._prefixes.longest(sequence)
        if source is not None and num_shared >= MIN_SHARED:
            self._cache.share_prefix(source, sequence, num_shared)
            sequence.num_cached = num_shared
            self.stats.num_shared_tokens += num_shared
        return True

    def _add_chunks(self, step: Step, sequence: CachedSequence, max_tokens: int) -> int:
        """Add the sequence's next chunks to the step, the last one whole; return the number of their tokens."""
        num_tokens = 0
        chunk = Chunk(sequence, sequence.num_cached, sequence.num_tokens)
        for part in chunk.split(self._limits.chunk_tokens):
            if num_tokens >= max_tokens:
                break
            step.chunks.append(part)
            num_tokens += part.stop - part.start
        return num_tokens

    def _free_kept_source(self) -> None:
        if self._kept_source is not None and self._prefixes is not None:
            self._prefixes.remove(self._kept_source)
            self._cache.free(self._kept_source)
            self._kept_source = None
