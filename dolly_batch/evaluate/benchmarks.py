"""The seven benchmarks of Dolly's model card: a row of a data set becomes a question.

Contexts and continuations are those of EleutherAI's lm-evaluation-harness (package lm-eval 0.4.13, zero-shot; its
`tasks/*/*.yaml` and the functions next to them), from rows as the harness reads them. A row of a request file, which
holds the pairs themselves, is taken as it is. The card does not name its metric: it is inferred, from which of the two
is usual for each benchmark.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dolly_batch.evaluate.question import Question, RowFault

Row = Mapping[str, Any]
Metric = Literal["acc", "acc_norm"]

_REQUESTS = ("task", "requests", "norm_len", "gold")


@dataclass(frozen=True)
class Benchmark:
    """One benchmark: how its rows are read, the metric that the card shows, and the size of the split it is taken on.

    `has_acc_norm` says whether the harness reports acc_norm for it.
    """

    name: str
    read: Callable[[Row], Question]
    card_metric: Metric
    card_split: str
    card_num_questions: int

    @property
    def has_acc_norm(self) -> bool:
        """Whether the choices' lengths matter: not where each choice is scored on the same continuation."""
        return self.card_metric == "acc_norm"


def read_row(benchmark: Benchmark, row: object) -> Question:
    """Make a question of a row of the benchmark's data set, or of a request file.

    Raises RowFault for a row that is neither.
    """
    if not isinstance(row, Mapping):
        raise RowFault(f"a JSON object was expected, found {type(row).__name__}")
    if "requests" in row:
        return _read_requests(benchmark, row)
    return benchmark.read(row)


def _read_requests(benchmark: Benchmark, row: Row) -> Question:
    missing = [key for key in _REQUESTS if key not in row]
    if missing:
        raise RowFault(f"a row with `requests` must have {', '.join(_REQUESTS)}; it lacks {', '.join(missing)}")
    if row["task"] != benchmark.name:
        raise RowFault(f"`task` is {_word(row['task'])}, expected {benchmark.name!r}")
    pairs = _list(row, "requests", list)
    if not all(len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in pairs):
        raise RowFault("`requests` must hold [context, continuation] pairs of strings")
    num_chars = None if row["norm_len"] is None else _list(row, "norm_len", int)
    if benchmark.has_acc_norm and num_chars is None:
        raise RowFault("`norm_len` is null, but the benchmark is scored by acc_norm")
    return Question.of([(pair[0], pair[1]) for pair in pairs], num_chars, _integer(row, "gold"))


def _openbookqa(row: Row) -> Question:
    return _one_context(_text(row, "question_stem"), *_labelled(row))


def _arc(row: Row) -> Question:
    return _one_context(f"Question: {_text(row, 'question')}\nAnswer:", *_labelled(row))


def _piqa(row: Row) -> Question:
    choices = [_text(row, "sol1"), _text(row, "sol2")]
    return _one_context(f"Question: {_text(row, 'goal')}\nAnswer:", choices, _integer(row, "label"))


def _hellaswag(row: Row) -> Question:
    beginning = _text(row, "ctx_a") + " " + _text(row, "ctx_b").capitalize()
    context = _without_brackets(_text(row, "activity_label") + ": " + beginning)
    choices = [_without_brackets(ending) for ending in _list(row, "endings", str)]
    return _one_context(context, choices, _integer(row, "label"))


def _boolq(row: Row) -> Question:
    context = f"{_text(row, 'passage')}\nQuestion: {_text(row, 'question')}?\nAnswer:"
    question = _one_context(context, ["no", "yes"], _integer(row, "label"))
    return Question(question.requests, None, question.gold)


def _winogrande(row: Row) -> Question:
    """Each option fills the blank in turn, and the text after the blank is scored."""
    before, blank, after = _text(row, "sentence").partition("_")
    if not blank:
        raise RowFault("`sentence` has no `_`, the blank to be filled")
    answer = _text(row, "answer")
    if answer not in ("1", "2"):
        raise RowFault(f"`answer` is {_word(answer)}, expected '1' or '2' (the test split has no answers)")
    continuation = " " + after.strip()
    pairs = [(before + _text(row, option), continuation) for option in ("option1", "option2")]
    return Question.of(pairs, None, int(answer) - 1)


def _one_context(context: str, choices: Sequence[str], gold: int) -> Question:
    """A question whose choices are scored after one context, each behind a space that its length does not count."""
    return Question.of([(context, " " + choice) for choice in choices], [len(choice) for choice in choices], gold)


def _labelled(row: Row) -> tuple[list[str], int]:
    """The choices of a row with `choices: {text, label}`, and the index of its `answerKey` among the labels."""
    choices = row.get("choices")
    if not isinstance(choices, Mapping):
        raise RowFault("`choices` must be an object with the lists `text` and `label`")
    texts, labels, answer = _list(choices, "text", str), _list(choices, "label", str), _text(row, "answerKey").lstrip()
    if len(texts) != len(labels) or answer not in labels:
        labelled = ", ".join(labels) if all(re.fullmatch(r"\w{1,2}", label) for label in labels) else "otherwise"
        raise RowFault(f"`answerKey` is {_word(answer)}, {len(texts)} choices are labelled {labelled}")
    return texts, labels.index(answer)


def _word(value: object) -> str:
    """A cell for a message: a word that could be a key. More of a row is not told."""
    text = str(value)
    return repr(text) if re.fullmatch(r"\w{0,12}", text) else f"a text of {len(text)} characters"


def _without_brackets(text: str) -> str:
    """The harness' cleaning of HellaSwag, whose WikiHow part is full of tags in brackets."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def _text(row: Row, key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        problem = "missing" if key not in row else f"{type(value).__name__}, expected a string"
        raise RowFault(f"`{key}` is {problem}; the row has {', '.join(sorted(map(str, row)))[:200]}")
    return value


def _integer(row: Row, key: str) -> int:
    """An integer, or one in a string, as data sets have their labels."""
    value = row.get(key)
    if isinstance(value, str) and re.fullmatch(r"\d+", value):
        return int(value)
    if type(value) is not int:
        problem = "missing" if key not in row else f"{_word(value)}, expected an integer"
        raise RowFault(f"`{key}` is {problem}; the row has {', '.join(sorted(map(str, row)))[:200]}")
    return value


def _list(row: Row, key: str, kind: type) -> list[Any]:
    value = row.get(key)
    if not isinstance(value, list) or not all(type(item) is kind for item in value):
        raise RowFault(f"`{key}` must be a list of {kind.__name__}")
    return value


BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark("openbookqa", _openbookqa, "acc_norm", "test", 500),
        Benchmark("arc_easy", _arc, "acc_norm", "test", 2_376),
        Benchmark("winogrande", _winogrande, "acc", "validation", 1_267),
        Benchmark("hellaswag", _hellaswag, "acc_norm", "validation", 10_042),
        Benchmark("arc_challenge", _arc, "acc_norm", "test", 1_172),
        Benchmark("piqa", _piqa, "acc_norm", "validation", 1_838),
        Benchmark("boolq", _boolq, "acc", "validation", 3_270),
    )
}
"""By name, in the order of the card's columns."""
