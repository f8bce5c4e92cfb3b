"""Publishing: staged answers and set-aside rows become the output's rows, in one commit, whoever runs it how often."""

import time
import uuid
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any

from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from dolly_batch.config.task import ExtractTask
from dolly_batch.errors import AuditError, Stopped
from dolly_batch.spark.files import Files
from dolly_batch.spark.generate.shard import staged_schema
from dolly_batch.spark.plan.existing import PARTIAL_COLUMNS
from dolly_batch.spark.plan.manifest import Plan, PlanFolder
from dolly_batch.spark.plan.snapshot import read_part
from dolly_batch.spark.session.conf import session_conf
from dolly_batch.spark.tables.columns import answer_fields, quoted_path
from dolly_batch.spark.tables.output import OutputTable
from dolly_batch.spark.tables.schemas import TASK_FIELDS
from dolly_batch.spark.tables.struct import struct_type

NEW = "__new_"
SWAPPING = "swapping.json"
WRITE_RETRIES = 5


def publish(target: OutputTable, folder: PlanFolder, plan: Plan) -> None:
    """Commit the plan's rows. A second call, or a late one, changes nothing.

    Delta: append is an insert-only MERGE on row and request key, merge a MERGE on the row key, overwrite an overwrite.
    Parquet: append is one folder `plan_id=...`, overwrite a fresh folder; both appear by a rename.
    Raises AuditError when staged answers are not the planned rows.
    """
    if target.files is not None and target.path is not None and folder.has(SWAPPING):
        return _swap(target.files, target.path, folder, plan)
    rows = published_rows(target, folder, plan)
    if target.job.output.format == "parquet":
        _publish_parquet(target, folder, plan, rows)
    elif target.job.output.mode == "overwrite":
        _overwrite_delta(target, plan, rows)
    else:
        _merge_delta(target, plan, rows)


def staged_answers(target: OutputTable, folder: PlanFolder, plan: Plan) -> DataFrame:
    """The answers of all waves."""
    paths = [folder.staged(wave.number) for wave in plan.waves]
    schema = staged_schema(target.job.task.kind)
    return target.spark.read.schema(schema).parquet(*paths) if paths else target.spark.createDataFrame([], schema)


def snapshot(target: OutputTable, folder: PlanFolder, part: str) -> DataFrame:
    """A part of the plan's snapshot: todo, aside or reused."""
    return read_part(target.spark, folder.files, folder.of("snapshot", part))


def published_rows(target: OutputTable, folder: PlanFolder, plan: Plan) -> DataFrame:
    """All rows that this plan publishes, with the output's columns. Raises AuditError unless they are the planned."""
    _check_answers(target, folder, plan)
    answers = staged_answers(target, folder, plan)
    rows = _set_aside(target, folder, plan)
    if plan.waves:
        asked = ("instruction", "context", "num_prompt_tokens", "shard", "wave", *PARTIAL_COLUMNS)
        todo = snapshot(target, folder, "todo").drop(*asked)
        rows = _as_output(target, plan, todo.join(answers, ["row_key", "request_key"])).unionByName(rows)
    if plan.num_reused:
        rows = rows.unionByName(_reused(target, folder))
    return rows


def _check_answers(target: OutputTable, folder: PlanFolder, plan: Plan) -> None:
    """Raise AuditError, naming the waves, unless each planned row, and no other, has exactly one answer."""
    if not plan.waves:
        return
    keys = ["wave", "row_key", "request_key"]
    todo = snapshot(target, folder, "todo").select(*keys, F.lit(1).alias("side"))
    staged = staged_schema(target.job.task.kind)
    with_wave = T.StructType([*staged.fields, T.StructField("wave", T.IntegerType())])
    answers = target.spark.read.schema(with_wave).parquet(folder.of("staging")).select(*keys, F.lit(-1).alias("side"))
    sums = todo.unionByName(answers).groupBy(*keys).agg(F.sum("side").alias("side")).filter(F.col("side") != 0)
    wrong = sums.groupBy("wave").count().orderBy("wave").collect()
    if wrong:
        folders = ", ".join(f"wave={row[0]} ({row[1]} rows)" for row in wrong[:5])
        raise AuditError(
            f"plan {plan.plan_id}: the staged answers of {folders} are not the planned rows; nothing was published. "
            f"Delete these folders in {folder.of('staging')} and run the same command: their rows are answered again"
        )


def _set_aside(target: OutputTable, folder: PlanFolder, plan: Plan) -> DataFrame:
    none = F.lit(None)
    aside = snapshot(target, folder, "aside").select(
        "*",
        none.cast("string").alias("response"),
        none.cast("string").alias("finish_reason"),
        none.cast("int").alias("num_completion_tokens"),
        *(none.cast(field.dataType).alias(field.name) for field in TASK_FIELDS[target.job.task.kind]),
    )
    return _as_output(target, plan, aside)


