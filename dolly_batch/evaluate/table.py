"""The results as tables for people: the same cells on a terminal and in Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dolly_batch.evaluate.accuracy import Accuracy, BenchmarkScore, gmean
from dolly_batch.evaluate.benchmarks import BENCHMARKS
from dolly_batch.evaluate.card import CARD

GMEAN = "gmean"


@dataclass(frozen=True)
class Table:
    """Cells as text. `is_long` is a table for files, which would fill a terminal."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    is_long: bool = False


@dataclass(frozen=True)
class BenchmarkRow:
    """One number of one model and the card's; `gmean` is a row too, over the benchmarks that were run."""

    model: str
    model_revision: str | None
    quantization: str
    dtype: str
    benchmark: str
    num_questions: int
    acc: float | None
    acc_stderr: float | None
    acc_norm: float | None
    acc_norm_stderr: float | None
    metric: str
    value: float
    stderr: float | None
    card_model: str | None
    card_value: float | None


@dataclass(frozen=True)
class ScoredModel:
    """A model as it was scored, and the row of the card to compare it with."""

    model: str
    revision: str | None
    quantization: str
    dtype: str
    card_model: str | None


def benchmark_rows(scored: ScoredModel, scores: Sequence[BenchmarkScore]) -> list[BenchmarkRow]:
    """One row for each benchmark, and that of gmean; the card's gmean is over the same benchmarks."""
    card = CARD[scored.card_model] if scored.card_model else {}
    head = (scored.model, scored.revision, scored.quantization, scored.dtype)
    rows = []
    for score in scores:
        norm = score.acc_norm or Accuracy(0, None)
        rows.append(
            BenchmarkRow(
                *head,
                benchmark=score.benchmark,
                num_questions=score.num_questions,
                acc=score.acc.value,
                acc_stderr=score.acc.stderr,
                acc_norm=norm.value if score.acc_norm else None,
                acc_norm_stderr=norm.stderr,
                metric=score.card_metric,
                value=score.card_value.value,
                stderr=score.card_value.stderr,
                card_model=scored.card_model,
                card_value=card.get(score.benchmark),
            )
        )
    names = [score.benchmark for score in scores]
    mean = BenchmarkRow(
        *head,
        benchmark=GMEAN,
        num_questions=sum(score.num_questions for score in scores),
        acc=None,
        acc_stderr=None,
        acc_norm=None,
        acc_norm_stderr=None,
        metric=GMEAN,
        value=gmean(row.value for row in rows),
        stderr=None,
        card_model=scored.card_model,
        card_value=gmean(card[name] for name in names) if card else None,
    )
    return [*rows, mean]


def benchmark_tables(rows: Sequence[BenchmarkRow]) -> list[Table]:
    """A table for each quantization, and for each but the first one that compares it with the first."""
    by_quantization: dict[str, list[BenchmarkRow]] = {}
    for row in rows:
        by_quantization.setdefault(row.quantization, []).append(row)
    tables = [_scores_table(scores) for scores in by_quantization.values()]
    first, *others = by_quantization.values()
    return [*tables, *(_cost_table(first, other) for other in others)]


def _scores_table(rows: Sequence[BenchmarkRow]) -> Table:
    """Both accuracies, then the one that the card shows (`metric`), and the card's."""
    card = rows[0].card_model
    body = []
    for row in rows:
        metric = "" if row.benchmark == GMEAN else row.metric
        cells = [row.benchmark, _of(row), share(row.acc, row.acc_stderr), share(row.acc_norm, row.acc_norm_stderr)]
        cells += [metric, f"{row.value:.4f}"]
        if row.card_value is not None:
            cells += [f"{row.card_value:.6g}", f"{row.value - row.card_value:+.4f}"]
        body.append(tuple(cells))
    header = ("benchmark", "questions", "acc", "acc_norm", "metric", "value", *(("card", "difference") if card else ()))
    title = rows[0].model + ("" if rows[0].quantization == "none" else f" in {rows[0].quantization}")
    return Table(f"{title}, and the card's {card}" if card else title, header, tuple(body))


def _cost_table(base: Sequence[BenchmarkRow], other: Sequence[BenchmarkRow]) -> Table:
    names = (base[0].quantization, other[0].quantization)
    rows = tuple(
        (one.benchmark, f"{one.value:.4f}", f"{two.value:.4f}", f"{two.value - one.value:+.4f}")
        for one, two in zip(base, other, strict=True)
    )
    return Table(f"What {names[1]} costs", ("benchmark", *names, "difference"), rows)


def _of(row: BenchmarkRow) -> str:
    """The number of questions, and of how many the card's split has, where that is another number."""
    if row.benchmark == GMEAN or row.num_questions == BENCHMARKS[row.benchmark].card_num_questions:
        return f"{row.num_questions:,}"
    return f"{row.num_questions:,} of {BENCHMARKS[row.benchmark].card_num_questions:,}"


def share(value: float | None, stderr: float | None) -> str:
    """A share and its standard error, as far as there are any."""
    if value is None:
        return ""
    return f"{value:.4f}" if stderr is None else f"{value:.4f} ± {stderr:.4f}"


def to_markdown(title: str, facts: Mapping[str, str], tables: Iterable[Table], notes: Sequence[str]) -> str:
    """A whole page: facts, then tables, then notes."""
    lines = [f"# {title}", "", *(f"- {key}: {_escaped(value)}" for key, value in facts.items()), ""]
    for table in tables:
        lines += [f"## {_escaped(table.title)}", "", _line(table.header), _line(["---"] * len(table.header))]
        lines += [*(_line(row) for row in table.rows), ""]
    return "\n".join([*lines, *notes]).rstrip() + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_escaped(cell) for cell in cells) + " |"


def _escaped(cell: str) -> str:
    """The cell without line breaks, and with Markdown's own letters escaped."""
    for letter in "\\`*[]<>|":
        cell = cell.replace(letter, f"\\{letter}")
    return " ".join(cell.split())
