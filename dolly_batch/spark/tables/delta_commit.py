"""The one commit that a plan makes to a Delta table.

New rows are appended where the log says that nobody has added any since the plan was made, for then none of them is
there; else they are merged, which reads the table.
"""

import random
import re
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from functools import partial, reduce
from itertools import count
from operator import and_
from typing import Any

from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from dolly_batch.errors import Stopped
from dolly_batch.spark.decisions import REQUEST_KEY, UPDATE, publishing
from dolly_batch.spark.plan.manifest import Plan
from dolly_batch.spark.session.conf import session_conf
from dolly_batch.spark.session.session import is_connect
from dolly_batch.spark.tables.base import partitioned, sized, sized_writer
from dolly_batch.spark.tables.columns import no_rows, quoted_path
from dolly_batch.spark.tables.delta_log import Log, application, log_of, seen_by, take_turns, versions_since
from dolly_batch.spark.tables.id_range import id_range
from dolly_batch.spark.tables.output import OutputTable

NEW = "__new_"
_CONFLICTS = ("DELTA_CONCURRENT", "DELTA_METADATA_CHANGED", "DELTA_PROTOCOL_CHANGED")
_CONFLICT = re.compile("Concurrent|MetadataChanged|ProtocolChanged")  # in the names of delta.exceptions
TRIES = 10
FEW_PLANNED = 200_000  # rows; their ids are worth a look, since files without such ids are not read then
FIRST_PAUSE_S, MAX_PAUSE_S = 0.5, 30.0
NOTE = "spark.databricks.delta.commitInfo.userMetadata"
"""What the log says of a commit; here, of which plan it is."""
APPLICATION, VERSION = "spark.databricks.delta.write.txnAppId", "spark.databricks.delta.write.txnVersion"
"""Delta remembers this pair with a commit, and skips one with the same application and the same or a lower version."""
OPTIMIZED, OPTIMIZED_SIZE = (f"spark.databricks.delta.optimizeWrite.{key}" for key in ("enabled", "binSize"))


def commit(output: OutputTable, plan: Plan, rows: DataFrame, seen: Mapping[str, Any]) -> None:
    """Publish the rows in one commit; an empty table is made first where there is none to append to.

    `seen` is what the plan has kept of the table that it was made for (`delta_log.see`).
    """
    if output.job.output.mode == "overwrite":
        with _said(output, {NOTE: application(plan)}):
            _overwrite(output, plan, rows)
        return
    _create(output)
    if is_connect(output.spark):
        _with_retries(partial(_merge, output, plan, rows))
    else:
        _in_turn(output, plan, rows, seen_by(output, seen))


def _in_turn(output: OutputTable, plan: Plan, rows: DataFrame, seen: Mapping[str, Any]) -> None:
    # None of a plan's rows is in the table that it has seen, unless it replaces some.
    only_adds, conflicts = bool(seen.get("only_adds")), count(1)

    def look() -> Log:
        return log_of(plan, seen, versions_since(output, seen))

    def write(log: Log) -> None:
        settings = {NOTE: f"{application(plan)} {log.turn}"}
        settings |= {APPLICATION: f"dolly_batch {seen['table']}", VERSION: str(log.turn)}
        try:
            with _said(output, settings):
                if log.knows and only_adds:
                    _append(output, rows)
                else:
                    _merge(output, plan, rows)
        except PySparkException as error:
            if not _is_conflict(error):
                raise
            time.sleep(pause_s(next(conflicts)))

    if not take_turns(look, write, TRIES):
        raise Stopped(
            f"others have written to {output.job.output.name} at each of {TRIES} tries to commit; the answers are "
            "kept: run the same command to publish them"
        )


def _said(output: OutputTable, settings: Mapping[str, str]) -> AbstractContextManager[None]:
    """Commits made inside say this. Over Connect they do not: other threads may use the session's settings."""
    return nullcontext() if is_connect(output.spark) else session_conf(output.spark, settings)


def _overwrite(output: OutputTable, plan: Plan, rows: DataFrame) -> None:
    with sized_writer(output, rows) as writer:
        # A plan that commits again or late, of this job or of another one, does not bring an old table back.
        made = int(datetime.fromisoformat(plan.created_at).timestamp() * 1_000_000)
        writer = writer.format("delta").mode("overwrite")
        writer = writer.option("txnAppId", "dolly_batch overwrite").option("txnVersion", made)
        save(output, writer)


