"""Publishing: staged answers and skipped rows become rows of the output, in one commit that can safely be repeated."""

from collections import Counter
from dataclasses import replace
from datetime import datetime
from functools import reduce

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from dolly_batch.console import say
from dolly_batch.errors import AuditError, Stopped
from dolly_batch.spark.causes import reason
from dolly_batch.spark.decisions import ANSWERS, ASKING, CARRIED_OVER, COPIED, SKIPPED, TODO
from dolly_batch.spark.files import literal
from dolly_batch.spark.generate.shard import staged_schema
from dolly_batch.spark.plan.existing import PARTIAL_COLUMNS
from dolly_batch.spark.plan.manifest import Plan, PlanFolder
from dolly_batch.spark.plan.questions import ASKED
from dolly_batch.spark.plan.snapshot import read_part
from dolly_batch.spark.session.session import own_session
from dolly_batch.spark.tables.columns import answer_fields, no_rows, quoted_path
from dolly_batch.spark.tables.output import OutputTable
from dolly_batch.spark.tables.schemas import task_fields


def publish(target: OutputTable, folder: PlanFolder, plan: Plan) -> None:
    """Commit the plan's rows, as the output's format does it. A second call, or a late one, changes nothing.

    Raises AuditError when staged answers are not the planned rows.
    """
    # What a commit sets in its session is nothing to other threads that use the caller's.
    target = replace(target, spark=own_session(target.spark))
    if target.format.finish_commit(target, folder, plan):
        return
    rows = published_rows(target, folder, plan)
    try:
        target.format.commit(target, folder, plan, rows)
    except (PySparkException, Py4JJavaError, OSError) as error:
        raise Stopped(
            f"the answers could not be written to {target.job.output.name}: {reason(error)}. They are kept: mend that, "
            "and run the same command to publish them"
        ) from error


def put_tags(target: OutputTable) -> None:
    """Put the job's tags into the table's properties, where the format has any.

    A catalog may keep that to the table's owner: the answers are published all the same, and one line says so.
    """
    if not target.job.tags:
        return
    try:
        target.format.put_properties(target, {f"dolly_batch.{name}": text for name, text in target.job.tags.items()})
    except (PySparkException, Py4JJavaError) as error:
        say(f"tags: {target.job.output.name} does not take properties: {reason(error)}")


def staged_answers(target: OutputTable, folder: PlanFolder, plan: Plan) -> DataFrame:
    """The answers of all waves."""
    paths = [literal(folder.staged(wave.number)) for wave in plan.waves]
    schema = staged_schema(target.job.task)
    return target.spark.read.schema(schema).parquet(*paths) if paths else no_rows(target.spark, schema)


def snapshot(target: OutputTable, folder: PlanFolder, part: str) -> DataFrame:
    """A part of the plan's snapshot, one of those that row_status.py names. It must have rows."""
    return read_part(target.spark, folder.files, folder.of("snapshot", part))


def published_rows(target: OutputTable, folder: PlanFolder, plan: Plan) -> DataFrame:
    """All rows that this plan publishes, with the output's columns. Raises AuditError if others than planned."""
    _check_answers(target, folder, plan)
    rows = new_rows(target, folder, plan)
    return rows.unionByName(_carried_over(target, folder, plan)) if plan.num_carried_over else rows


def new_rows(target: OutputTable, folder: PlanFolder, plan: Plan) -> DataFrame:
    """The rows that this plan publishes, with the output's columns, without those that it carries over."""
    parts: list[DataFrame] = []
    if plan.waves:
        parts.append(_as_output(target, plan, answered_rows(target, folder, plan)))
    if plan.num_skipped:
        parts.append(_skipped(target, folder, plan))
    if plan.num_copied:
        parts.append(_copied(target, folder, plan))
    return reduce(DataFrame.unionByName, parts) if parts else no_rows(target.spark, target.schema)


def answered_rows(target: OutputTable, folder: PlanFolder, plan: Plan) -> DataFrame:
    """The rows that the model was asked for, with their answers; rows that ask the same all have the one answer."""
    answers = staged_answers(target, folder, plan)
    if plan.num_shared:
        return snapshot(target, folder, ASKING).join(answers.drop("row_key"), "request_key")
    todo = snapshot(target, folder, TODO).drop(*ASKED, "shard", "wave", *PARTIAL_COLUMNS)
    return todo.join(answers, ["row_key", "request_key"])


def count_statuses(target: OutputTable, folder: PlanFolder, plan: Plan) -> dict[str, int]:
    """The rows that this plan publishes by status, carried-over ones left out."""
    counts = Counter(plan.skipped)
    rows = [answered_rows(target, folder, plan).select("status")] if plan.waves else []
    rows += [_copied_rows(target, folder).select("answer.status")] if plan.num_copied else []
    for part in rows:
        counts.update(dict(map(tuple, part.groupBy("status").count().collect())))
    return dict(counts)


