"""Inside one task of a query, on an executor: a SQL function's rows to the engine host, and back in their order."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, Literal

import pandas as pd

from dolly_batch.errors import ConfigError
from dolly_batch.host.address import HostAddress
from dolly_batch.host.retry import RetryingClient
from dolly_batch.prompt import PromptEncoder
from dolly_batch.records import Completion, EngineSpec, GenerationParams, Row, Scores
from dolly_batch.spark.generate.device import task_device
from dolly_batch.spark.generate.shard import ask_first
from dolly_batch.tasks import classify, extract, summarize
from dolly_batch.tasks.base import Answer, Subject, Task, Work, is_blank, row_seed
from dolly_batch.tasks.generate import Generate
from dolly_batch.tasks.schema.ddl import parse_ddl
from dolly_batch.tasks.schema.json_schema import bound_schema, check_schema
from dolly_batch.tasks.truncate import fill, make_fit

MIN_LABELS, MAX_LABELS = 2, 500
MIN_WORDS = 3


@dataclass(frozen=True)
class Ways:
    """How the tasks are done where a call's arguments say nothing, as a job's `task` section has it."""

    examples: str = ""
    """What stands before each instruction of dolly_generate."""
    label_instruction: str | None = None
    none_below: float | None = None
    normalization: Literal["sum", "per_token", "per_char"] = "sum"
    calibrated: bool = False
    with_end: bool = True
    summary_instruction: str | None = None
    summary_style: Literal["sentence", "bullets"] = "sentence"
    max_words: int | None = None
    field_instruction: str | None = None
    max_chars: int | None = None
    max_items: int | None = None


@dataclass(frozen=True)
class Caller:
    """What crosses to the executors for one registered model."""

    spec: EngineSpec
    params: GenerationParams
    max_positions: int
    seed: int
    long_prompt: str
    ways: Ways = Ways()


@dataclass(frozen=True)
class Question:
    """One row's arguments as a task, its texts, and the tokens that have to stay free behind the prompt.

    Where a prompt is cut, the values are, and the context; never the literals.
    """

    task: Task
    literals: tuple[str, ...]
    values: tuple[str, ...]
    context: str | None
    num_reserved: int
    any_length: bool = False

    @property
    def instruction(self) -> str:
        """The literals with the values between them."""
        return fill(self.literals, self.values)


def call(caller: Caller, ask: Callable[..., Question], batches: Iterator[Any]) -> Iterator[list[Answer | None]]:
    """The answers of each batch, in its order; None for a row whose text is null.

    `ask(caller, *arguments)` makes a row's question, and raises ConfigError for arguments that make none.
    """
    with ExitStack() as stack:
        client: RetryingClient | None = None
        prepared: dict[Task, Task] = {}
        for batch in batches:
            columns = batch if isinstance(batch, tuple) else (batch,)
            answers: dict[int, Answer] = {}
            begun: dict[int, tuple[Task, Subject]] = {}
            for number, arguments in enumerate(zip(*columns, strict=True)):
                found = _begin(caller, ask, arguments)
                if isinstance(found, Answer):
                    answers[number] = found
                elif found is not None:
                    begun[number] = found
            if begun and client is None:  # a batch without a question needs no model
                place = HostAddress.of_this_executor(task_device())
                client = stack.enter_context(RetryingClient(caller.spec, place))
            if client is not None:
                tasks = {
                    task for task, _ in begun.values()
                }  # of many labels or schemas no more than a batch's are kept
                prepared = {task: prepared.get(task) or ask_first(client, task) for task in tasks}
                works = {number: prepared[task].begin(subject) for number, (task, subject) in begun.items()}
                answers |= answer_all(client, works)
            yield [answers.get(number) for number in range(len(columns[0]))]


def answer_all(client: RetryingClient, works: dict[int, Work]) -> dict[int, Answer]:
    """Work on some rows to their end, whatever the order in which they end."""
    waiting = iter(works.items())
    ready: list[Row] = []
    answers: dict[int, Answer] = {}

    def add(number: int, questions: Sequence[Row]) -> None:
        ready.extend(replace(question, key=f"{number}/{question.key}") for question in questions)

    def take(num_questions: int) -> list[Row]:
        while len(ready) < num_questions and (begun := next(waiting, None)) is not None:
            add(begun[0], begun[1].start())
        taken = ready[:num_questions]
        del ready[:num_questions]
        return taken

    for found in client.answer(take):
        number, _, key = found.key.partition("/")
        if int(number) in answers:
            continue  # the row has failed meanwhile, by another of its questions
        result = works[int(number)].take(_with_key(found, key))
        if isinstance(result, Answer):
            answers[int(number)] = result
        else:
            add(int(number), result)
    return answers


def _with_key(found: Completion | Scores, key: str) -> Completion | Scores:
    return replace(found, key=key)


def _begin(
    caller: Caller, ask: Callable[..., Question], arguments: Sequence[Any]
) -> tuple[Task, Subject] | Answer | None:
    """A row's task and question; its answer where it cannot run; None for a null text."""
    text = arguments[0]
    if text is None or (not isinstance(text, str) and pd.isna(text)):
        return None
    try:
        question = ask(caller, *arguments)
        if is_blank(text):
            return _fault("empty_instruction", "the text is blank")
        encoder = _encoder(caller.spec.model_folder)
        limit = caller.max_positions - question.num_reserved
        subject = Subject(question.instruction, question.context, row_seed(caller.seed, text))
        if question.any_length:
            return question.task, subject
        counted = encoder.count(question.instruction, question.context, caller.max_positions)
        if counted.num_tokens <= limit:
            return question.task, subject
        if caller.long_prompt == "error":
            return _fault("too_long", f"the prompt has over {limit} tokens, which is all that fits before the answer")
        return _begin_cut(caller, question, subject, limit)
    except ConfigError as error:
        return _fault("invalid_arguments", str(error))
    except UnicodeEncodeError:
        return _fault("bad_encoding", "the text holds half of a surrogate pair")


