"""From log-likelihoods to a benchmark's numbers, computed as lm-evaluation-harness does."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dolly_batch.evaluate.benchmarks import Benchmark, Metric
from dolly_batch.evaluate.question import Question


@dataclass(frozen=True, slots=True)
class Accuracy:
    """A mean (mostly a share of right answers) and its standard error, None where a single row gives none."""

    value: float
    stderr: float | None


@dataclass(frozen=True, slots=True)
class BenchmarkScore:
    """One model's numbers in one benchmark. `acc_norm` is None where the benchmark has none."""

    benchmark: str
    num_questions: int
    acc: Accuracy
    acc_norm: Accuracy | None
    card_metric: Metric

    @property
    def card_value(self) -> Accuracy:
        """The number that the card's column shows."""
        return self.acc_norm if self.card_metric == "acc_norm" and self.acc_norm is not None else self.acc


def is_right(question: Question, log_likelihoods: Sequence[float]) -> tuple[bool, bool | None]:
    """Whether the likeliest choice is the right one: as it is, and (None without lengths) divided by its characters.

    Of equals the first choice counts, as numpy's argmax has it.
    """
    acc = _best(log_likelihoods) == question.gold
    if question.num_chars is None:
        return acc, None
    per_char = [score / length for score, length in zip(log_likelihoods, question.num_chars, strict=True)]
    return acc, _best(per_char) == question.gold


def score_benchmark(
    benchmark: Benchmark, questions: Sequence[Question], log_likelihoods: Sequence[Sequence[float]]
) -> BenchmarkScore:
    """The accuracies over all questions; `log_likelihoods` holds, per question, one number for each choice."""
    answers = [is_right(question, scores) for question, scores in zip(questions, log_likelihoods, strict=True)]
    normed = [right for _, right in answers if right is not None]
    return BenchmarkScore(
        benchmark.name,
        len(questions),
        share_of(sum(right for right, _ in answers), len(answers)),
        share_of(sum(normed), len(normed)) if benchmark.has_acc_norm else None,
        benchmark.card_metric,
    )


def share_of(right: int, num: int) -> Accuracy:
    """`right` of `num`, and the standard error of that mean."""
    return mean_of(right, right, num)


def mean_of(total: float, squares: float, num: int) -> Accuracy:
    """The mean of `num` numbers of this sum and sum of squares; its error is the sample deviation over root `num`."""
    mean = total / num
    if num == 1:
        return Accuracy(mean, None)
    return Accuracy(mean, math.sqrt(max(0.0, squares - num * mean**2) / (num - 1)) / math.sqrt(num))


def gmean(values: Iterable[float]) -> float:
    """The geometric mean; 0 where a value is 0."""
    numbers = list(values)
    return math.prod(numbers) ** (1 / len(numbers))


def _best(scores: Sequence[float]) -> int:
    return max(range(len(scores)), key=lambda choice: scores[choice])