def _as_output(target: OutputTable, plan: Plan, rows: DataFrame) -> DataFrame:
    """Rows with internal names as rows of the output."""
    created_at = datetime.fromisoformat(plan.created_at)
    ours: dict[str, Column] = {
        "input_truncated": F.col("num_dropped_tokens") > 0,
        "plan_id": F.lit(plan.plan_id),
        "model": F.lit(plan.model),
        "model_revision": F.lit(plan.model_revision).cast("string"),
        "created_at": F.timestamp_micros(F.lit(int(created_at.timestamp() * 1_000_000))),
    }
    if isinstance(target.job.task, ExtractTask):
        ours["response"] = F.from_json("response", struct_type(target.job.task))  # staged as text, and checked there
    fields = answer_fields(target.job)
    answer = [ours.get(field.name, F.col(field.name)).alias(target.own(field.name)) for field in fields]
    return rows.select(*_input_columns(target), *answer)


def _input_columns(target: OutputTable) -> list[Column]:
    ids = [f"id_{i}" for i in range(target.num_ids)] or ["row_key"]
    kept = [f"keep_{i}" for i in range(len(target.kept_names))]
    names = [*target.id_names, *target.kept_names]
    return [F.col(inner).alias(name) for inner, name in zip([*ids, *kept], names, strict=True)]


def _reused(target: OutputTable, folder: PlanFolder) -> DataFrame:
    """Answers that the output holds already, beside the input's present columns (mode overwrite)."""
    table = target.read()
    if table is None:
        raise Stopped(f"the output {target.job.output.name} is gone, whose answers this plan was to keep; --abandon it")
    wanted = snapshot(target, folder, "reused")
    inputs = wanted.select("row_key", "request_key", F.struct(*_input_columns(target)).alias("inputs"))
    answers = F.struct(*(F.col(quoted_path(target.own(field.name))) for field in answer_fields(target.job)))
    keys = [target.row_key().alias("row_key"), F.col(quoted_path(target.own("request_key"))).alias("request_key")]
    held = table.select(*keys, answers.alias("answers")).dropDuplicates(["row_key", "request_key"])
    return inputs.join(held, ["row_key", "request_key"]).select("inputs.*", "answers.*")


def _file_size(target: OutputTable) -> AbstractContextManager[None]:
    """Rows with the hint `rebalance` are written in files of about `output.target_file_mb` while the context lasts.

    Spark counts the bytes of the rows before they are compressed to about half.
    """
    size = f"{target.job.output.target_file_mb * 2}m"
    return session_conf(target.spark, {"spark.sql.adaptive.advisoryPartitionSizeInBytes": size})


def _publish_parquet(target: OutputTable, folder: PlanFolder, plan: Plan, rows: DataFrame) -> None:
    files, path = target.files, target.path
    if files is None or path is None:
        raise Stopped("Parquet is written by path")
    if target.job.output.mode == "append":
        # The folder's name holds the plan's id, so the files do not.
        _add_folder(target, files, path, plan, rows.drop(target.own("plan_id")))
        return
    fresh = f"{_beside(path, plan)}{uuid.uuid4().hex[:12]}.new"
    _write_parquet(target, rows, fresh)
    if not folder.has(SWAPPING):
        # From here on a restart goes on with the swap: the rows are safe in the fresh folder.
        folder.mark(SWAPPING, {"fresh": fresh, "old": f"{_beside(path, plan)}old"})
    _swap(files, path, folder, plan)


def _add_folder(target: OutputTable, files: Files, path: str, plan: Plan, rows: DataFrame) -> None:
    """Write the plan's folder under a name of this call's own, so that two starts never mix their files."""
    final, writing = f"{path}/{target.own('plan_id')}={plan.plan_id}", f"_writing-{plan.plan_id}-"
    fresh = f"{path}/{writing}{uuid.uuid4().hex[:12]}"
    try:
        if not files.exists(final):
            _write_parquet(target, rows, fresh)
            files.rename(fresh, final)
    except Exception:
        if not files.exists(final):  # else another start was first, and has cleared this one's folder away
            raise
    _clear(files, path, writing)


def _swap(files: Files, path: str, folder: PlanFolder, plan: Plan) -> None:
    """Put the fresh folder in the old one's place; done again after a crash, it goes on where it was.

    A start that was suspended on the way finds its fresh folder gone: another one has put it in place meanwhile.
    """
    fresh, old = (str(folder.facts(SWAPPING)[name]) for name in ("fresh", "old"))
    if files.exists(fresh) and files.exists(path) and not files.exists(old):
        files.rename(path, old)
        if not files.exists(fresh):
            files.rename(old, path)  # what this start has just moved away was not the old table, but the new one
    if files.exists(fresh) and not files.rename(fresh, path) and files.exists(fresh):
        raise Stopped(f"{path} was written by somebody else meanwhile; the finished rows are in {fresh}")
    parent, _, prefix = _beside(path, plan).rpartition("/")
    _clear(files, parent, prefix)