def _check_answers(target: OutputTable, folder: PlanFolder, plan: Plan) -> None:
    """Raise AuditError, naming the waves, unless each planned row, and no other, has exactly one answer."""
    if not plan.waves:
        return
    keys = ["wave", "row_key", "request_key"]
    todo = snapshot(target, folder, TODO).select(*keys, F.lit(1).alias("side"))
    staged = staged_schema(target.job.task)
    with_wave = T.StructType([*staged.fields, T.StructField("wave", T.IntegerType())])
    answers = (
        target.spark.read.schema(with_wave)
        .parquet(literal(folder.of("staging")))
        .select(*keys, F.lit(-1).alias("side"))
    )
    sums = todo.unionByName(answers).groupBy(*keys).agg(F.sum("side").alias("side")).filter(F.col("side") != 0)
    wrong = sums.groupBy("wave").count().orderBy("wave").collect()
    if wrong:
        folders = ", ".join(f"wave={row[0]} ({row[1]} rows)" for row in wrong[:5])
        raise AuditError(
            f"plan {plan.plan_id}: the staged answers of {folders} are not the planned rows; nothing was published. "
            f"Delete these folders in {folder.of('staging')} and run the same command: it answers their rows again"
        )


def _skipped(target: OutputTable, folder: PlanFolder, plan: Plan) -> DataFrame:
    none, task = F.lit(None), target.job.task
    fields = task_fields(task.kind, cascades=task.cascade is not None)
    skipped = snapshot(target, folder, SKIPPED).select(
        "*",
        none.cast("string").alias("response"),
        none.cast("string").alias("finish_reason"),
        none.cast("int").alias("num_completion_tokens"),
        *(none.cast(field.dataType).alias(field.name) for field in fields),
    )
    return _as_output(target, plan, skipped)


def _copied(target: OutputTable, folder: PlanFolder, plan: Plan) -> DataFrame:
    """Rows with a copy of another row's answer: this plan's own rows, by the model and revision that gave it."""
    own = {**_plan_columns(plan), "request_key": F.col("request_key"), "attempt": F.col("attempt")}
    own |= {"num_dropped_tokens": F.col("num_dropped_tokens"), "input_truncated": F.col("num_dropped_tokens") > 0}
    names = [field.name for field in answer_fields(target.job)]
    answer = [own.get(name, F.col("answer")[name]).alias(target.output_name(name)) for name in names]
    return _copied_rows(target, folder).select(*target.input_columns(), *answer)


def _copied_rows(target: OutputTable, folder: PlanFolder) -> DataFrame:
    return snapshot(target, folder, COPIED).join(snapshot(target, folder, ANSWERS), "request_key")


def planned_at(plan: Plan) -> Column:
    """The `created_at` of the plan's rows."""
    return F.timestamp_micros(F.lit(int(datetime.fromisoformat(plan.created_at).timestamp() * 1_000_000)))


def _plan_columns(plan: Plan) -> dict[str, Column]:
    return {"plan_id": F.lit(plan.plan_id), "created_at": planned_at(plan)}


def _as_output(target: OutputTable, plan: Plan, rows: DataFrame) -> DataFrame:
    """Rows with internal names as rows of the output."""
    ours: dict[str, Column] = {
        **_plan_columns(plan),
        "input_truncated": F.col("num_dropped_tokens") > 0,
        "model": F.lit(plan.model),
        "model_revision": F.lit(plan.model_revision).cast("string"),
    }
    fields = answer_fields(target.job)
    if isinstance(fields[0].dataType, T.StructType):
        ours["response"] = F.from_json("response", fields[0].dataType)  # staged as text, and checked there
    answer = [ours.get(field.name, F.col(field.name)).alias(target.output_name(field.name)) for field in fields]
    return rows.select(*target.input_columns(), *answer)


def _carried_over(target: OutputTable, folder: PlanFolder, plan: Plan) -> DataFrame:
    """Answers that the output holds already, with the input's present columns (mode overwrite).

    Raises Stopped where some of them are no longer there: the new table would lack rows of the input.
    """
    table = target.read()
    if table is None:
        raise Stopped(
            f"the output {target.job.output.name} no longer exists, and this plan carries over answers from it; "
            "close the plan with --abandon"
        )
    wanted = snapshot(target, folder, CARRIED_OVER)
    inputs = wanted.select("row_key", "request_key", F.struct(*target.input_columns()).alias("inputs"))
    answers = F.struct(*(F.col(quoted_path(target.output_name(field.name))) for field in answer_fields(target.job)))
    keys = [
        target.row_key().alias("row_key"),
        F.col(quoted_path(target.output_name("request_key"))).alias("request_key"),
    ]
    held = table.select(*keys, answers.alias("answers")).dropDuplicates(["row_key", "request_key"])
    rows = inputs.join(held, ["row_key", "request_key"]).select("inputs.*", "answers.*")
    if (num_gone := plan.num_carried_over - rows.count()) > 0:
        raise Stopped(
            f"{num_gone} rows that plan {plan.plan_id} carries over have gone from {target.job.output.name} since it "
            "was made; nothing was published. Close the plan with --abandon: the next run answers them again"
        )
    return rows
