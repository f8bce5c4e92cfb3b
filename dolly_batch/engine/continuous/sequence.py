"""A row on its way through the continuous engine, and the work of one step."""

from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from typing import Any

from dolly_batch.engine.plain.batch import Row


@dataclass(eq=False)
class Sequence(Row):
    """A request, its answer so far, and how many of its tokens have their keys and values in the cache.

    `place` is where they lie, as the cache knows it; None while nothing does. `num_pending` counts the answer tokens
    that have been chosen on the device and not been read yet.
    """

    num_cached: int = 0
    num_pending: int = 0
    place: Any = None

    @property
    def num_answer_tokens(self) -> int:
        """Answer tokens so far, those not read yet among them."""
        return len(self.token_ids) + self.num_pending

    @property
    def num_tokens(self) -> int:
        """Prompt and answer so far."""
        return len(self.request.prompt_ids) + len(self.token_ids) + self.num_pending

    @property
    def is_full(self) -> bool:
        """Whether it has all the tokens that it may have, and only their reading is outstanding."""
        return self.num_answer_tokens >= self.request.params.max_new_tokens

    @property
    def max_tokens(self) -> int:
        """Most tokens that the cache may come to hold: the answer's last token is never fed in."""
        return len(self.request.prompt_ids) + self.request.params.max_new_tokens - 1

    @property
    def is_decoding(self) -> bool:
        """Whether exactly its newest answer token waits to be fed in."""
        return self.num_cached >= len(self.request.prompt_ids) and self.num_cached == self.num_tokens - 1

    def ids(self, start: int, stop: int) -> SequenceOf[int]:
        """The token ids at positions `start` to `stop` of prompt and answer."""
        num_prompt = len(self.request.prompt_ids)
        if stop <= num_prompt:
            return self.request.prompt_ids[start:stop]
        if start >= num_prompt:
            return self.token_ids[start - num_prompt : stop - num_prompt]
        return [*self.request.prompt_ids[start:], *self.token_ids[: stop - num_prompt]]

    def restart(self) -> None:
        """Forget the answer so far, and that anything of the row was in the cache."""
        super().restart()
        self.num_cached = 0


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens of one row, at positions `start` to `stop`, that are fed in together."""

    row: Sequence
    start: int
    stop: int

    @property
    def is_last(self) -> bool:
        """Whether the row's next token can be chosen after it."""
        return self.stop == self.row.num_tokens

    def cut(self, size: int) -> "Iterator[Chunk]":
        """It in parts that end at multiples of `size` in the row's own positions: no neighbour decides where."""
        start = self.start
        while start < self.stop:
            stop = min(self.stop, (start // size + 1) * size)
            yield Chunk(self.row, start, stop)
            start = stop


@dataclass(slots=True)
class Step:
    """What one forward runs: a token each of rows that decode, and chunks of others."""

    decoding: list[Sequence] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.decoding or self.chunks)
