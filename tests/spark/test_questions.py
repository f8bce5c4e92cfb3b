"""Rows that ask the same are one question, and questions that begin alike are one behind the other."""

import json
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest

from dolly_batch import plan_job
from tests.spark.desk import Desk, questions

MANY_SHARDS = {"max_shard_rows": 20, "shards_per_slot": 2, "slots": 2}


def repeated(count: int, num_distinct: int) -> list[dict[str, Any]]:
    asked = [(row["instruction"], row["context"]) for row in questions(num_distinct)]
    return [{"id": f"r{i:05d}", "instruction": text, "context": more} for i, (text, more) in enumerate(asked * count)]


def staged(desk: Desk) -> list[str]:
    return [
        row[0]
        for row in desk.spark.read.parquet(str(next(desk.folder.glob("work/*/staging")))).select("row_key").collect()
    ]


def test_each_question_is_asked_once_over_all_shards_and_each_row_gets_its_answer(desk: Desk) -> None:
    rows = [*repeated(20, 25), {"id": "none", "instruction": None}]
    desk.put(rows)
    report = desk.run(
        plan=MANY_SHARDS,
        output={"mode": "append", "keep": ["context"]},
        work={"keep_days": 1},
        limits={"max_error_share": 1},
    )
    assert (report.num_answered_by_model, report.num_shared_rows, report.num_published_rows) == (25, 475, 501)
    assert len(staged(desk)) == 25
    assert report.by_status == {"ok": 500, "null_instruction": 1}
    found = {row["id"]: row for row in desk.rows()}
    assert len(found) == len(rows) == 501
    for row in rows[:-1]:
        assert found[row["id"]]["response"].startswith(row["instruction"])
        assert found[row["id"]]["context"] == row["context"]
        assert found[row["id"]]["num_prompt_tokens"] > 0
    assert report.num_completion_tokens == 20 * report.num_generated_tokens
    facts = json.loads(next(desk.folder.glob("work/*/published.json")).read_text(encoding="utf-8"))
    assert facts["by_status"] == report.by_status
    assert desk.run(output={"mode": "append", "keep": ["context"]}).outcome == "nothing_to_do"


def test_a_plan_says_how_many_questions_differ_and_counts_their_tokens_once(desk: Desk) -> None:
    desk.put(repeated(1, 10))
    once = plan_job(desk.job())
    desk.put(repeated(4, 10))
    report = plan_job(desk.job())
    assert "40 to answer (10 different ones)" in report.message
    assert report.num_prompt_tokens == once.num_prompt_tokens
    assert sum(report.token_histogram.values()) == 40


def test_sampled_rows_are_each_their_own_question(desk: Desk) -> None:
    desk.put(repeated(6, 5))
    report = desk.run(generation={"do_sample": True})
    assert (report.num_answered_by_model, report.num_shared_rows) == (30, 0)


def test_more_rows_of_a_known_question_are_matched_by_their_own_keys(desk: Desk) -> None:
    desk.put(repeated(3, 5))
    desk.run(output={"mode": "append"})
    desk.put(repeated(5, 5))
    report = desk.run(output={"mode": "append", "reuse_answers": False})
    assert (report.num_held_rows, report.num_answered_by_model + report.num_shared_rows) == (15, 10)
    assert Counter(row["id"] for row in desk.rows()) == Counter(f"r{i:05d}" for i in range(25))


def test_questions_that_begin_alike_lie_together_and_the_plan_says_what_that_shares(desk: Desk) -> None:
    products = [f"Product {i}: {'it is made of wood and ' * 12}good. " for i in range(20)]
    rows = [
        {
            "id": f"{i}-{j}",
            "instruction": f"Is this review good? {text}",
            "context": f"Review {j} of {i}: {'fine ' * (j % 7)}",
        }
        for j in range(10)
        for i, text in enumerate(products)
    ]
    desk.put(rows)
    report = desk.run(plan={"max_shard_rows": 40, "slots": 2}, work={"keep_days": 1})
    assert (report.num_shards, report.num_shared_rows) == (5, 0)
    assert report.prefix_share > 0.6
    todo = next(desk.folder.glob("work/*/snapshot/todo"))
    found = desk.spark.read.parquet(str(todo)).select("shard", "row_key").collect()
    by_product: dict[str, set[int]] = {}
    for shard, key in found:
        by_product.setdefault(key.split("-")[0], set()).add(shard)
    assert all(len(shards) == 1 for shards in by_product.values())
    sizes = Counter(shard for shard, _ in found)
    assert max(sizes.values()) <= 60
    for file in todo.rglob("*.parquet"):
        keys = [row[0].split("-")[0] for row in desk.spark.read.parquet(str(file)).select("row_key").collect()]
        assert len([1 for one, other in pairwise(keys) if one != other]) == len(set(keys)) - 1


