"""ROUGE of summaries, by Google's rouge-score (a reimplementation of ROUGE-1.5.5), which the extra `[evaluate]` brings.

Lin 2004. F-measures of ROUGE-1, ROUGE-2 and ROUGE-L, with the Porter stemmer, as most papers report them.
"""

from collections.abc import Iterable
from typing import Any

from dolly_batch.errors import Refused

KINDS = ("rouge1", "rouge2", "rougeL")
SUMS = ("num_rows", "num_unanswered", *KINDS, *(f"{kind}_squares" for kind in KINDS))


def load_scorer() -> Any:
    """The library's scorer. Raises Refused where it is not installed."""
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise Refused(
            "ROUGE needs the package rouge-score, on the driver and on executors: pip install 'dolly-batch[evaluate]'"
        ) from error
    return RougeScorer(KINDS, use_stemmer=True)


def sum_rouge(scorer: Any, pairs: Iterable[tuple[str, str | None]]) -> dict[str, float]:
    """Add up F-measures over (gold, prediction) pairs; one without a prediction scores 0.

    Returns `num_rows`, `num_unanswered`, and for each kind its sum and, as `KIND_squares`, that of its squares.
    """
    sums = dict.fromkeys(SUMS, 0.0)
    for gold, prediction in pairs:
        sums["num_rows"] += 1
        if prediction is None:
            sums["num_unanswered"] += 1
            continue
        for kind, score in scorer.score(gold, prediction).items():
            sums[kind] += score.fmeasure
            sums[f"{kind}_squares"] += score.fmeasure**2
    return sums