def _beside(path: str, plan: Plan) -> str:
    """How the names of the folders begin that stand beside the output while a plan is published."""
    parent, _, name = path.rpartition("/")
    return f"{parent}/.{name}.{plan.plan_id}."


def _clear(files: Files, folder: str, prefix: str) -> None:
    """Delete what this publishing, or one that was cut off before it, has left."""
    for name in files.list_names(folder):
        if name.startswith(prefix):
            files.delete(f"{folder}/{name}")


def _write_parquet(target: OutputTable, rows: DataFrame, path: str) -> None:
    writer = rows.hint("rebalance").write.mode("overwrite")
    if target.job.output.partition_by:
        writer = writer.partitionBy(*target.job.output.partition_by)
    with _file_size(target):
        writer.parquet(path)


def _overwrite_delta(target: OutputTable, plan: Plan, rows: DataFrame) -> None:
    writer: Any = rows.hint("rebalance").write.format("delta").mode("overwrite")
    # Delta remembers this pair and skips a second commit of it: a late start does not bring an old table back.
    writer = writer.option("txnAppId", f"dolly_batch {plan.plan_id} {plan.created_at}").option("txnVersion", 1)
    if target.job.output.partition_by:
        writer = writer.partitionBy(*target.job.output.partition_by)
    with _file_size(target):
        _save(target, writer)


def _merge_delta(target: OutputTable, plan: Plan, rows: DataFrame) -> None:
    """MERGE, on names that cannot be mistaken: every column of the new rows is renamed first."""
    _create_delta(target)
    columns = [field.name for field in target.schema.fields]
    new = rows.select(*(F.col(quoted_path(name)).alias(NEW + name) for name in columns))
    request, attempt = target.own("request_key"), target.own("attempt")
    on = _all(_same(name) for name in target.id_names)
    values = {quoted_path(name): F.col(quoted_path(NEW + name)) for name in columns}
    if target.job.output.mode == "merge":
        differs = ~_same(request) | (F.col(quoted_path(NEW + attempt)) > F.col(quoted_path(attempt)))
        merge = new.mergeInto(target.identifier, on).whenMatched(differs).update(values)
    else:
        merge = new.mergeInto(target.identifier, on & _same(request))
        if plan.retries:
            later = F.col(quoted_path(NEW + attempt)) > F.col(quoted_path(attempt))
            merge = merge.whenMatched(later).update(values)
    _with_retries(merge.whenNotMatched().insert(values))


def _with_retries(merge: Any) -> None:
    """Commit, again after a conflict with another writer: the MERGE then sees what that one wrote."""
    for attempt in range(1, WRITE_RETRIES + 1):
        try:
            return merge.merge()  # type: ignore[no-any-return]
        except PySparkException as error:
            if attempt == WRITE_RETRIES or not _is_conflict(error):
                raise


def _is_conflict(error: PySparkException) -> bool:
    """Whether another writer was first. Delta's exceptions have no condition; it stands at the head of their text."""
    condition = error.getCondition() or str(error)[:200]
    return "DELTA_CONCURRENT" in condition or "Concurrent" in type(error).__name__


def _create_delta(target: OutputTable) -> None:
    """Make the empty table, unless it is there: readers find no rows until the one commit that brings them all.

    By a write and not by CREATE TABLE, which refuses a folder that holds the files of a start killed before it.
    """
    if target.exists():
        return
    writer: Any = target.spark.createDataFrame([], target.schema).write.format("delta").mode("ignore")
    if target.job.output.partition_by:
        writer = writer.partitionBy(*target.job.output.partition_by)
    for attempt in range(1, WRITE_RETRIES + 1):
        try:
            return _save(target, writer)
        except PySparkException:
            if target.exists():  # another start was first
                return None
            if attempt == WRITE_RETRIES:
                raise
            time.sleep(0.2 * attempt)  # it may be at it this moment, and its log not there yet


def _save(target: OutputTable, writer: Any) -> None:
    if target.path is not None:
        writer.save(target.path)
    else:
        writer.saveAsTable(target.job.output.table)


def _same(name: str) -> Column:
    return F.col(quoted_path(name)).eqNullSafe(F.col(quoted_path(NEW + name)))


def _all(conditions: Any) -> Column:
    result = F.lit(True)
    for condition in conditions:
        result = result & condition
    return result
