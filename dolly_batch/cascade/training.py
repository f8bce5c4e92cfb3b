"""Training a proxy on rows that the model has answered, and setting its bounds on others."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from dolly_batch.cascade.bounds import CHECKED_SHARE, ERROR, Bound, Judged, grouped, last_passing, sequence
from dolly_batch.cascade.features import hashed, scaled
from dolly_batch.cascade.proxy import Proxy, margin_of, softmax

MIN_LABEL_ROWS = 3
"""A label that fewer training rows have is one with the other rare ones, and its rows go to the model."""
MIN_TEXTS = 2
"""A hash that fewer training texts have is left out: of one text alone it says little, but too much about it."""
MAX_WEIGHTS = 1 << 22
FOLDS = 4
PENALTY = 10.0
"""scikit-learn's `C`: the larger, the less the weights are held down."""


@dataclass(frozen=True)
class Example:
    """A row of the sample: what the model says (None: no label), and the gold label where there is one."""

    text: str
    answer: str | None
    gold: str | None = None

    def truth(self, against_gold: bool) -> str | None:
        """What the proxy is to say."""
        return self.gold if against_gold and self.gold is not None else self.answer


def train(
    examples: Sequence[Example], labels: Sequence[str], agreement: float, seed: int, *, against_gold: bool = False
) -> Proxy:
    """Train a proxy on a part of the sample, and set its bounds on the rest.

    `labels` are those of the task. The split is drawn with the seed; the same examples in the same order give the same
    proxy. `against_gold` checks rows that have a gold label, against that, and trains on it where there is one. A proxy
    that could not be trained, or shows nothing, answers no row.
    """
    order = np.random.default_rng(seed).permutation(len(examples)).tolist()
    known = [at for at in order if not against_gold or examples[at].gold is not None]
    checking = known[: int(len(examples) * CHECKED_SHARE)]
    held_out = set(checking)
    training = [at for at in order if at not in held_out]
    truth = [example.truth(against_gold) for example in examples]
    facts = {"num_training": len(training), "num_checked": len(checking), "num_answered": 0, "num_agreeing": 0}
    counts = Counter(truth[at] for at in training)
    numbers: dict[str | None, int] = {
        label: number for number, label in enumerate(labels) if counts[label] >= MIN_LABEL_ROWS
    }
    if len(numbers) < 2:
        return Proxy(facts=facts)
    classes: list[str | None] = [*labels, None]
    wanted = np.array([numbers.get(label, len(labels)) for label in truth])
    with _one_thread():
        return _trained(examples, wanted, classes, (training, checking), agreement, facts)


def _trained(
    examples: Sequence[Example],
    wanted: np.ndarray,
    classes: Sequence[str | None],
    parts: tuple[Sequence[int], Sequence[int]],
    agreement: float,
    facts: dict[str, Any],
) -> Proxy:
    training, checking = parts
    found = hashed([examples[at].text for at in training])
    features, scales = _chosen(found, len(classes))
    if not len(features):
        return Proxy(facts=facts)
    rows, numbers = scaled(found, features, scales), wanted[training]
    weights, intercepts = _fit(rows, numbers, len(classes))
    proxy = Proxy(tuple(classes), (), features, scales, weights, intercepts)
    texts = [examples[at].text for at in checking]
    checked = _judged(proxy.shares(texts) if texts else np.zeros((0, len(classes))), wanted[list(checking)])
    out_of_fold = _judged(_without_themselves(rows, numbers, len(classes)), numbers)
    bounds = _bounds(out_of_fold, checked, classes, agreement)
    by_label = {label: bound.margin for bound in bounds for label in bound.labels}
    limits = tuple(by_label.get(number) for number in range(len(classes)))
    sums = {name: sum(getattr(bound, name) for bound in bounds) for name in ("num_answered", "num_agreeing")}
    groups = [{**asdict(bound), "labels": [classes[label] for label in bound.labels]} for bound in bounds]
    return replace(proxy, bounds=limits, facts={**facts, **sums, "groups": groups})


def _chosen(found: Any, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The hashes that are worth a weight, those of the most texts first where they are too many; and their idf."""
    num_texts = np.asarray(found.sum(axis=0)).ravel()
    known = np.flatnonzero(num_texts >= MIN_TEXTS)
    if len(known) > (most := MAX_WEIGHTS // num_classes):
        known = np.sort(known[np.argsort(-num_texts[known], kind="stable")[:most]])
    idf = np.log((1 + found.shape[0]) / (1 + num_texts[known])) + 1
    return known.astype(np.int32), idf.astype(np.float32)


def _fit(rows: Any, numbers: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights and intercepts of all classes; one that has no row here is as good as impossible."""
    from sklearn.linear_model import LogisticRegression

    weights = np.zeros((rows.shape[1], num_classes), np.float32)
    intercepts = np.full(num_classes, -1e4, np.float32)
    there = np.unique(numbers)
    if len(there) == 1:
        intercepts[there] = 0.0
        return weights, intercepts
    fitted = LogisticRegression(C=PENALTY, max_iter=200, tol=1e-3).fit(rows, numbers)
    if len(there) == 2:  # one column, for the second of the two
        weights[:, there[1]], intercepts[there] = fitted.coef_[0], [0.0, fitted.intercept_[0]]
    else:
        weights[:, there], intercepts[there] = fitted.coef_.T, fitted.intercept_
    return weights, intercepts


def _without_themselves(rows: Any, numbers: np.ndarray, num_classes: int) -> np.ndarray:
    """The probabilities that training rows get from a proxy that was trained without them."""
    shares = np.zeros((rows.shape[0], num_classes))
    fold = np.arange(rows.shape[0]) % FOLDS  # they lie in the order of a draw
    for number in range(min(FOLDS, rows.shape[0])):
        weights, intercepts = _fit(rows[fold != number], numbers[fold != number], num_classes)
        shares[fold == number] = softmax(rows[fold == number] @ weights + intercepts)
    return shares


def _judged(shares: np.ndarray, wanted: np.ndarray) -> list[tuple[int, Judged]]:
    """For each row the label that it is given, its margin, and whether it is the right one."""
    best = shares.argmax(axis=1) if len(shares) else np.zeros(0, int)
    return [
        (int(label), (margin_of(row), bool(label == right)))
        for label, row, right in zip(best, shares, wanted, strict=True)
    ]


def _bounds(
    out_of_fold: Sequence[tuple[int, Judged]],
    checked: Sequence[tuple[int, Judged]],
    classes: Sequence[str | None],
    agreement: float,
) -> list[Bound]:
    scale = len(checked) / max(1, len(out_of_fold))
    given = Counter(label for label, _ in out_of_fold)
    answerable = [number for number, label in enumerate(classes) if label is not None]
    groups = grouped([given[label] * scale for label in answerable], agreement)
    bounds = []
    for group in groups:
        order = sequence([row for label, row in out_of_fold if label in group], scale, agreement)
        rows = [row for label, row in checked if label in group]
        bounds.append(last_passing(group, order, rows, agreement, ERROR / len(groups)))
    return bounds


def _one_thread() -> Any:
    """Sums of several threads differ from run to run in their last bits."""
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1)