def _append(output: OutputTable, rows: DataFrame) -> None:
    with sized(output, rows) as rebalanced:
        save(output, rebalanced.write.format("delta").mode("append"))


def append_once(output: OutputTable, writer_name: str, rows: DataFrame) -> None:
    """Add the rows in one commit, unless a writer of this name has added some: Delta remembers it."""
    _create(output)
    with sized(output, rows) as rebalanced:
        writer = rebalanced.write.format("delta").mode("append")
        save(output, writer.option("txnAppId", writer_name).option("txnVersion", 1))


def _merge(output: OutputTable, plan: Plan, rows: DataFrame) -> None:
    """MERGE, on names that cannot be mistaken: every column of the new rows is renamed first."""
    columns = [field.name for field in output.schema.fields]
    rule = publishing(output.job.output.mode, plan.retries)
    new = rows.select(*(F.col(quoted_path(name)).alias(NEW + name) for name in columns))
    request, attempt, created = map(output.output_name, ("request_key", "attempt", "created_at"))
    values = {quoted_path(name): F.col(quoted_path(NEW + name)) for name in columns}
    names = [*output.id_names, *([request] if REQUEST_KEY in rule.keys else [])]
    ids = id_range(output, rows.select(*map(quoted_path, output.id_names))) if plan.num_planned <= FEW_PLANNED else None
    conditions = [*map(_same, names), *([] if ids is None else [ids])]
    merge = new.mergeInto(table_identifier(output), reduce(and_, conditions)).whenNotMatched().insert(values)
    if rule.replaces.may_be(UPDATE):  # a MERGE that only inserts reads and writes less
        decision = rule.replaces.column(
            later=F.col(quoted_path(NEW + attempt)) > F.col(quoted_path(attempt)),
            changed=~_same(request),
            newer_there=F.col(quoted_path(created)) > F.col(quoted_path(NEW + created)),
        )
        merge = merge.whenMatched(decision == UPDATE).update(values)
    size = {OPTIMIZED: "true", OPTIMIZED_SIZE: f"{output.job.output.target_file_mb * 2}m"}
    with _said(output, size):
        merge.merge()


def _with_retries(merge: Callable[[], None]) -> None:
    """Merge, again after a conflict with another writer: the MERGE then sees what that one wrote."""
    for attempt in range(1, TRIES + 1):
        try:
            return merge()
        except PySparkException as error:
            if attempt == TRIES or not _is_conflict(error):
                raise
        time.sleep(pause_s(attempt))


def pause_s(attempt: int) -> float:
    """How long to wait after a conflict: twice as long each time, and by chance less, so that two writers part.

    What compacts a table in the background (auto compaction, predictive optimization) takes seconds to minutes; all
    pauses together are some minute and a half.
    """
    pause: float = min(MAX_PAUSE_S, FIRST_PAUSE_S * 2 ** (attempt - 1))
    return pause * random.uniform(0.5, 1.0)  # noqa: S311 - no secret


def _is_conflict(error: PySparkException) -> bool:
    """Whether another writer was first, be it with properties alone. Delta's exceptions have no condition; it stands at
    the head of their text."""
    condition = error.getCondition() or str(error)[:200]
    return any(name in condition for name in _CONFLICTS) or bool(_CONFLICT.search(type(error).__name__))


def _create(output: OutputTable) -> None:
    """Make the empty table, unless it is there: readers find no rows until the one commit that brings them all.

    By a write and not by CREATE TABLE, which refuses a folder that holds the files of a start killed before it.
    """
    if output.exists():
        return
    empty = no_rows(output.spark, output.schema)
    writer = partitioned(output, empty.write.format("delta").mode("ignore"))
    for attempt in range(1, TRIES + 1):
        try:
            return save(output, writer)
        except PySparkException:
            if output.exists():  # another start was first
                return None
            if attempt == TRIES:
                raise
            time.sleep(0.2 * attempt)  # it may be at it this moment, and its log not there yet


def save(output: OutputTable, writer: Any) -> None:
    """Write to the output's folder, or to its table of the catalog."""
    if output.path is not None:
        writer.save(output.path)
    else:
        writer.saveAsTable(output.job.output.table)


def table_identifier(output: OutputTable) -> str:
    """The table's name as Spark parses it."""
    return quoted_path("delta", output.path) if output.path is not None else str(output.job.output.table)


def _same(name: str) -> Column:
    return F.col(quoted_path(name)).eqNullSafe(F.col(quoted_path(NEW + name)))
