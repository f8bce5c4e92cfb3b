"""What a plan will cost, where the job names a price: GPU hours by the estimate of its time, and money."""

from pyspark.sql import SparkSession

from dolly_batch.config.job import JobConfig
from dolly_batch.errors import Refused
from dolly_batch.spark.plan.manifest import Plan
from dolly_batch.spark.plan.sample import sample_size
from dolly_batch.spark.preflight.gpus import gpus_at_once


def estimated_gpu_hours(spark: SparkSession, job: JobConfig, plan: Plan) -> float:
    """Hours of all GPUs together, without the time of loading; on CPUs of all engines. The model answers all rows."""
    return gpus_at_once(spark, plan.slots, job.model.gpus) * plan.estimated_s / 3600


def estimated_cost(spark: SparkSession, job: JobConfig, plan: Plan) -> float | None:
    """Money, None without a price; with a cascade the most that it can be."""
    price = job.limits.price_per_gpu_hour
    return None if price is None else price * estimated_gpu_hours(spark, job, plan)


def cost_note(spark: SparkSession, job: JobConfig, plan: Plan) -> str:
    """What a plan that was only counted says of it; empty without a price."""
    cost, max_cost = estimated_cost(spark, job, plan), job.limits.max_cost
    if cost is None:
        return ""
    share = least_share(job, plan)
    refused = f"; `run` will refuse this: limits.max_cost is {max_cost}" if _is_more(cost * share, max_cost) else ""
    most = f" at most (the sample of the cascade: {cost * share:,.2f})" if share < 1 else ""
    hours = estimated_gpu_hours(spark, job, plan)
    return f"estimated cost: {cost:,.2f}{most} for {hours:,.3g} GPU hours at {job.limits.price_per_gpu_hour}{refused}"


def least_share(job: JobConfig, plan: Plan) -> float:
    """The part of the questions that the model answers in any case: those of a cascade's sample, else all."""
    num_questions = _num_left(plan) - plan.num_copied - plan.num_shared
    size = sample_size(job, num_questions)
    return size / num_questions if size else 1.0


def refuse_expensive(spark: SparkSession, job: JobConfig, plan: Plan) -> None:
    """Raise Refused for a plan that is estimated to cost more than the job may, with a cascade already its sample."""
    cost, share, max_cost = estimated_cost(spark, job, plan), least_share(job, plan), job.limits.max_cost
    if cost is not None and _is_more(cost * share, max_cost):
        whose = "which are estimated to" if share == 1 else "of which the sample of the cascade alone is estimated to"
        raise Refused(
            f"{_num_left(plan):,} rows are left, {whose} cost {cost * share:,.2f}, more than limits.max_cost = "
            f"{max_cost}; raise it, or answer some rows by --limit (the estimate is rough before the first run; "
            "plan.tokens_per_s corrects it)"
        )


def _num_left(plan: Plan) -> int:
    return plan.num_rows - plan.num_answered_before - plan.num_skipped


def _is_more(cost: float, max_cost: float | None) -> bool:
    return max_cost is not None and cost > max_cost
