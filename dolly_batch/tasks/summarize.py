"""Summarize: a text of any length, piece by piece, and the summaries of the pieces together, until one is left.

    text ─ split on sentence borders ─> pieces ─ one call each ─> summaries ─ joined, the same again ─> summary

Nothing is cut: the pieces hold every character of the text, and each summary goes into the next round whole.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from dolly_batch.errors import ConfigError
from dolly_batch.records import Completion, GenerationParams, PromptRow, Row, Scores
from dolly_batch.tasks.arguments import SqlArgument
from dolly_batch.tasks.base import (
    PreparedTask,
    Task,
    TaskInput,
    TaskKind,
    TaskModel,
    TaskResult,
    TaskSettings,
    call_seed,
    check_at_least,
    check_not_empty,
)
from dolly_batch.tasks.generate import completion_of, read_completion

MIN_WORDS = 3
# A sentence ends behind . ! ? or their likes and closing marks, before white space; a line break ends one too.
_SENTENCE = re.compile(r".*?(?:[.!?…][\"'”’)\]]*(?=\s)|[。！？]|\n|\Z)\s*", re.DOTALL)
# With the blank before it, which is where tokenizers put it.
_WORD = re.compile(r"\s*\S+|\s+")
_SLACK_TOKENS = 8  # between a text's own tokens and those it takes inside of a prompt


@dataclass(frozen=True, kw_only=True)
class SummarizeSettings(TaskSettings):
    """Summarize a text of any length, in one sentence or in bullets, of about `max_words` words."""

    kind: Literal["summarize"] = "summarize"
    max_words: int | None = None
    style: Literal["sentence", "bullets"] = "sentence"
    instruction: str | None = None

    def __post_init__(self) -> None:
        check_at_least(self, MIN_WORDS, "max_words")
        check_not_empty(self, "instruction")


class SummarizeKind(TaskKind):
    """`kind: summarize`, and `dolly_summarize(text[, max_words])`."""

    name = "summarize"
    settings = SummarizeSettings
    columns = {"num_pieces": "integer", "num_calls": "integer"}  # noqa: RUF012 - a constant of the kind
    in_prompt = frozenset({"instruction", "style", "max_words"})
    sql_arguments = (SqlArgument("max_words", "number", is_optional=True),)

    def prepare(self, settings: SummarizeSettings, model: TaskModel, params: GenerationParams) -> PreparedTask:
        """Raises ConfigError when `max_new_tokens` cannot hold a summary, or leaves no room for the text."""
        num_new = params.max_new_tokens
        if settings.max_words is not None and settings.max_words > num_new:
            raise ConfigError(
                f"generation.max_new_tokens: {num_new} tokens cannot hold the {settings.max_words} words of "
                f"task.max_words; a word takes one to two, so set it to {2 * settings.max_words} or so"
            )
        instruction = settings.instruction or default_instruction(settings.style, settings.max_words)
        task = Summarize(params, model)
        room = task.room(instruction)
        # Two summaries have to fit one call, or the rounds would never end.
        if room < 2 * num_new + 2:
            if room + num_new < 5:
                raise ConfigError(
                    f"task.instruction: no row can be answered: beside it {room + num_new} of the model's "
                    f"{model.max_positions} tokens are left for a text and its summary; shorten it"
                )
            raise ConfigError(
                f"generation.max_new_tokens: {num_new} leaves {room} of {model.max_positions} tokens for the text, and "
                f"two summaries have to fit there; set it to {(room + num_new - 2) // 3} or less"
            )
        return PreparedTask(
            task=task,
            literals=(instruction,),
            num_reserved=num_new,
            num_new_tokens=num_new,
            shares=not params.do_sample,
            reads_text=True,
            any_length=True,
        )

    def with_arguments(self, settings: SummarizeSettings, arguments: Mapping[str, Any]) -> SummarizeSettings:
        """The call's number of words, where it gives one."""
        words = arguments["max_words"]
        return settings if words is None else replace(settings, max_words=words)


def default_instruction(style: Literal["sentence", "bullets"], max_words: int | None) -> str:
    """What is asked of each piece and of the summaries together."""
    if style == "bullets":
        return "Summarize the text in a few bullet points" + (f", {max_words} words at most." if max_words else ".")
    return "Summarize the text in one sentence" + (f" of at most {max_words} words." if max_words else ".")


@dataclass(frozen=True)
class Summarize(Task):
    """Texts are split by the model's own tokenizer, so that a prompt and its answer fit the model's positions."""

    params: GenerationParams
    model: TaskModel

    def start(self, row: TaskInput) -> "SummarizeRun":
        """The run of one row."""
        return SummarizeRun(self, row)

    def room(self, instruction: str) -> int:
        """Tokens of text that one call takes."""
        prompt = self.model.encoder.encode(instruction, "x")
        return self.model.max_positions - self.params.max_new_tokens - len(prompt) - _SLACK_TOKENS

    def count(self, text: str) -> int:
        """The tokens of a text."""
        return self.model.count(text)


@dataclass
class SummarizeRun:
    """One row: the pieces of this round, by call number, and the summaries that have come back."""

    task: Summarize
    row: TaskInput
    num_pieces: int = 0
    num_calls: int = 0
    num_prompt_tokens: int = 0
    num_completion_tokens: int = 0
    any_cut: bool = False
    _asked: list[int] = field(default_factory=list)
    _summaries: dict[int, str] = field(default_factory=dict)

    def first_requests(self) -> Sequence[Row]:
        """A request for each piece of the text."""
        pieces = split_text(self.row.context or "", self.task.room(self.row.instruction), self.task.count)
        self.num_pieces = len(pieces)
        return self._requests(pieces)

    def on_result(self, result: Completion | Scores) -> Sequence[Row] | TaskResult:
        """After a round's last summary: the next round, or the answer."""
        completion = completion_of(result)
        if completion.failure is not None:
            return self._end(TaskResult(None, completion.failure.status, completion.failure.message, None, None))
        self.num_prompt_tokens += completion.num_prompt_tokens
        self.num_completion_tokens += completion.num_completion_tokens
        self.any_cut |= completion.finish_reason == "length"
        self._summaries[int(completion.key)] = completion.text
        if len(self._summaries) < len(self._asked):
            return ()
        if len(self._asked) == 1:
            return self._end(read_completion(completion))
        return self._next_round()

    def _next_round(self) -> Sequence[Row] | TaskResult:
        texts = [text for call in self._asked if (text := self._summaries[call])]
        if not texts:
            return self._end(TaskResult("", "empty_response", None, "stop", None))
        pieces = split_text("\n".join(texts), self.task.room(self.row.instruction), self.task.count)
        if len(pieces) >= len(self._asked):
            message = f"{len(pieces)} summaries do not get fewer: each is as long as a piece"
            return self._end(TaskResult(None, "invalid_output", message, None, None))
        return self._requests(pieces)

    def _requests(self, pieces: Sequence[str]) -> Sequence[Row]:
        self._asked = list(range(self.num_calls, self.num_calls + len(pieces)))
        self._summaries = {}
        self.num_calls += len(pieces)
        return [
            PromptRow(str(call), self.row.instruction, text, self.task.params, call_seed(self.row.seed, call))
            for call, text in zip(self._asked, pieces, strict=True)
        ]

    def _end(self, last: TaskResult) -> TaskResult:
        """The row's answer: `truncated` when any of its summaries ran into `max_new_tokens`."""
        status = "truncated" if last.status == "ok" and self.any_cut else last.status
        return TaskResult(
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