def _begin_cut(caller: Caller, question: Question, subject: Subject, limit: int) -> tuple[Task, Subject] | Answer:
    literals, values = question.literals, question.values
    side: Any = caller.long_prompt
    cut = make_fit(_encoder(caller.spec.model_folder), literals, values, subject.context, limit, side)
    if not cut.fits:
        return _fault("too_long", f"the prompt has over {limit} tokens without the text")
    return question.task, replace(subject, instruction=cut.instruction, context=cut.context)


def _fault(status: str, message: str) -> Answer:
    return Answer(None, status, message, None, None)


def result_columns(answer: Answer | None, with_confidence: bool) -> dict[str, Any]:
    """A row of a `try_` function: `error` is null exactly for rows that are ok."""
    if answer is None:
        columns: dict[str, Any] = {"response": None, "error": "null_instruction: the text is null"}
    else:
        error = None if answer.status == "ok" else ": ".join(filter(None, (answer.status, answer.error)))
        columns = {"response": answer.response, "error": error}
    if with_confidence:
        columns["confidence"] = answer.extras[0] if answer is not None and answer.extras else None
    return columns


def ask_generate(caller: Caller, instruction: str, context: Any = None) -> Question:
    """dolly_generate(instruction[, context])."""
    text = context if isinstance(context, str) and context else None
    literals = (caller.ways.examples, "")
    return Question(Generate(caller.params), literals, (instruction,), text, caller.params.max_new_tokens)


def ask_classify(caller: Caller, text: str, labels: Any) -> Question:
    """dolly_classify(text, array(label, ...))."""
    names = () if labels is None else tuple(labels)
    if not all(isinstance(name, str) and name and name == name.strip() for name in names):
        raise ConfigError("labels must be strings, none of them null, empty, or with white space around it")
    if len(set(names)) != len(names):
        raise ConfigError("a label is given twice")
    if not MIN_LABELS <= len(names) <= MAX_LABELS:
        raise ConfigError(f"{len(names)} labels; give {MIN_LABELS} to {MAX_LABELS}")
    task, num_reserved = _classify(caller, names)
    return Question(task, (task.instruction,), (), text, num_reserved)


@lru_cache(maxsize=64)
def _classify(caller: Caller, labels: tuple[str, ...]) -> tuple[classify.Classify, int]:
    encoder, ways = _encoder(caller.spec.model_folder), caller.ways
    encode = encoder.encode_responses if ways.with_end else encoder.encode_texts
    lengths = dict(zip(labels, map(len, encode(labels)), strict=True))
    task = classify.Classify(
        labels=labels,
        divisors=classify.divisors(labels, ways.normalization, lengths.__getitem__),
        instruction=ways.label_instruction
        or classify.default_instruction(labels, partial(_count, caller), caller.max_positions),
        none_below=ways.none_below,
        with_end=ways.with_end,
        calibrated=ways.calibrated,
    )
    return task, max(lengths.values())


def ask_summarize(caller: Caller, text: str, max_words: Any = None) -> Question:
    """dolly_summarize(text[, max_words])."""
    words = caller.ways.max_words if max_words is None or pd.isna(max_words) else int(max_words)
    num_new = caller.params.max_new_tokens
    if words is not None and not MIN_WORDS <= words <= num_new:
        raise ConfigError(f"max_words is {words}; give {MIN_WORDS} to {num_new}, which is max_new_tokens")
    task = summarize.Summarize(caller.params, caller.spec.model_folder, caller.max_positions)
    ways = caller.ways
    instruction = ways.summary_instruction or summarize.default_instruction(ways.summary_style, words)
    if task.room(instruction) < 2 * num_new + 2:
        raise ConfigError("max_new_tokens leaves no room for two summaries in one prompt; register with a smaller one")
    return Question(task, (instruction,), (), text, num_new, any_length=True)


def ask_extract(caller: Caller, text: str, schema: Any) -> Question:
    """dolly_extract(text, schema)."""
    if not isinstance(schema, str):
        raise ConfigError("the schema must be a string: Spark DDL, or a JSON Schema")
    task, instruction = _extract(caller, schema)
    return Question(task, (instruction,), (), text, caller.params.max_new_tokens)


@lru_cache(maxsize=64)
def _extract(caller: Caller, schema: str) -> tuple[extract.Extract, str]:
    ways = caller.ways
    try:
        found = check_schema(json.loads(schema)) if schema.lstrip().startswith("{") else parse_ddl(schema)
    except ValueError as error:
        raise ConfigError(f"the schema is not readable JSON: {error}") from error
    bounded = bound_schema(found, caller.params.max_new_tokens, partial(_count, caller), ways.max_chars, ways.max_items)
    instruction = ways.field_instruction or extract.default_instruction(bounded)
    return extract.Extract(caller.params, extract.grammar_of(bounded)), instruction


def _count(caller: Caller, text: str) -> int:
    return len(_encoder(caller.spec.model_folder).encode_text(text))


@lru_cache(maxsize=4)
def _encoder(model_folder: str) -> PromptEncoder:
    return PromptEncoder.from_folder(model_folder)
