"""The budget of a run, `limits.max_gpu_hours`: hours for which engines were busy, by the waves that are finished."""

from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from dolly_batch.errors import Stopped
from dolly_batch.spark.generate.shard import staged_schema


def check_budget(spark: SparkSession, staged: list[str], kind: str, max_gpu_hours: float) -> None:
    """Raise Stopped when the engines that wrote these folders were busy for longer than the budget."""
    # The current schema: waves that an earlier version staged do not say when their tasks began and ended.
    hours = busy_hours(spark.read.schema(staged_schema(kind)).parquet(*staged))
    if hours > max_gpu_hours:
        raise Stopped(
            f"stopped: engines have been busy for {hours:.3g} hours, more than limits.max_gpu_hours = {max_gpu_hours}; "
            "raise it and run the same command to resume"
        )


def busy_hours(staged: DataFrame) -> float:
    """Hours for which engines have had tasks, added up over engines; the time of tasks that shared one counts once."""
    earlier = Window.partitionBy("engine_id").orderBy("began_s", "ended_s").rowsBetween(Window.unboundedPreceding, -1)
    busy_until = F.max("ended_s").over(earlier)  # null for an engine's first task, which `greatest` ignores
    added = F.col("ended_s") - F.greatest("began_s", busy_until)
    tasks = staged.where("ended_s is not null").select(F.greatest(added, F.lit(0.0)).alias("added_s"))
    row = tasks.agg(F.sum("added_s")).first()
    return (row[0] or 0.0) / 3600 if row is not None else 0.0
