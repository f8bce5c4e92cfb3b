"""The quality of labels: accuracy and macro-F1, from how often each label is gold, predicted, and both."""

from collections.abc import Sequence
from dataclasses import dataclass

from dolly_batch.evaluate.accuracy import Accuracy, share_of


@dataclass(frozen=True, slots=True)
class LabelScore:
    """One gold label: `num_gold` rows (1 or more) have it, `num_predicted` were given it, `num_right` both."""

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
        """Right ones among those of this label."""
        return self.num_right / self.num_gold

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


def score_labels(labels: Sequence[LabelScore], num_unanswered: int) -> LabelQuality:
    """Score a table of labels, given the counts of each gold label; at least one.

    macro-F1 is the plain mean of F1 over the gold labels (scikit-learn's `f1_score(..., labels=sorted(set(gold)),
    average="macro")`): a prediction that is no gold label costs recall, and is no label of its own.
    """
    num_rows, num_right = sum(label.num_gold for label in labels), sum(label.num_right for label in labels)
    accuracy = share_of(num_right, num_rows)
    macro_f1 = sum(label.f1 for label in labels) / len(labels)
    return LabelQuality(num_rows, num_unanswered, accuracy, macro_f1, tuple(labels))
