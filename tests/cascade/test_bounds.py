"""The statistics of a cascade's bounds: exact tests, and a promise that fails no more often than it says."""

import math
import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dolly_batch.cascade.bounds import (
    ERROR,
    Bound,
    Judged,
    at_least,
    fewest_rows,
    grouped,
    has_fallen,
    last_passing,
    sequence,
)


@given(st.integers(0, 60), st.integers(0, 61), st.sampled_from(["1/2", "9/10", "19/20", "99/100"]))
def test_the_chance_of_so_many_agreeing_rows_is_exact(num_rows: int, num_agreeing: int, share: str) -> None:
    agreeing = min(num_agreeing, num_rows)
    p = Fraction(share)
    exact = sum(math.comb(num_rows, k) * p**k * (1 - p) ** (num_rows - k) for k in range(agreeing, num_rows + 1))
    assert at_least(num_rows, agreeing, float(p)) == pytest.approx(float(exact), rel=1e-9)


@pytest.mark.parametrize(("agreement", "least"), [(0.9, 29), (0.95, 59), (0.99, 299)])
def test_with_fewer_rows_than_the_fewest_nothing_can_be_shown(agreement: float, least: int) -> None:
    assert fewest_rows(agreement) == least
    assert at_least(least, least, agreement) <= ERROR < at_least(least - 1, least - 1, agreement)


def test_labels_with_rows_enough_are_alone_and_rare_ones_together() -> None:
    assert grouped([20.0, 900.0, 300.0, 4.0], 0.95) == [(1,), (2,), (0, 3)]
    assert grouped([480.0, 500.0], 0.95) == [(1,), (0,)]
    assert grouped([13.0] * 77, 0.95) == [tuple(range(77))]
    assert grouped([], 0.95) == []


def test_a_sequence_begins_where_training_rows_agree_and_goes_down() -> None:
    trained = [(1 - at / 1000, at < 600) for at in range(1000)]
    bounds = sequence(trained, 1.0, 0.95)
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[0] == pytest.approx(0.4, abs=0.06)
    assert bounds[-1] == 0.0
    assert sequence([], 1.0, 0.95) == []


def test_the_last_bound_before_one_that_fails_is_taken() -> None:
    checked = [(1 - at / 1000, at < 600) for at in range(1000)]
    found = last_passing((3,), [0.6, 0.45, 0.39, 0.2, 0.45], checked, 0.95, 0.05)
    assert found == Bound((3,), 0.39, 611, 600)
    assert last_passing((3,), [0.1, 0.6], checked, 0.95, 0.05) == Bound((3,))
    assert last_passing((3,), [0.99], checked, 0.95, 0.05) == Bound((3,))  # ten rows show nothing
    assert last_passing((3,), [], checked, 0.95, 0.05) == Bound((3,))


def drawn(numbers: random.Random, num_rows: int, share: float) -> list[Judged]:
    return [(numbers.random(), numbers.random() < share) for _ in range(num_rows)]


def test_a_proxy_that_agrees_a_little_too_seldom_is_let_through_in_5_of_100_samples_and_no_more() -> None:
    """Its margin says nothing, so at whatever bound it agrees in 94.5 %. The best of many bounds,
    chosen by the rows that it is tested on, lets it through much more often."""
    numbers, num_samples = random.Random(5), 400
    in_sequence = best_of_all = 0
    for _ in range(num_samples):
        trained, checked = drawn(numbers, 300, 0.945), drawn(numbers, 300, 0.945)
        in_sequence += last_passing((0,), sequence(trained, 1.0, 0.95), checked, 0.95, ERROR).margin is not None
        bounds = sorted((margin for margin, _ in checked), reverse=True)[59::12]
        best_of_all += any(last_passing((0,), [bound], checked, 0.95, ERROR).margin is not None for bound in bounds)
    assert in_sequence <= ERROR * num_samples
    assert best_of_all > 1.5 * ERROR * num_samples


def test_an_agreement_has_fallen_only_when_chance_does_not_explain_it() -> None:
    assert not has_fallen(0, 0, 0.95)
    assert not has_fallen(100, 92, 0.95)
    assert has_fallen(100, 88, 0.95)
    assert not has_fallen(3, 2, 0.95)
