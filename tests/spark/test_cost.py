"""Money and tags: in the plan, the refusal, the stop, the report, Spark's UI and the table's properties."""

from typing import Any

import pytest
from pyspark.sql import SparkSession

from dolly_batch import Refused, Stopped, plan_job
from dolly_batch.config.limits import LimitsConfig
from dolly_batch.spark.generate.limits import Budget
from dolly_batch.spark.publish import put_tags
from dolly_batch.spark.tables.input import open_input
from dolly_batch.spark.tables.output import open_output
from tests.spark.desk import Desk, questions

TAGS = {"team": "support", "cost-center": "it's \\ 4711"}


def test_what_is_spent_stops_a_run(spark: SparkSession) -> None:
    tasks = [("a", 0.0, 3600.0), ("b", 0.0, 1800.0)]
    rows = spark.createDataFrame(tasks, "engine_id string, began_s double, ended_s double")
    Budget(LimitsConfig(price_per_gpu_hour=2.0, max_cost=3.0)).add(rows)
    budget = Budget(LimitsConfig(price_per_gpu_hour=2.0, max_cost=3.0), num_gpus=2)
    with pytest.raises(Stopped, match=r"3 GPU hours have cost 6\.00, more than limits\.max_cost = 3\.0"):
        budget.add(rows)
    assert budget.hours == 3.0


@pytest.mark.chaos
def test_a_plan_that_costs_too_much_is_refused(desk: Desk) -> None:
    desk.put(questions(4))
    limits: dict[str, Any] = {"price_per_gpu_hour": 3600.0, "max_cost": 1.0}
    plan = {"tokens_per_s": 1.0, "slots": 2}
    planned = plan_job(desk.job(limits=limits, plan=plan))
    assert planned.estimated_cost is not None
    assert planned.estimated_cost > 100
    assert f"estimated cost: {planned.estimated_cost:,.2f} for " in planned.message
    assert "`run` will refuse this: limits.max_cost is 1.0" in planned.message
    error = desk.refused(limits=limits, plan=plan)
    assert isinstance(error, Refused)
    assert "4 rows are left, which are estimated to cost" in str(error)
    assert not desk.out.exists()


def test_cost_and_tags_are_in_the_report_and_tags_at_the_table(delta_desk: Desk) -> None:
    delta_desk.put(questions(4))
    job = delta_desk.job(tags=TAGS, limits={"price_per_gpu_hour": 36_000.0})
    report = delta_desk.run(tags=TAGS, limits={"price_per_gpu_hour": 36_000.0})
    assert report.tags == TAGS
    assert report.cost == pytest.approx(report.gpu_hours * 36_000.0, abs=0.001)
    assert report.cost > 0
    table = f"delta.`{delta_desk.out}`"
    properties = {row[0]: row[1] for row in delta_desk.spark.sql(f"SHOW TBLPROPERTIES {table}").collect()}
    assert properties["dolly_batch.team"] == "support"
    assert properties["dolly_batch.cost-center"] == TAGS["cost-center"]
    versions = delta_desk.spark.sql(f"DESCRIBE HISTORY {table}").count()
    put_tags(open_output(delta_desk.spark, job, open_input(delta_desk.spark, job)))
    assert delta_desk.spark.sql(f"DESCRIBE HISTORY {table}").count() == versions
    context: Any = delta_desk.spark.sparkContext
    store = context._jsc.sc().statusStore()
    described = {store.job(n).description().get() for n in context.statusTracker().getJobIdsForGroup(report.plan_id)}
    assert all(text.endswith("[cost-center=it's \\ 4711] [team=support]") for text in described)
    assert described
