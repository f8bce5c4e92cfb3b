"""How good are labels: accuracy and macro-F1, from how often each (gold, prediction) pair occurs."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from dolly_batch.tasks.evaluate.accuracy import Accuracy, mean_accuracy


@dataclass(frozen=True, slots=True)
class LabelScore:
    """One label: `num_gold` rows have it, `num_predicted` were given it."""

    label: str
    num_gold: int
    num_predicted: int
    num_right: int

    @property
    def precision(self) -> float:
        """Right ones among those predicted; 0 where none was."""
        return self.num_right / self.num_predicted if self.num_predicted else 0.0

    @property
    def recall(self) -> float:
        """Right ones among those of this label; 0 where there is none."""
        return self.num_right / self.num_gold if self.num_gold else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of the two."""
        return 2 * self.num_right / (self.num_gold + self.num_predicted)


@dataclass(frozen=True, slots=True)
class LabelQuality:
    """`num_rows` rows with a gold label; those without a prediction are among them and count as wrong."""

    num_rows: int
    num_unanswered: int
    accuracy: Accuracy
    macro_f1: float
    labels: tuple[LabelScore, ...]


def score_labels(pairs: Mapping[tuple[str, str | None], int]) -> LabelQuality:
    """Score labels, given the number of rows of each (gold, prediction) pair; a prediction may be None.

    macro-F1 is the plain mean of F1 over all labels that are gold or predicted anywhere. Labels are compared letter by
    letter. At least one row is needed.
    """
    gold: Counter[str] = Counter()
    predicted: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for (label, prediction), count in pairs.items():
        gold[label] += count
        if prediction is not None:
            predicted[prediction] += count
        if prediction == label:
            right[label] += count
    names = sorted({*gold, *predicted})
    labels = tuple(LabelScore(name, gold[name], predicted[name], right[name]) for name in names)
    num_rows, num_right = gold.total(), right.total()
    accuracy = mean_accuracy([True] * num_right + [False] * (num_rows - num_right))
    macro_f1 = sum(label.f1 for label in labels) / len(labels)
    return LabelQuality(num_rows, num_rows - predicted.total(), accuracy, macro_f1, labels)
