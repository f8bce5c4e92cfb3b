"""The one commit that a plan makes to a Delta table, and which of the table's versions that is."""

import random
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from functools import reduce
from operator import and_
from typing import Any

from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from dolly_batch.spark.decisions import REQUEST_KEY, UPDATE, publishing
from dolly_batch.spark.plan.manifest import Plan
from dolly_batch.spark.session.conf import session_conf
from dolly_batch.spark.session.session import is_connect
from dolly_batch.spark.tables.base import partitioned, sized_writer
from dolly_batch.spark.tables.columns import no_rows, quoted_path
from dolly_batch.spark.tables.output import OutputTable

NEW = "__new_"
WRITE_RETRIES = 8
FIRST_PAUSE_S, MAX_PAUSE_S = 0.5, 30.0
NOTE = "spark.databricks.delta.commitInfo.userMetadata"
"""What the log says of a commit; here, of which plan it is."""
APPLICATION, VERSION = "spark.databricks.delta.write.txnAppId", "spark.databricks.delta.write.txnVersion"
"""Delta remembers this pair with a commit, and skips one with the same application and the same or a lower version."""
NUM_SEARCHED = 1000
"""Versions, the latest ones, among which a plan's own commit is looked for."""


def commit(output: OutputTable, plan: Plan, rows: DataFrame) -> None:
    """Publish the rows in one commit; an empty table is made first where there is none to append to."""
    replaces = output.job.output.mode == "overwrite"
    if not replaces:
        _create(output)
    with _said(output, {NOTE: _application(plan)}):
        if replaces:
            _overwrite(output, plan, rows)
        else:
            _merge(output, plan, rows)


def _said(output: OutputTable, settings: Mapping[str, str]) -> AbstractContextManager[None]:
    """Commits made inside say this. Over Connect they do not: other threads may use the session's settings."""
    return nullcontext() if is_connect(output.spark) else session_conf(output.spark, settings)


def _application(plan: Plan) -> str:
    """What the log knows a plan by: planned again, the same rows are another plan."""
    return f"dolly_batch {plan.plan_id} {plan.created_at}"


def committed_version(output: OutputTable, plan: Plan) -> int | None:
    """The version that the plan has committed, None where the latest ones of the log are others'."""
    from delta.tables import DeltaTable

    if is_connect(output.spark) or not output.exists():
        return None
    of = DeltaTable.forPath if output.path is not None else DeltaTable.forName
    history = of(output.spark, str(output.path or output.job.output.table)).history(NUM_SEARCHED)
    row = history.filter(F.col("userMetadata") == _application(plan)).agg(F.max("version")).first()
    return None if row is None else row[0]


def _overwrite(output: OutputTable, plan: Plan, rows: DataFrame) -> None:
    with sized_writer(output, rows) as writer:
        # A plan that commits again or late, of this job or of another one, does not bring an old table back.
        made = int(datetime.fromisoformat(plan.created_at).timestamp() * 1_000_000)
        writer = writer.format("delta").mode("overwrite")
        writer = writer.option("txnAppId", "dolly_batch overwrite").option("txnVersion", made)
        save(output, writer)


def _merge(output: OutputTable, plan: Plan, rows: DataFrame) -> None:
    """MERGE, on names that cannot be mistaken: every column of the new rows is renamed first."""
    columns = [field.name for field in output.schema.fields]
    rule = publishing(output.job.output.mode, plan.retries)
    new = rows.select(*(F.col(quoted_path(name)).alias(NEW + name) for name in columns))
    request, attempt, created = map(output.output_name, ("request_key", "attempt", "created_at"))
    values = {quoted_path(name): F.col(quoted_path(NEW + name)) for name in columns}
    names = [*output.id_names, *([request] if REQUEST_KEY in rule.keys else [])]
    merge = new.mergeInto(_identifier(output), _all(map(_same, names))).whenNotMatched().insert(values)
    if rule.replaces.may_be(UPDATE):  # a MERGE that only inserts reads and writes less
        decision = rule.replaces.column(
            later=F.col(quoted_path(NEW + attempt)) > F.col(quoted_path(attempt)),
            changed=~_same(request),
            newer_there=F.col(quoted_path(created)) > F.col(quoted_path(NEW + created)),
        )
        merge = merge.whenMatched(decision == UPDATE).update(values)
    with _said(output, {APPLICATION: _application(plan), VERSION: "1"}):
        _with_retries(merge)


def _with_retries(merge: Any) -> None:
    """Commit, again after a conflict with another writer: the MERGE then sees what that one wrote."""
    for attempt in range(1, WRITE_RETRIES + 1):
        try:
            return merge.merge()  # type: ignore[no-any-return]
        except PySparkException as error:
            if attempt == WRITE_RETRIES or not _is_conflict(error):
                raise
        time.sleep(pause_s(attempt))


def pause_s(attempt: int) -> float:
    """How long to wait after a conflict: twice as long each time, and by chance less, so that two writers part.

    What compacts a table in the background (auto compaction, predictive optimization) takes seconds to minutes; all
    pauses together are about a minute.
    """
    pause: float = min(MAX_PAUSE_S, FIRST_PAUSE_S * 2 ** (attempt - 1))
    return pause * random.uniform(0.5, 1.0)  # noqa: S311 - no secret


def _is_conflict(error: PySparkException) -> bool:
    """Whether another writer was first. Delta's exceptions have no condition; it stands at the head of their text."""
    condition = error.getCondition() or str(error)[:200]
    return "DELTA_CONCURRENT" in condition or "Concurrent" in type(error).__name__


def _create(output: OutputTable) -> None:
    """Make the empty table, unless it is there: readers find no rows until the one commit that brings them all.

    By a write and not by CREATE TABLE, which refuses a folder that holds the files of a start killed before it.
    """
    if output.exists():
        return
    empty = no_rows(output.spark, output.schema)
    writer = partitioned(output, empty.write.format("delta").mode("ignore"))
    for attempt in range(1, WRITE_RETRIES + 1):
        try:
            return save(output, writer)
        except PySparkException:
            if output.exists():  # another start was first
                return None
            if attempt == WRITE_RETRIES:
                raise
            time.sleep(0.2 * attempt)  # it may be at it this moment, and its log not there yet


def save(output: OutputTable, writer: Any) -> None:
    """Write to the output's folder, or to its table of the catalog."""
    if output.path is not None:
        writer.save(output.path)
    else:
        writer.saveAsTable(output.job.output.table)


def _identifier(output: OutputTable) -> str:
    """The table's name as Spark parses it."""
    return quoted_path("delta", output.path) if output.path is not None else str(output.job.output.table)


def _same(name: str) -> Column:
    return F.col(quoted_path(name)).eqNullSafe(F.col(quoted_path(NEW + name)))


def _all(conditions: Iterable[Column]) -> Column:
    return reduce(and_, conditions, F.lit(True))
