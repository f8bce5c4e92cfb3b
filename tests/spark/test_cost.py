"""Money and tags: in the plan, the refusal, the stop, the report, Spark's UI and the table's properties."""

from types import SimpleNamespace
from typing import Any

import pytest
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from dolly_batch import Refused, Report, Stopped, plan_job
from dolly_batch.config.limits import LimitsConfig
from dolly_batch.spark.generate.limits import Budget
from dolly_batch.spark.outcome import count_cost
from dolly_batch.spark.plan import cost
from dolly_batch.spark.plan.manifest import Plan
from dolly_batch.spark.preflight.gpus import gpus_at_once
from dolly_batch.spark.publish import put_tags
from dolly_batch.spark.tables.delta_commit import _is_conflict
from dolly_batch.spark.tables.input import open_input
from dolly_batch.spark.tables.output import open_output
from tests.spark.desk import Desk, questions
from tests.spark.test_progress import PLAN_PARTS

TAGS = {"team": "support", "cost-center": "it's \\ 4711", "runbook-url": "https://x"}


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
    other = job.model_copy(update={"tags": TAGS | {"team": "sales"}})  # neither brings the other's tag back
    for again in (job, other):
        put_tags(open_output(delta_desk.spark, again, open_input(delta_desk.spark, again)))
    assert delta_desk.spark.sql(f"DESCRIBE HISTORY {table}").count() == versions
    context: Any = delta_desk.spark.sparkContext
    store = context._jsc.sc().statusStore()
    described = {store.job(n).description().get() for n in context.statusTracker().getJobIdsForGroup(report.plan_id)}
    tags = "[cost-center=it's \\ 4711] [runbook-url=https://x] [team=support]"
    assert all(text.endswith(tags) for text in described)
    assert described


@pytest.mark.parametrize(
    ("named", "is_one"),
    [
        ("[DELTA_METADATA_CHANGED] The metadata of the table was changed by a concurrent update.", True),
        ("[DELTA_PROTOCOL_CHANGED] ProtocolChangedException", True),
        ("[DELTA_CONCURRENT_APPEND.WITHOUT_HINT] ConcurrentAppendException", True),
        ("[DELTA_TABLE_NOT_FOUND] Delta table does not exist; DELTA_SOMETHING", False),
    ],
)
def test_a_commit_that_meets_new_properties_is_tried_again(named: str, is_one: bool) -> None:
    assert _is_conflict(PySparkException(named)) == is_one


def test_the_exceptions_of_delta_for_it_are_known_by_their_names() -> None:
    from delta.exceptions import MetadataChangedException, ProtocolChangedException

    assert _is_conflict(MetadataChangedException("changed"))
    assert _is_conflict(ProtocolChangedException("changed"))


@pytest.mark.parametrize(
    ("share", "slots", "gpus"),
    [("0.3", 3, 1.0), ("0.3", 7, 3.0), ("0.5", 4, 2.0), ("0.25", 1, 1.0), ("1", 3, 3.0), ("2", 3, 6.0), (None, 4, 2.0)],
)
def test_gpus_that_are_paid_for(share: str | None, slots: int, gpus: float) -> None:
    conf = {"spark.executor.resource.gpu.amount": "1", "spark.task.resource.gpu.amount": share, "spark.master": "yarn"}
    spark: Any = SimpleNamespace(
        conf=SimpleNamespace(get=lambda key, default=None: conf.get(key) or default),
        sparkContext=SimpleNamespace(master="yarn"),
    )
    assert gpus_at_once(spark, slots, 1) == gpus


def test_a_cascade_is_refused_by_its_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = PLAN_PARTS | {"num_rows": 11_000, "num_skipped": 1000, "estimated_s": 36_000.0}
    plan = Plan(**parts, waves=())
    monkeypatch.setattr(cost, "gpus_at_once", lambda spark, slots, num_gpus: 1.0)
    spark: Any = None

    def job(max_cost: float, sample: int | None) -> Any:
        limits = LimitsConfig(price_per_gpu_hour=1.0, max_cost=max_cost)
        cascade = None if sample is None else SimpleNamespace(sample=sample)
        task, model = SimpleNamespace(cascade=cascade), SimpleNamespace(gpus=1)
        return SimpleNamespace(limits=limits, task=task, model=model)

    cost.refuse_expensive(spark, job(5.0, 2000), plan)  # of 10,000 questions that would cost 10
    assert cost.cost_note(spark, job(5.0, 2000), plan) == (
        "estimated cost: 10.00 at most (the sample of the cascade: 2.00) for 10 GPU hours at 1.0"
    )
    with pytest.raises(Refused, match=r"10,000 rows are left, of which the sample .* cost 2\.00, more than .* = 1\.5"):
        cost.refuse_expensive(spark, job(1.5, 2000), plan)
    with pytest.raises(Refused, match=r"10,000 rows are left, which are estimated to cost 10\.00"):
        cost.refuse_expensive(spark, job(5.0, None), plan)
    with pytest.raises(Refused, match=r"cost 10\.00"):
        cost.refuse_expensive(spark, job(5.0, 9000), plan)  # too few are left: the model answers all


def test_what_nobody_has_counted_has_no_cost() -> None:
    limits = LimitsConfig(price_per_gpu_hour=36.0)
    job: Any = SimpleNamespace(limits=limits, tags={}, model=SimpleNamespace(gpus=2))
    found = []
    for engines_s in (50.0, None):
        count_cost(job, engines_s, report := Report("job"))
        found.append((round(report.gpu_hours, 4), report.cost))
    assert found == [(0.0278, 1.0), (0.0, None)]
