"""ROUGE of summaries, by Google's rouge-score (a reimplementation of ROUGE-1.5.5), which the extra `[evaluate]` brings.

Lin 2004. F-measures of ROUGE-1, ROUGE-2 and ROUGE-L, with the Porter stemmer, as most papers report them.
"""

from collections.abc import Iterable
from typing import Any

from dolly_batch.errors import Refused

KINDS = ("rouge1", "rouge2", "rougeL")


def load_scorer() -> Any:
    """The library's scorer. Raises Refused where it is not installed."""
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise Refused(
            "ROUGE needs the package rouge-score, on the driver and on executors: pip install 'dolly-batch[evaluate]'"
        ) from error
    return RougeScorer(KINDS, use_stemmer=True)


def sum_rouge(scorer: Any, pairs: Iterable[tuple[str, str | None]]) -> tuple[int, int, dict[str, float], dict[str, float]]:
    """Add up F-measures over (gold, prediction) pairs; one without a prediction scores 0.

    Returns the number of pairs, the number without a prediction, and by kind the sums and the sums of squares.
    """
    num_rows = num_unanswered = 0
    sums, squares = dict.fromkeys(KINDS, 0.0), dict.fromkeys(KINDS, 0.0)
    for gold, prediction in pairs:
        num_rows += 1
        if prediction is None:
            num_unanswered += 1
            continue
        for kind, score in scorer.score(gold, prediction).items():
            sums[kind] += score.fmeasure
            squares[kind] += score.fmeasure**2
    return num_rows, num_unanswered, sums, squares