def test_the_plan_says_which_order_of_a_templates_columns_would_share_more(desk: Desk) -> None:
    rows = [
        {"id": i, "product": f"Product {i % 8}: {'made of wood ' * 9}", "review": f"Review {i} is fine"}
        for i in range(80)
    ]
    desk.put(rows)
    one = plan_job(desk.job(input={"context": None}, task={"template": "{review} of {product}: is it good?"}))
    assert "the order {product}, {review} rows would begin alike for about 80% of the columns' text, 0%" in one.message
    other = plan_job(desk.job(input={"context": None}, task={"template": "{product} has {review}: is it good?"}))
    assert "task.template" not in other.message


def test_questions_that_do_not_begin_alike_are_laid_out_by_length_alone(desk: Desk) -> None:
    desk.put(questions(150))
    report = desk.run(plan={"max_shard_rows": 40, "slots": 2}, work={"keep_days": 1})
    assert report.num_shards == 4
    todo = next(desk.folder.glob("work/*/snapshot/todo"))
    for file in todo.rglob("*.parquet"):
        lengths = [row[0] for row in desk.spark.read.parquet(str(file)).select("num_prompt_tokens").collect()]
        assert lengths == sorted(lengths, reverse=True)


def test_a_question_that_the_output_answers_already_is_not_asked_again(desk: Desk) -> None:
    append = {"mode": "append", "keep": ["tag"]}
    rows = [{**row, "tag": "one"} for row in repeated(2, 5)]
    desk.put(rows)
    first = desk.run(output=append)
    known = [{**row, "id": f"n{row['id']}", "tag": "two"} for row in rows]
    new = [{**row, "id": f"x{row['id']}", "tag": "three"} for row in questions(12)[5:]]
    desk.put([*rows, *known, *new])
    plan = plan_job(desk.job(output=append))
    assert "7 to answer with" in plan.message
    assert "10 copied from equal questions in the output" in plan.message
    report = desk.run(output=append)
    assert (report.num_held_rows, report.num_copied_rows, report.num_answered_by_model) == (10, 10, 7)
    assert (report.num_published_rows, report.by_status) == (17, {"ok": 17})
    found = {row["id"]: row for row in desk.rows()}
    assert len(found) == len(desk.rows()) == 27
    for row in known:
        own, other = found[row["id"]], found[row["id"][1:]]
        assert (own["tag"], own["response"], own["request_key"]) == ("two", other["response"], other["request_key"])
        assert (own["plan_id"], other["plan_id"]) == (report.plan_id, first.plan_id)
    assert desk.run(output=append).outcome == "nothing_to_do"


@pytest.mark.chaos
def test_all_rows_copied_take_no_model(desk: Desk) -> None:
    desk.put(repeated(1, 5))
    desk.run(output={"mode": "append"})
    desk.put([{**row, "id": f"n{row['id']}"} for row in repeated(1, 5)])
    report = desk.run(output={"mode": "append"})
    assert (report.num_copied_rows, report.num_answered_by_model, report.model_loads) == (5, 0, 0)
    desk.put([{**row, "id": f"m{row['id']}"} for row in repeated(1, 5)])
    report = desk.run(output={"mode": "append", "reuse_answers": False})
    assert (report.num_copied_rows, report.num_answered_by_model) == (0, 5)
    desk.put([{**row, "id": f"k{row['id']}"} for row in repeated(1, 5)])
    report = desk.run(output={"mode": "append"}, generation={"do_sample": True})
    assert (report.num_copied_rows, report.num_answered_by_model) == (0, 5)
    report = desk.run(output={"mode": "append"}, generation={"max_new_tokens": 7})
    assert (report.num_copied_rows, report.num_answered_by_model) == (0, 5)


@pytest.mark.long
def test_an_estimate_follows_what_earlier_runs_took(desk: Desk) -> None:
    desk.put(questions(120))
    slow = {"engine": {"echo_delay_s": 0.05}, "output": {"mode": "append"}}
    report = desk.run(**slow)
    took = report.seconds["generate"]
    desk.put(questions(240, start=120))
    again = plan_job(desk.job(**slow))
    assert again.estimated_s is not None
    assert took < again.estimated_s < 3 * took
    (desk.folder / "work" / "rates.json").write_text("{ torn", encoding="utf-8")
    first = plan_job(desk.job(**slow)).estimated_s
    assert first is not None
    assert first < took


@pytest.mark.chaos
@pytest.mark.parametrize("do_sample", [False, True])
def test_of_100_000_rows_each_different_question_is_asked_once(desk: Desk, do_sample: bool) -> None:
    desk.put(repeated(20, 5_000))
    report = desk.run(
        output={"mode": "append"},
        generation={"do_sample": do_sample},
        plan={"max_shard_rows": 1000 if do_sample else 50},
    )
    assert report.num_shards == 100
    assert report.num_answered_by_model == (100_000 if do_sample else 5_000)
    assert report.num_answered_by_model + report.num_shared_rows == 100_000
    assert report.by_status == {"ok": 100_000}
    assert desk.run(output={"mode": "append"}, generation={"do_sample": do_sample}).outcome == "nothing_to_do"
