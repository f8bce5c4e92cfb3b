"""A benchmark's question as scoring requests: what is asked of a model, and which choice is right."""

from collections.abc import Sequence
from dataclasses import dataclass


class RowFault(ValueError):
    """A row that does not fit its benchmark. The message says what is wrong with it, and quotes none of its text."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One context and the continuations that are scored after it; `choices` are their indexes in the question."""

    context: str
    continuations: tuple[str, ...]
    choices: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Question:
    """One question of a benchmark.

    `requests` holds a (context, continuation) pair for each choice, in the order of the choices. `num_chars` is the
    length of each choice, which acc_norm divides by, or None where the benchmark has no acc_norm. `gold` is the index
    of the right choice.
    """

    requests: tuple[tuple[str, str], ...]
    num_chars: tuple[int, ...] | None
    gold: int

    @classmethod
    def of(cls, requests: Sequence[tuple[str, str]], num_chars: Sequence[int] | None, gold: int) -> "Question":
        """Check and make one. Raises RowFault for fewer than two choices, an empty text, a gold that is no choice."""
        if len(requests) < 2:
            raise RowFault(f"{len(requests)} choices, expected 2 or more")
        if not 0 <= gold < len(requests):
            raise RowFault(f"the right choice is number {gold}, but there are {len(requests)}")
        if num_chars is not None and (len(num_chars) != len(requests) or min(num_chars) < 1):
            raise RowFault("each choice must have a length of 1 or more: an empty one cannot be scored")
        pairs = tuple(_moved(context, continuation) for context, continuation in requests)
        if not all(context and continuation for context, continuation in pairs):
            raise RowFault("a context or a continuation is empty")
        return cls(pairs, None if num_chars is None else tuple(num_chars), gold)

    def prompts(self) -> tuple[Prompt, ...]:
        """The requests grouped by context, so that a model reads each context once."""
        choices: dict[str, list[int]] = {}
        for choice, (context, _) in enumerate(self.requests):
            choices.setdefault(context, []).append(choice)
        return tuple(
            Prompt(context, tuple(self.requests[choice][1] for choice in indexes), tuple(indexes))
            for context, indexes in choices.items()
        )


def _moved(context: str, continuation: str) -> tuple[str, str]:
    """White space at the context's end belongs to the continuation, as the harness has it (`_encode_pair`).

    Then the ids of the two, encoded separately, are the ids of the whole text: no token spans both, because a
    byte-level BPE joins a space with the word after it.
    """
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation
