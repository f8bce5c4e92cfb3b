"""What benchmarks/quality.py measures of one loaded model, on rows of real tables."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.tables import Labelled
from dolly_batch.config.task import check_task
from dolly_batch.engine.protocol import Engine
from dolly_batch.evaluate.accuracy import mean_of, share_of
from dolly_batch.evaluate.label_scores import LabelScore, score_labels
from dolly_batch.evaluate.rouge import KINDS as ROUGES
from dolly_batch.evaluate.rouge import load_scorer, sum_rouge
from dolly_batch.host.encoding import RowEncoder
from dolly_batch.records import Completion, Failure, GenerationParams, Row, Scores
from dolly_batch.spark.plan.prepared_task import prepare_settings
from dolly_batch.tasks import KINDS
from dolly_batch.tasks.base import PreparedTask, TaskInput, TaskModel, TaskResult
from dolly_batch.tasks.classify import Classify
from dolly_batch.tasks.generate import Generate
from dolly_batch.tasks.queue import QueuedRow, answer_rows, warm_up

FREE_TEXT = GenerationParams(max_new_tokens=12, do_sample=False)
SUMMARY = GenerationParams(max_new_tokens=64, do_sample=False)
OBJECT = GenerationParams(max_new_tokens=96, do_sample=False)
THINGS = ["person", "place", "organization", "work", "event", "other"]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 60, "description": "what the text is about"},
        "kind": {"enum": THINGS, "description": "what it is"},
        "year": {"type": "integer", "minimum": 0, "maximum": 2100, "description": "a year that the text names"},
        "numbers": {"type": "array", "items": {"type": "number"}, "maxItems": 3},
    },
    "required": ["name", "kind"],
}


@dataclass(frozen=True)
class Client:
    """A loaded engine, asked as an executor asks its host."""

    engine: Engine
    folder: Path
    known: dict[Row, Any] = field(default_factory=dict)

    @property
    def model(self) -> TaskModel:
        """What tasks need to know of the model."""
        return TaskModel(str(self.folder), self.engine.max_positions)

    def prepare(self, params: GenerationParams = FREE_TEXT, **task: Any) -> PreparedTask:
        """The task of a job file's section."""
        settings = check_task(task, "benchmarks/quality.py")
        return prepare_settings(KINDS[settings.kind], settings, self.model, params)

    def answer(self, take: Callable[[int], Sequence[Row]]) -> Iterator[Completion | Scores]:
        """One result for each row that `take` gives."""
        encoder = RowEncoder(self.engine.encoder, self.engine.max_positions)
        while rows := take(512):
            for request in encoder.encode(rows):
                assert not isinstance(request, Failure)
                self.engine.submit(request)
            while self.engine.num_unfinished:
                yield from self.engine.step()

    def ask(self, prepared: PreparedTask, texts: Sequence[str]) -> list[TaskResult]:
        """The results of a task that reads texts, in their order."""
        task = warm_up(self, prepared.task)
        inputs = [TaskInput(prepared.literals[0], text) for text in texts]
        found = dict(answer_rows(self, (QueuedRow(number, task, row) for number, row in enumerate(inputs))))
        return [found[number] for number in range(len(texts))]

    def scores(self, task: Classify, texts: Sequence[str]) -> list[Scores]:
        """The scores of the labels behind each text, before they are read; kept, for the next task that reads them."""
        asked = [task.request(text, task.instruction, text) for text in texts]
        rows: list[Row] = [row for row in dict.fromkeys(asked) if row not in self.known]
        results = {result.key: result for result in self.answer(lambda num: [rows.pop(0) for _ in rows[:num]])}
        self.known.update({row: results[row.key] for row in asked if row not in self.known})
        return [self.known[row] for row in asked]


def classify(client: Client, table: Labelled) -> list[str]:
    """A line: labels and free text, on the same rows."""
    default = labelling(client, table)
    prompt = PreparedTask(Generate(FREE_TEXT), (default.instruction,), 12, 12, shares=True, reads_text=True)
    named = [named_label(result.response or "", table.labels) for result in client.ask(prompt, table.texts)]
    scores = client.scores(default, table.texts)
    most = Counter(table.gold).most_common(1)[0][1]
    return [
        table.name,
        f"{len(table.texts)}",
        f"{len(table.labels)}",
        percent(most, len(table.gold)),
        accuracy(table, named),
        f"{named.count(None) / len(named):.0%}",
        accuracy(table, chosen(client, default, scores)),
        accuracy(table, chosen(client, labelling(client, table, calibration=table.calibrating), scores)),
    ]


def options(client: Client, table: Labelled) -> Iterator[list[str]]:
    """A line for each option of label scores."""
    for with_end in (True, False):
        scores = client.scores(labelling(client, table, with_end=with_end), table.texts)
        for calibration in ("none", "contextual", "16 texts"):
            texts = table.calibrating if calibration == "16 texts" else calibration
            for normalization in ("sum", "per_token", "per_char"):
                settings = {"with_end": with_end, "normalization": normalization, "calibration": texts}
                found = chosen(client, labelling(client, table, **settings), scores)
                said = ["yes" if with_end else "no", normalization, calibration]
                yield [table.name, *said, accuracy(table, found), f"{macro_f1(table, found):.1%}"]


def labelling(client: Client, table: Labelled, **settings: Any) -> Classify:
    """The task for a table's labels."""
    task = client.prepare(kind="classify", labels=table.labels, **settings).task
    assert isinstance(task, Classify)
    return task


def chosen(client: Client, task: Classify, scores: Sequence[Scores]) -> list[str | None]:
    """The labels that the task reads from scores."""
    texts = client.scores(task, task.calibration)
    ready = task.warmed_up(texts)
    return [ready.choose(found.log_probs).response for found in scores]


def summarize(client: Client, texts: Sequence[str]) -> list[TaskResult]:
    """Our summaries, in the default style."""
    return client.ask(client.prepare(SUMMARY, kind="summarize"), texts)


def rouge(golds: Sequence[str], texts: Sequence[str | None]) -> list[str]:
    """ROUGE-1, ROUGE-2 and ROUGE-L, F-measures in percent with their standard errors."""
    sums = sum_rouge(load_scorer(), zip(golds, texts, strict=True))
    means = [mean_of(sums[kind], sums[f"{kind}_squares"], len(golds)) for kind in ROUGES]
    return [f"{100 * mean.value:.1f} ± {100 * (mean.stderr or 0):.1f}" for mean in means]


def piped(client: Client, texts: Sequence[str]) -> list[str]:
    """The summaries of Hugging Face's pipeline in float32: the same prompts, one by one."""
    import torch
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, pipeline

    torch.set_num_threads(2)
    encoder: Any = client.engine.encoder
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_file=str(client.folder / "tokenizer.json"))  # type: ignore[no-untyped-call]
    model = AutoModelForCausalLM.from_pretrained(client.folder, dtype=torch.float32)
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer)
    instruction = client.prepare(SUMMARY, kind="summarize").literals[0]
    prompts = [tokenizer.decode(encoder.encode(instruction, text)) for text in texts]
    stop = {"eos_token_id": list(encoder.stop_ids), "pad_token_id": encoder.stop_ids[0]}
    params = {"max_new_tokens": SUMMARY.max_new_tokens, "do_sample": False, "return_full_text": False}
    found: list[Any] = [pipe(prompt, **params, **stop) for prompt in prompts]
    marks: list[Any] = [tokenizer.decode([token]) for token in encoder.stop_ids]
    return [_unmarked(answers[0]["generated_text"], marks) for answers in found]


def _unmarked(text: str, marks: Sequence[str]) -> str:
    """A pipeline's text as ours is: without the token that ended it, and without white space at its ends."""
    return text.removesuffix(next((mark for mark in marks if text.endswith(mark)), "")).strip()


def extract(client: Client, texts: Sequence[str]) -> list[str]:
    """A line: how rows ended, and what breaks the schema."""
    results = client.ask(client.prepare(OBJECT, kind="extract", schema=SCHEMA), texts)
    statuses = Counter(result.status for result in results)
    answers = [result.response for result in results if result.response is not None]
    ended = ", ".join(f"{count} {status}" for status, count in statuses.most_common())
    return [f"{len(texts):,}", ended, f"{sum(not is_valid(answer) for answer in answers)}"]


def is_valid(text: str) -> bool:
    """Whether an answer is an object of SCHEMA, checked field by field."""
    try:
        found = json.loads(text)
    except ValueError:
        return False
    if not isinstance(found, dict) or [*found] != ["name", "kind", "year", "numbers"]:
        return False
    name, kind, year, numbers = found.values()
    return (
        isinstance(name, str)
        and len(name) <= 60
        and kind in THINGS
        and (year is None or (type(year) is int and 0 <= year <= 2100))
        and (numbers is None or (isinstance(numbers, list) and len(numbers) <= 3 and all(map(_is_number, numbers))))
    )


def _is_number(value: Any) -> bool:
    return value is None or type(value) in (int, float)


def named_label(answer: str, labels: Sequence[str]) -> str | None:
    """The label that free text is, or names first; None where it names none."""
    said = plain(answer)
    whole = next((label for label in labels if plain(label) == said), None)
    found = [(place, -len(label), label) for label in labels if (place := _place(plain(label), said)) is not None]
    return whole or (min(found)[2] if found else None)


def _place(label: str, text: str) -> int | None:
    match = re.search(rf"\b{re.escape(label)}\b", text)
    return match and match.start()


def plain(text: str) -> str:
    """Lower case, with single blanks for whatever is no letter or digit."""
    return re.sub(r"[\W_]+", " ", text.lower()).strip()


def accuracy(table: Labelled, chosen: Sequence[str | None]) -> str:
    """The share of right labels and its standard error."""
    return percent(sum(a == b for a, b in zip(table.gold, chosen, strict=True)), len(table.gold))


def percent(right: int, num: int) -> str:
    """`right` of `num` in percent, with its standard error."""
    share = share_of(right, num)
    return f"{100 * share.value:.1f} ± {100 * (share.stderr or 0):.1f}"


def macro_f1(table: Labelled, chosen: Sequence[str | None]) -> float:
    """The plain mean of F1 over gold labels."""
    gold, said = Counter(table.gold), Counter(chosen)
    right = Counter(a for a, b in zip(table.gold, chosen, strict=True) if a == b)
    return score_labels([LabelScore(name, gold[name], said[name], right[name]) for name in gold], 0).macro_f1
