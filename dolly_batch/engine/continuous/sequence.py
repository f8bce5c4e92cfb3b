"""A sequence of the continuous engine, and the work of one step."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from dolly_batch.engine.sequence import SequenceState
from dolly_batch.engine.waiting import UNRANKED, Rank


@dataclass(eq=False)
class CachedSequence(SequenceState):
    """A request, its answer so far, and how many of its tokens have their keys and values in the cache.

    `location` is where they are, as the cache knows it; None while nothing is allocated. `num_pending` counts the
    answer tokens that a launched step chooses and the host has not collected yet. `rank` is its place among those that
    wait, kept when it has to wait again.
    """

    num_cached: int = 0
    num_pending: int = 0
    location: Any = None
    rank: Rank = UNRANKED

    @property
    def num_answer_tokens(self) -> int:
        """Answer tokens so far, pending ones included."""
        return len(self.token_ids) + self.num_pending

    @property
    def num_tokens(self) -> int:
        """Prompt and answer so far."""
        return len(self.request.prompt_ids) + len(self.token_ids) + self.num_pending

    @property
    def is_full(self) -> bool:
        """Whether it has all the tokens that it may have, pending ones included."""
        return self.num_answer_tokens >= self.request.params.max_new_tokens

    @property
    def max_tokens(self) -> int:
        """Most tokens that the cache may come to hold: the answer's last token is never fed in."""
        return len(self.request.prompt_ids) + self.request.params.max_new_tokens - 1

    @property
    def is_decoding(self) -> bool:
        """Whether all but its newest answer token are cached."""
        return self.num_cached >= len(self.request.prompt_ids) and self.num_cached == self.num_tokens - 1

    def ids(self, start: int, stop: int) -> Sequence[int]:
        """The token ids at positions `start` to `stop` of prompt and answer."""
        num_prompt = len(self.request.prompt_ids)
        if stop <= num_prompt:
            return self.request.prompt_ids[start:stop]
        if start >= num_prompt:
            return self.token_ids[start - num_prompt : stop - num_prompt]
        return [*self.request.prompt_ids[start:], *self.token_ids[: stop - num_prompt]]

    def restart(self) -> None:
        """Forget the answer so far, and that anything was cached."""
        super().restart()
        self.num_cached = 0


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens of one sequence, at positions `start` to `stop`, that are fed in together."""

    sequence: CachedSequence
    start: int
    stop: int

    @property
    def is_last(self) -> bool:
        """Whether the sequence's next token can be chosen after it."""
        return self.stop == self.sequence.num_tokens

    def split(self, size: int) -> "Iterator[Chunk]":
        """Split the chunk at multiples of `size`, in absolute positions, so that chunks do not depend on the batch."""
        start = self.start
        while start < self.stop:
            stop = min(self.stop, (start // size + 1) * size)
            yield Chunk(self.sequence, start, stop)
            start = stop


@dataclass(slots=True)
class Step:
    """What one forward runs: one token of each decoding sequence, and chunks of others."""

    decoding: list[CachedSequence] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.decoding or self.chunks)
