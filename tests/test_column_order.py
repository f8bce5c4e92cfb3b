"""The order of a template's columns that `plan` suggests is the best of all, by counting."""

from itertools import permutations

from hypothesis import given
from hypothesis import strategies as st

from dolly_batch.spark.plan.column_order import choose_order

Row = tuple[str, ...]


def suggested(names: list[str], rows: list[Row]) -> tuple[tuple[str, ...], float, float] | None:
    num_chars = [sum(len(row[i]) for row in rows) for i in range(len(names))]
    order = choose_order(names, num_chars, len(rows), lambda chosen: len({tuple(r[i] for i in chosen) for r in rows}))
    return None if order is None else (order.columns, order.share, order.share_now)


def share(rows: list[Row], order: tuple[int, ...]) -> float:
    """Which part of the text needs no computing, when values of a row count only where all before them are shared."""
    shared = 0.0
    for at, column in enumerate(order, start=1):
        different = len({tuple(row[i] for i in order[:at]) for row in rows})
        shared += sum(len(row[column]) for row in rows) * (1 - different / len(rows))
    return shared / sum(len(value) for row in rows for value in row)


def test_what_repeats_comes_first_and_a_short_column_does_not_split_a_long_one() -> None:
    rows = [(f"review {i}", f"product {i % 20} {'made of wood ' * 9}", str(i // 20 % 5)) for i in range(200)]
    found = suggested(["review", "product", "stars"], rows)
    assert found is not None
    assert found[0] == ("product", "stars", "review")
    assert found[2] == 0 < 0.6 < found[1] < 1


def test_nothing_is_said_where_the_order_is_good_or_nothing_repeats() -> None:
    rows = [(f"product {i % 20}", f"review {i}") for i in range(200)]
    assert suggested(["product", "review"], rows) is None
    assert suggested(["a", "b"], [(f"one {i}", f"two {i}") for i in range(200)]) is None
    assert suggested(["a", "b"], []) is None
    assert suggested(["a", "b"], [("", "")]) is None


@given(st.integers(1, 4).flatmap(lambda n: st.lists(st.tuples(*[st.sampled_from(["", "a", "bb", "cccccc"])] * n))))
def test_no_order_shares_more_than_the_suggested_one(rows: list[Row]) -> None:
    names = [f"c{i}" for i in range(len(rows[0]))] if rows else ["c0"]
    found = suggested(names, rows)
    if not any("".join(row) for row in rows):
        assert found is None
        return
    best = max(share(rows, order) for order in permutations(range(len(names))))
    now = share(rows, tuple(range(len(names))))
    if found is None:
        assert best - now < 0.05 + 1e-9
    else:
        order = tuple(names.index(name) for name in found[0])
        assert abs(found[1] - share(rows, order)) < 1e-9
        assert abs(found[1] - best) < 1e-9
        assert abs(found[2] - now) < 1e-9
