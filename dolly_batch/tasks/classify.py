"""Classify: each label is scored as the model's response, off one shared prompt; the likeliest is the answer.

Contextual calibration divides by how likely the labels are where there is nothing to classify (Zhao et al. 2021,
"Calibrate Before Use"): the mean of their probabilities over content-free texts, asked once per shard.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from dolly_batch.errors import ConfigError, EngineError
from dolly_batch.records import Completion, Row, ScoreRow, Scores
from dolly_batch.tasks.base import Answer, Subject

CONTENT_FREE = ("N/A", "[MASK]", "none")
MAX_LIST_SHARE = 0.5  # of the model's positions: a longer list of labels would leave too little for the text


@dataclass(frozen=True)
class Classify:
    """The labels and how their scores become an answer.

    `divisors` normalize the labels' log-likelihoods (all 1 for `sum`, tokens or characters); `priors` are the
    log-probabilities that calibration takes away, empty where there is none. `instruction` is asked of content-free
    texts.
    """

    labels: tuple[str, ...]
    divisors: tuple[float, ...]
    instruction: str
    none_below: float | None = None
    with_end: bool = True
    calibrated: bool = False
    priors: tuple[float, ...] = ()

    def begin(self, subject: Subject) -> "ClassifyWork":
        """The work of one row."""
        return ClassifyWork(self, subject)

    def prepare(self) -> Sequence[Row]:
        """The content-free texts, where scores are calibrated."""
        if not self.calibrated:
            return ()
        return [self.question(str(n), self.instruction, text) for n, text in enumerate(CONTENT_FREE)]

    def prepared(self, answers: Sequence[Completion | Scores]) -> "Classify":
        """The task with its priors. Raises EngineError when a content-free text could not be scored."""
        if not self.calibrated:
            return self
        shares = []
        for answer in answers:
            if answer.failure is not None or isinstance(answer, Completion):
                raise EngineError(f"the labels could not be calibrated: {answer.failure}")
            shares.append(softmax(self.normalize(answer.log_probs)))
        means = [sum(column) / len(shares) for column in zip(*shares, strict=True)]
        return replace(self, priors=tuple(math.log(max(mean, 1e-30)) for mean in means))

    def question(self, key: str, instruction: str, context: str | None) -> ScoreRow:
        """One text's labels, to be scored."""
        return ScoreRow(key, instruction, context, self.labels, self.with_end)

    def normalize(self, log_probs: Sequence[float]) -> list[float]:
        """Log-likelihoods divided by the labels' lengths."""
        return [log_prob / divisor for log_prob, divisor in zip(log_probs, self.divisors, strict=True)]

    def read(self, log_probs: Sequence[float]) -> Answer:
        """The likeliest label, the first of equals."""
        values = self.normalize(log_probs)
        if self.priors:
            values = [value - prior for value, prior in zip(values, self.priors, strict=True)]
        shares = softmax(values)
        order = sorted(range(len(shares)), key=lambda index: -shares[index])
        confidence, second = shares[order[0]], shares[order[1]]
        chosen = None if self.none_below is not None and confidence < self.none_below else self.labels[order[0]]
        scores = dict(zip(self.labels, shares, strict=True))
        return Answer(chosen, "ok", None, None, 0, extras=(confidence, confidence - second, scores))


@dataclass(frozen=True, slots=True)
class ClassifyWork:
    """One row: scored once."""

    task: Classify
    subject: Subject

    def start(self) -> Sequence[Row]:
        """The one question."""
        return (self.task.question("0", self.subject.instruction, self.subject.context),)

    def take(self, answer: Completion | Scores) -> Answer:
        """The likeliest label is the answer."""
        if isinstance(answer, Completion):
            raise TypeError("labels were answered by a completion")
        if answer.failure is not None:
            return Answer(None, answer.failure.status, answer.failure.message, None, None, extras=(None, None, None))
        return self.task.read(answer.log_probs)


def softmax(values: Sequence[float]) -> list[float]:
    """Shares that sum to 1; equal ones where every value is -inf."""
    highest = max(values)
    if highest == -math.inf:
        return [1 / len(values)] * len(values)
    weights = [math.exp(value - highest) for value in values]
    total = sum(weights)
    return [weight / total for weight in weights]


def divisors(
    labels: Sequence[str], normalization: Literal["sum", "per_token", "per_char"], count: Callable[[str], int]
) -> tuple[float, ...]:
    """What each label's log-likelihood is divided by; `count` gives the tokens of a label as it is scored."""
    if normalization == "sum":
        return (1.0,) * len(labels)
    return tuple(float(max(1, count(label) if normalization == "per_token" else len(label))) for label in labels)


def default_instruction(labels: Sequence[str] | Mapping[str, str], count: Callable[[str], int], positions: int) -> str:
    """The instruction with the labels listed, or, where the list would take half of the positions, without them.

    Raises ConfigError when descriptions don't fit: they are of no use but in the list.
    """
    if isinstance(labels, Mapping):
        listed = "\n".join(f"- {label}: {told}" if told else f"- {label}" for label, told in labels.items())
        text = f"Classify the text into one of these labels:\n{listed}"
    else:
        text = f"Classify the text into one of these labels: {', '.join(labels)}."
    num_tokens = count(text)
    if num_tokens <= MAX_LIST_SHARE * positions:
        return text
    if isinstance(labels, Mapping):
        raise ConfigError(
            f"task.labels: {len(labels)} labels with their descriptions take {num_tokens:,} tokens, more than half of "
            f"the model's {positions:,} positions; shorten the descriptions, or give the labels as a list"
        )
    return "Classify the text."
