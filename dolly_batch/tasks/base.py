"""What a task is to the partition that runs it: for each row a small state machine, from answers to the next questions.

    work = task.begin(subject)
    rows = work.start()            first questions, whose keys are numbered by the work
    rows | Answer = work.take(a)   after each of the engine's answers: more questions (or none yet), or the row's answer

A row's questions depend on nothing but the row: not on its neighbours, and not on the order in which answers come.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from unicodedata import category

from dolly_batch.records import Completion, PartialAnswer, Row, Scores

_BLANK_LETTERS = "\u115f\u1160\u2800\u3164\uffa0"


@dataclass(frozen=True, slots=True)
class Subject:
    """One row's question, as planned. `partial` is an answer to resume, up to `max_new_tokens` of this row's own."""

    instruction: str
    context: str | None
    seed: int = 0
    partial: PartialAnswer | None = None
    max_new_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a row's work puts into the output's columns; `extras` are the task's own columns, in their order."""

    response: str | None
    status: str
    error: str | None
    finish_reason: str | None
    num_completion_tokens: int | None
    num_prompt_tokens: int | None = None
    """The prompt tokens of all its questions, where that is not what was planned."""
    extras: tuple[object, ...] = ()
    num_partial_tokens: int | None = None
    """Tokens taken over from a partial answer, 0 where it was restarted; None where there was none."""


class Work(Protocol):
    """One row on its way."""

    def start(self) -> Sequence[Row]:
        """The first questions, at least one. Their keys are the work's own."""

    def take(self, answer: Completion | Scores) -> Sequence[Row] | Answer:
        """Further questions after an answer, none while others are outstanding; or the row's answer."""


class Task(Protocol):
    """What is done for every row. Frozen and small: it crosses to executors."""

    def begin(self, subject: Subject) -> Work:
        """The work of one row."""

    def prepare(self) -> Sequence[Row]:
        """Questions that are asked once, before any row's; often none."""

    def prepared(self, answers: Sequence[Completion | Scores]) -> "Task":
        """The task with the answers to `prepare`, in its order. Raises EngineError when one of them failed."""


def is_blank(text: str) -> bool:
    """Whether there is nothing to see: white space, control and format characters, and the blank letters alone."""
    return all(c.isspace() or c in _BLANK_LETTERS or category(c) in ("Zs", "Zl", "Zp", "Cc", "Cf") for c in text)


def row_seed(seed: int, row_key: str) -> int:
    """The seed of one row, 63 bits: the same whatever batch, partition or attempt the row runs in."""
    digest = hashlib.sha256(f"{seed}:{row_key}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def call_seed(seed: int, call: int) -> int:
    """The seed of a row's call number `call`; that of the first is the row's own."""
    return seed if call == 0 else row_seed(seed, str(call))
