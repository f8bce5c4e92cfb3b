"""Watching the waves go by: how far they are, and whether the budget is spent."""

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from dolly_batch.errors import Stopped
from dolly_batch.report import ProgressLine
from dolly_batch.spark.files import LocalFiles
from dolly_batch.spark.generate.shard import staged_schema
from dolly_batch.spark.generate.waves import Generation
from dolly_batch.spark.plan.manifest import Plan, PlanFolder


def generate(generation: Generation) -> None:
    """Run the waves that are left, with a live line on a terminal, within the budget of GPU hours.

    Raises Stopped when the budget is spent, and whatever ends the run.
    """
    folder, plan = generation.folder, generation.plan
    budget = generation.job.limits.max_gpu_hours
    seen: set[int] = set()
    with ProgressLine(plan.num_todo) as line:

        def tick() -> None:
            done = _progress_of(folder, plan)
            line.update(*done)
            staged = folder.staged_waves()
            if budget is not None and staged != seen and len(staged) < len(plan.waves):
                seen.update(staged)
                _check_budget(generation, budget)

        generation.run(tick)


def _progress_of(folder: PlanFolder, plan: Plan) -> tuple[int, int]:
    """Rows answered and tokens written so far, from the tasks' own small files."""
    total_rows = total_tokens = 0
    staged = folder.staged_waves()
    for wave in plan.waves:
        rows = tokens = 0
        if isinstance(folder.files, LocalFiles):
            told = folder.of("progress", f"wave={wave.number}")
            for name in folder.files.list_names(told):
                numbers = (folder.files.read(f"{told}/{name}") or "").split()
                if not name.startswith(".") and len(numbers) == 2:
                    rows, tokens = rows + int(numbers[0]), tokens + int(numbers[1])
        total_rows += wave.num_rows if wave.number in staged else min(rows, wave.num_rows)
        total_tokens += tokens
    return total_rows, total_tokens


def _check_budget(generation: Generation, max_gpu_hours: float) -> None:
    folder = generation.folder
    staged = [folder.staged(number) for number in sorted(folder.staged_waves())]
    if not staged:
        return
    # By the schema of today: waves that an earlier version staged do not say when their tasks began and ended.
    schema = staged_schema(generation.job.task.kind)
    hours = busy_hours(generation.spark.read.schema(schema).parquet(*staged))
    if hours > max_gpu_hours:
        raise Stopped(
            f"stopped: engines have been busy for {hours:.3g} hours, more than limits.max_gpu_hours = {max_gpu_hours}; "
            "raise it and run the same command to go on"
        )


def busy_hours(staged: DataFrame) -> float:
    """Hours for which engines have had tasks, added up over engines; the time of tasks that shared one counts once."""
    earlier = Window.partitionBy("engine_id").orderBy("began_s", "ended_s").rowsBetween(Window.unboundedPreceding, -1)
    busy_until = F.max("ended_s").over(earlier)  # null for an engine's first task, which `greatest` passes over
    added = F.col("ended_s") - F.greatest("began_s", busy_until)
    tasks = staged.where("ended_s is not null").select(F.greatest(added, F.lit(0.0)).alias("added_s"))
    row = tasks.agg(F.sum("added_s")).first()
    return (row[0] or 0.0) / 3600 if row is not None else 0.0
