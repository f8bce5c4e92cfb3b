"""What rows are laid out by, the shards that they go to, and the order in which an engine takes them."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dolly_batch.config.job import PlanConfig
from dolly_batch.engine.waiting import MIN_COMMON, WaitingOrder
from dolly_batch.spark.plan.beginnings import LENGTHS, Length, Sharing, choose_sharing
from dolly_batch.spark.plan.estimate import gpu_flops
from dolly_batch.spark.plan.layout import count_wave_shards, shards_of_buckets


def sharing_of(texts: list[str], offset: int = 0) -> Sharing:
    """By the counts that Spark makes."""
    long_enough = [(at, [text[: offset + at] for text in texts if len(text) >= offset + at]) for at in LENGTHS]
    lengths = [Length(at, len(found), len(set(found))) for at, found in long_enough]
    return choose_sharing(lengths, offset, len(texts), sum(map(len, texts)), 40)


def reviews(num_products: int, num_reviews: int, product_chars: int, review_chars: int) -> list[str]:
    numbers = random.Random(1)

    def text(num_chars: int) -> str:
        return "".join(numbers.choice("abcdefgh ") for _ in range(num_chars))

    products = [text(product_chars) for _ in range(num_products)]
    return [product + text(review_chars) for product in products for _ in range(num_reviews)]


def test_rows_of_one_product_are_laid_out_by_its_text() -> None:
    texts = reviews(200, 20, 600, 200)
    sharing = sharing_of(texts)
    assert sharing.beginning is not None
    assert len({text[: sharing.beginning.num_chars] for text in texts}) == 200
    assert 0.55 < sharing.share < 0.75  # of 0.75; counted at 512 of 600 characters


def test_rows_that_all_differ_are_not_mixed() -> None:
    texts = reviews(2000, 1, 0, 400)
    assert sharing_of(texts) == Sharing(None, 0.0)


def test_what_all_rows_begin_with_is_shared_in_any_order() -> None:
    texts = reviews(1, 2000, 1000, 200)
    sharing = sharing_of(texts, offset=1000)
    assert sharing.beginning is None
    assert 0.8 < sharing.share < 1000 / 1200


def test_of_a_template_and_a_product_the_product_decides() -> None:
    texts = ["x" * 1500 + text for text in reviews(100, 20, 300, 100)]
    sharing = sharing_of(texts, offset=1500)
    assert sharing.beginning is not None
    assert sharing.beginning.offset == 1500
    assert len({text[: 1500 + sharing.beginning.num_chars] for text in texts}) == 100


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=200), st.integers(1, 40))
def test_shards_cost_about_the_same(costs: list[float], num_shards: int) -> None:
    shards = shards_of_buckets(costs, num_shards)
    assert len(shards) == len(costs)
    assert all(found and set(found) <= set(range(num_shards)) for found in shards)
    loads = [0.0] * num_shards
    for cost, found in zip(costs, shards, strict=True):
        for shard in found:
            loads[shard] += cost / len(found)
    target = sum(costs) / num_shards
    largest_piece = max(cost / len(found) for cost, found in zip(costs, shards, strict=True))
    assert largest_piece <= 1.5 * target * (1 + 1e-9) or target == 0
    assert max(loads) <= (target + largest_piece) * (1 + 1e-9)


def test_a_wave_is_a_hundredth_of_the_work_or_the_slots_that_the_job_names() -> None:
    config = PlanConfig()
    assert [count_wave_shards(num, config) for num in (1, 800, 801, 657_778)] == [8, 8, 9, 6578]
    assert count_wave_shards(657_778, PlanConfig(slots=3, shards_per_slot=2)) == 6


def test_the_slowest_gpu_that_is_there_decides_what_a_shard_takes() -> None:
    by_name = {"Tesla T4": 320, "NVIDIA A10G": 600, "NVIDIA A100-SXM4-40GB": 1555, "NVIDIA H100 80GB HBM3": 3350}
    for name, gb_per_s in by_name.items():
        assert gpu_flops([name]) == pytest.approx(2e13 * gb_per_s / 600)
    assert gpu_flops(["NVIDIA H100 80GB HBM3", "Tesla T4"]) == gpu_flops(["Tesla T4"])
    assert gpu_flops([]) == gpu_flops(["NVIDIA RTX A4000"]) == pytest.approx(2e13)


def test_requests_wait_longest_first_with_those_that_begin_alike_side_by_side() -> None:
    order = WaitingOrder()
    one, two = tuple(range(2 * MIN_COMMON)), tuple(range(1000, 1000 + 3 * MIN_COMMON))
    prompts = [(7,) * 5, one, (*one, 1), two, (*two, 1), (8,) * 90]
    ranked = sorted((order.rank(prompt, len(prompt)), number) for number, prompt in enumerate(prompts))
    assert [number for _, number in ranked] == [3, 4, 1, 2, 5, 0]
    assert order.rank((*two, 1, 2), 9) > order.rank((9,) * 2000, 2000)
