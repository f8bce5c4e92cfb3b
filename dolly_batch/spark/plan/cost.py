"""What a plan will cost, where the job names a price: GPU hours by the estimate of its time, and money."""

from pyspark.sql import SparkSession

from dolly_batch.config.job import JobConfig
from dolly_batch.errors import Refused
from dolly_batch.spark.plan.manifest import Plan
from dolly_batch.spark.preflight.gpus import gpus_at_once


def estimated_gpu_hours(spark: SparkSession, job: JobConfig, plan: Plan) -> float:
    """Hours of all GPUs together, without the time of loading; on CPUs of all engines."""
    return gpus_at_once(spark, plan.slots, job.model.gpus) * plan.estimated_s / 3600


def estimated_cost(spark: SparkSession, job: JobConfig, plan: Plan) -> float | None:
    """Money, None without a price."""
    price = job.limits.price_per_gpu_hour
    return None if price is None else price * estimated_gpu_hours(spark, job, plan)


def cost_note(spark: SparkSession, job: JobConfig, plan: Plan) -> str:
    """What a plan that was only counted says of it; empty without a price."""
    cost = estimated_cost(spark, job, plan)
    if cost is None:
        return ""
    max_cost = job.limits.max_cost
    refused = f"; `run` will refuse this: limits.max_cost is {max_cost}" if max_cost and cost > max_cost else ""
    hours = estimated_gpu_hours(spark, job, plan)
    return f"estimated cost: {cost:,.2f} for {hours:,.3g} GPU hours at {job.limits.price_per_gpu_hour}{refused}"


def refuse_expensive(spark: SparkSession, job: JobConfig, plan: Plan) -> None:
    """Raise Refused for a plan that is estimated to cost more than the job may."""
    cost, max_cost = estimated_cost(spark, job, plan), job.limits.max_cost
    if cost is not None and max_cost is not None and cost > max_cost:
        raise Refused(
            f"{plan.num_rows - plan.num_answered_before - plan.num_skipped:,} rows are left, which are estimated to "
            f"cost {cost:,.2f}, more than limits.max_cost = {max_cost}; raise it, or answer some rows by --limit (the "
            "estimate is rough before the first run; plan.tokens_per_s corrects it)"
        )
