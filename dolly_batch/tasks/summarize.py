"""Summarize: a text of any length, piece by piece, and the summaries of the pieces together, until one is left.

    text ─ split on sentence borders ─> pieces ─ one call each ─> summaries ─ joined, the same again ─> summary

Nothing is cut: the pieces hold every character of the text, and each summary goes into the next round whole.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from dolly_batch.prompt import PromptEncoder
from dolly_batch.records import Completion, GenerationParams, PromptRow, Row, Scores
from dolly_batch.tasks.base import Answer, Subject, call_seed
from dolly_batch.tasks.generate import completion_of, read_answer

# A sentence ends behind . ! ? or their likes and closing marks, before white space; a line break ends one too.
_SENTENCE = re.compile(r".*?(?:[.!?…][\"'”’)\]]*(?=\s)|[。！？]|\n|\Z)\s*", re.DOTALL)
_WORD = re.compile(r"\S*\s*", re.DOTALL)
_SLACK_TOKENS = 8  # between a text's own tokens and those it takes inside of a prompt


def default_instruction(style: Literal["sentence", "bullets"], max_words: int | None) -> str:
    """What is asked of each piece and of the summaries together."""
    if style == "bullets":
        return "Summarize the text in a few bullet points" + (f", {max_words} words at most." if max_words else ".")
    return "Summarize the text in one sentence" + (f" of at most {max_words} words." if max_words else ".")


@dataclass(frozen=True)
class Summarize:
    """How texts are split: by the tokenizer in `model_folder`, so that a prompt and its answer fit `max_positions`."""

    params: GenerationParams
    model_folder: str
    max_positions: int

    def begin(self, subject: Subject) -> "SummarizeWork":
        """The work of one row."""
        return SummarizeWork(self, subject)

    def prepare(self) -> Sequence[Row]:
        """Nothing is asked beforehand."""
        return ()

    def prepared(self, answers: Sequence[Completion | Scores]) -> "Summarize":
        """The task as it is."""
        return self

    def room(self, instruction: str) -> int:
        """Tokens of text that one call takes."""
        prompt = _encoder(self.model_folder).encode(instruction, "x")
        return self.max_positions - self.params.max_new_tokens - len(prompt) - _SLACK_TOKENS

    def count(self, text: str) -> int:
        """The tokens of a text."""
        return len(_encoder(self.model_folder).encode_text(text))


@dataclass
class SummarizeWork:
    """One row: the pieces of this round, by call number, and the summaries that have come back."""

    task: Summarize
    subject: Subject
    num_pieces: int = 0
    num_calls: int = 0
    num_prompt_tokens: int = 0
    num_completion_tokens: int = 0
    any_cut: bool = False
    _asked: list[int] = field(default_factory=list)
    _summaries: dict[int, str] = field(default_factory=dict)

    def start(self) -> Sequence[Row]:
        """A question for each piece of the text."""
        pieces = split_text(self.subject.context or "", self.task.room(self.subject.instruction), self.task.count)
        self.num_pieces = len(pieces)
        return self._ask(pieces)

    def take(self, answer: Completion | Scores) -> Sequence[Row] | Answer:
        """After a round's last summary: the next round, or the answer."""
        completion = completion_of(answer)
        if completion.failure is not None:
            return self._answer(Answer(None, completion.failure.status, completion.failure.message, None, None))
        self.num_prompt_tokens += completion.num_prompt_tokens
        self.num_completion_tokens += completion.num_completion_tokens
        self.any_cut |= completion.finish_reason == "length"
        self._summaries[int(completion.key)] = completion.text
        if len(self._summaries) < len(self._asked):
            return ()
        if len(self._asked) == 1:
            return self._answer(read_answer(completion))
        return self._next_round()

    def _next_round(self) -> Sequence[Row] | Answer:
        texts = [text for call in self._asked if (text := self._summaries[call])]
        if not texts:
            return self._answer(Answer("", "empty_response", None, "stop", None))
        pieces = split_text("\n".join(texts), self.task.room(self.subject.instruction), self.task.count)
        if len(pieces) >= len(self._asked):
            message = f"{len(pieces)} summaries do not get fewer: each is as long as a piece"
            return self._answer(Answer(None, "invalid_output", message, None, None))
        return self._ask(pieces)

    def _ask(self, pieces: Sequence[str]) -> Sequence[Row]:
        self._asked = list(range(self.num_calls, self.num_calls + len(pieces)))
        self._summaries = {}
        self.num_calls += len(pieces)
        return [
            PromptRow(str(call), self.subject.instruction, text, self.task.params, call_seed(self.subject.seed, call))
            for call, text in zip(self._asked, pieces, strict=True)
        ]

    def _answer(self, last: Answer) -> Answer:
        """The row's answer: `truncated` when any of its summaries ran into `max_new_tokens`."""
        status = "truncated" if last.status == "ok" and self.any_cut else last.status
        return Answer(
            last.response,
            status,
            last.error,
            last.finish_reason,
            None if last.response is None else self.num_completion_tokens,
            self.num_prompt_tokens or None,
            (self.num_pieces, self.num_calls),
        )


def split_text(text: str, max_tokens: int, count: Callable[[str], int]) -> list[str]:
    """Split a text into pieces of at most `max_tokens` tokens, joined again they are the text, white space and all.

    On sentence borders; a sentence longer than a piece between words, a word longer than a piece between characters.
    """
    pieces: list[str] = []
    current, tokens = "", 0
    for part, num_tokens in _parts(text, max_tokens, count):
        # Parts counted apart have at least as many tokens as together, but for the odd merge across a border.
        if current and tokens + num_tokens > max_tokens:
            pieces.append(current)
            current, tokens = "", 0
        current, tokens = current + part, tokens + num_tokens
    return [*pieces, current] if current or not pieces else pieces


def _parts(text: str, max_tokens: int, count: Callable[[str], int]) -> Iterator[tuple[str, int]]:
    for sentence in _found(_SENTENCE, text):
        if (num_tokens := count(sentence)) <= max_tokens:
            yield sentence, num_tokens
            continue
        for word in _found(_WORD, sentence):
            if (num_tokens := count(word)) <= max_tokens:
                yield word, num_tokens
                continue
            step = max(1, max_tokens // 8)  # a character has at most 4 bytes, or 8 after normalization
            for start in range(0, len(word), step):
                yield word[start : start + step], count(word[start : start + step])


def _found(pattern: re.Pattern[str], text: str) -> Iterator[str]:
    return (match[0] for match in pattern.finditer(text) if match[0])


@lru_cache(maxsize=4)
def _encoder(model_folder: str) -> PromptEncoder:
    return PromptEncoder.from_folder(model_folder)
