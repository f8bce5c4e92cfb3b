"""Accuracies, labels, objects and the tables they are shown in."""

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dolly_batch.evaluate.accuracy import BenchmarkScore, gmean, is_right, mean_of, score_benchmark, share_of
from dolly_batch.evaluate.benchmarks import BENCHMARKS
from dolly_batch.evaluate.label_scores import LabelScore, score_labels
from dolly_batch.evaluate.object_fields import FieldCounts, parse_object, same
from dolly_batch.evaluate.question import Question
from dolly_batch.evaluate.table import ScoredModel, benchmark_rows, benchmark_tables, to_markdown

QUESTION = Question((("c", " a"), ("c", " bbbb")), (1, 4), 1)


def test_the_likeliest_choice_and_the_likeliest_per_character() -> None:
    assert is_right(QUESTION, [-2.0, -4.0]) == (False, True)
    assert is_right(QUESTION, [-4.0, -2.0]) == (True, True)
    assert is_right(QUESTION, [-1.0, -4.0]) == (False, False)  # of equals the first
    assert is_right(Question(QUESTION.requests, None, 0), [-1.0, -1.0]) == (True, None)


@given(st.lists(st.booleans(), min_size=2, max_size=50))
def test_the_standard_error_is_the_sample_deviation_over_root_n(answers: list[bool]) -> None:
    found = share_of(sum(answers), len(answers))
    assert found.value == pytest.approx(statistics.mean(answers))
    assert found.stderr == pytest.approx(statistics.stdev(answers) / len(answers) ** 0.5, abs=1e-9)


def test_one_row_has_no_standard_error() -> None:
    assert mean_of(0.5, 0.25, 1).stderr is None


def test_boolq_and_winogrande_have_no_acc_norm() -> None:
    asked = Question(QUESTION.requests, None, 1)
    assert score_benchmark(BENCHMARKS["winogrande"], [asked], [[-2.0, -1.0]]).acc_norm is None
    score = score_benchmark(BENCHMARKS["piqa"], [QUESTION, QUESTION], [[-2.0, -4.0], [-1.0, -9.0]])
    assert (score.acc.value, score.card_value.value) == (0.0, 0.5)


def test_gmean_of_a_zero_is_zero() -> None:
    assert gmean([0.5, 0.0]) == 0.0
    assert gmean([0.25, 1.0]) == pytest.approx(0.5)


def test_macro_f1_is_scikit_learns_over_the_gold_labels() -> None:
    # gold a a a b b c; predicted a a b b x None; sklearn.metrics.f1_score(gold, predicted, labels=[a, b, c],
    # average="macro") with None as a label of its own = (0.8 + 0.5 + 0) / 3
    quality = score_labels([LabelScore("a", 3, 2, 2), LabelScore("b", 2, 2, 1), LabelScore("c", 1, 0, 0)], 1)
    assert quality.macro_f1 == pytest.approx((0.8 + 0.5 + 0.0) / 3)
    assert quality.accuracy.value == pytest.approx(0.5)
    assert (quality.labels[2].precision, quality.labels[2].recall) == (0.0, 0.0)
    assert (quality.num_rows, quality.num_unanswered) == (6, 1)


def test_objects_are_compared_field_by_field() -> None:
    counts = FieldCounts()
    counts.add({"name": "Ann", "age": 3}, {"name": "Ann", "age": 3.0})
    counts.add({"name": "Bo", "age": None}, {"name": "Bo"})
    counts.add({"name": "Cy", "age": 4}, {"name": "cy", "age": 4, "town": "Ostby"})
    counts.add({"name": "Di", "age": 5}, None)
    other = FieldCounts.from_json(counts.to_json())
    other.merge(FieldCounts())
    assert other == counts
    assert counts.whole.value == pytest.approx(2 / 4)
    assert {name: value.value for name, value in counts.fields.items()} == {"age": 0.75, "name": 0.5, "town": 0.0}
    assert counts.num_unanswered == 1


@pytest.mark.parametrize(
    ("gold", "prediction", "equal"),
    [
        (1, 1.0, True),
        (1, True, False),
        (None, None, True),
        ("a", "a ", False),
        ([1, 2], [1, 2], True),
        ([1, 2], [2, 1], False),
        ({"a": None}, {}, True),
        ({"a": [True]}, {"a": [1]}, False),
    ],
)
def test_equal_values(gold: object, prediction: object, equal: bool) -> None:
    assert same(gold, prediction) is equal


def test_cells_that_are_no_objects() -> None:
    assert [parse_object(text) for text in (None, "", "[1]", "nul", '{"a": 1}')] == [None, None, None, None, {"a": 1}]


def score(name: str, right: int) -> BenchmarkScore:
    value = share_of(right, 10)
    benchmark = BENCHMARKS[name]
    return BenchmarkScore(name, 10, value, value if benchmark.has_acc_norm else None, benchmark.card_metric)


def test_two_quantizations_are_two_tables_and_their_difference() -> None:
    plain = ScoredModel("databricks/dolly-v2-3b", "abc", "none", "auto", "databricks/dolly-v2-3b")
    packed = ScoredModel("databricks/dolly-v2-3b", "abc", "int8", "auto", "databricks/dolly-v2-3b")
    rows = benchmark_rows(plain, [score("piqa", 8), score("boolq", 5)])
    rows += benchmark_rows(packed, [score("piqa", 7), score("boolq", 5)])
    first, second, cost = benchmark_tables(rows)
    assert first.title == "databricks/dolly-v2-3b, and the card's databricks/dolly-v2-3b"
    assert second.title.startswith("databricks/dolly-v2-3b in int8")
    assert first.rows[0] == (
        "piqa", "10 of 1,838", "0.8000 ± 0.1333", "0.8000 ± 0.1333", "acc_norm", "0.8000", "0.742655", "+0.0573",
    )  # fmt: skip
    assert first.rows[1][3] == ""
    assert cost.header == ("benchmark", "none", "int8", "difference")
    assert cost.rows[0] == ("piqa", "0.8000", "0.7000", "-0.1000")
    # The card's gmean is over the benchmarks that were run.
    assert rows[2].benchmark == "gmean"
    assert rows[2].card_value == pytest.approx((0.742655 * 0.575535) ** 0.5)


def test_a_model_without_a_card_is_shown_alone() -> None:
    (table,) = benchmark_tables(benchmark_rows(ScoredModel("tiny", None, "none", "auto", None), [score("piqa", 5)]))
    assert (table.title, table.header[-1], len(table.rows[0])) == ("tiny", "value", 6)


def test_a_cell_cannot_leave_its_place_in_markdown() -> None:
    (table,) = benchmark_tables(
        benchmark_rows(ScoredModel("a|b\n# <x>", None, "none", "auto", None), [score("piqa", 5)])
    )
    text = to_markdown("t", {"model": "a\n\n# b"}, [table], [])
    assert "## a\\|b # \\<x\\>" in text
    assert "- model: a # b" in text
