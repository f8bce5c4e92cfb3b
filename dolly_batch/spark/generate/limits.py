"""What ends a run at the end of a wave: engines busy for longer than the budget, or too many rows that fail."""

from dataclasses import dataclass

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from dolly_batch.errors import Stopped
from dolly_batch.records import ERROR_STATUSES

MIN_JUDGED_ROWS = 500  # fewer may fail by chance


@dataclass
class ErrorLimit:
    """Counts the errors of finished waves, each wave once, against `limits.max_error_share`."""

    max_share: float
    num_rows: int = 0
    num_errors: int = 0

    def is_due(self, num_new_rows: int) -> bool:
        """Whether so many rows that were not counted yet are worth a Spark job."""
        return self.max_share < 1 and num_new_rows >= MIN_JUDGED_ROWS

    def add(self, staged: DataFrame) -> None:
        """Count the answers of further waves.

        Raises Stopped, naming their commonest fault, when too many are errors: what is left would most likely fail too,
        and be paid for.
        """
        counted = staged.groupBy("status").agg(F.count("*"), F.mode("error")).collect()
        errors = sorted((row for row in counted if row[0] in ERROR_STATUSES), key=lambda row: row[1])
        self.num_rows += sum(row[1] for row in counted)
        self.num_errors += sum(row[1] for row in errors)
        if not errors or self.num_rows < MIN_JUDGED_ROWS or self.num_errors <= self.max_share * self.num_rows:
            return
        status, count, message = errors[-1]
        raise Stopped(
            f"stopped: {self.num_errors:,} of the {self.num_rows:,} rows answered so far are errors, more than "
            f"limits.max_error_share = {self.max_share}; {count:,} of the last ones are {status}, most with: {message}."
            " Finished waves are kept: mend the cause or allow more errors, and run the same command to resume; or "
            "close the plan with --abandon"
        )


def check_budget(staged: DataFrame, max_gpu_hours: float) -> None:
    """Raise Stopped when the engines that wrote these answers were busy for longer than the budget."""
    hours = busy_hours(staged)
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
