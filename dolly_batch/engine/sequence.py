"""A request on its way through an engine."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from dolly_batch.engine.grammar import Constraint
from dolly_batch.records import Failure, FinishReason, Request


@dataclass(eq=False)
class SequenceState:
    """A request and what has been generated for it."""

    request: Request
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    failure: Failure | None = None
    constraint: Constraint | None = None
    num_partial: int = 0

    @property
    def is_open(self) -> bool:
        """Whether the sequence still takes tokens."""
        return self.finish_reason is None and self.failure is None

    def append(self, token_id: int, stop_ids: Collection[int]) -> None:
        """Append the next token, or end the sequence: at the stop token, or at `max_new_tokens`.

        A partial answer is appended whole when the first token is the one it begins with. Behind the token come those
        that its grammar leaves no choice of: the next forward runs them all at once, like a prompt.
        """
        if token_id in stop_ids:
            self.finish_reason = "stop"
            return
        partial_ids = self.request.partial_ids
        if partial_ids and not self.token_ids and token_id == partial_ids[0]:
            self.num_partial = len(partial_ids)
            self.token_ids.extend(partial_ids)
        else:
            self.token_ids.append(token_id)
        if self.constraint is not None:
            self.failure = self.constraint.take(token_id)
            self._append_forced(self.constraint, stop_ids)
        if self.is_open and len(self.token_ids) == self.request.params.max_new_tokens:
            self.finish_reason = "length"

    def _append_forced(self, constraint: Constraint, stop_ids: Collection[int]) -> None:
        for token_id in () if self.failure else constraint.forced():
            if len(self.token_ids) == self.request.params.max_new_tokens or not self.is_open:
                return
            if token_id in stop_ids:
                self.finish_reason = "stop"
                return
            self.token_ids.append(token_id)
            self.failure = constraint.take(token_id)

    def restart(self) -> None:
        """Forget the answer so far. The same tokens will come again: they depend on prompt, seed and position alone."""
        self.token_ids.clear()
        self.num_partial = 0
        self.finish_reason = self.failure = None
        if self.constraint is not None:
            self.constraint.restart()


State = TypeVar("State", bound=SequenceState)


def append_tokens(
    sequences: Sequence[State], token_ids: Sequence[int], sound: Sequence[bool], stop_ids: Collection[int]
) -> list[State]:
    """Append each open sequence's next token; return the sequences that ended with it.

    A sequence whose logits were not sound (a NaN, an infinity) fails.
    """
    ended: list[State] = []
    for sequence, token_id, is_sound in zip(sequences, token_ids, sound, strict=True):
        if not sequence.is_open:
            continue
        if is_sound:
            sequence.append(token_id, stop_ids)
        else:
            number = len(sequence.token_ids) + 1
            sequence.failure = Failure("model_error", f"NaN or infinite logits at answer token {number}")
        if not sequence.is_open:
            ended.append(sequence)
    return ended
