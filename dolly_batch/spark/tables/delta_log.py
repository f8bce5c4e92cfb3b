"""What the log of a Delta table says: which version a plan has committed, and what others have done to the table.

Plans that add rows to a table take turns by a number, in a transaction of Delta's that they all share: whoever has
looked at the log writes under the number behind the last plan's. Had another plan written meanwhile, under that number,
Delta skips the later one, which then looks again. So a plan can rely on what the log said without a look at any row.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from py4j.protocol import Py4JError
from pyspark.sql import functions as F

from dolly_batch.spark.plan.manifest import Plan
from dolly_batch.spark.session.session import is_connect
from dolly_batch.spark.tables.output import OutputTable

NUM_SEARCHED = 1000
"""Versions, the latest ones, among which a plan's commit is looked for where nothing says since when."""
FEW = 20
# Operations that add no rows: what was not there before is not there afterwards.
ADD_NOTHING = {
    *("OPTIMIZE", "VACUUM START", "VACUUM END", "DELETE", "CLUSTER BY"),
    *("SET TBLPROPERTIES", "UNSET TBLPROPERTIES", "ADD CONSTRAINT", "DROP CONSTRAINT"),
}


@dataclass(frozen=True)
class Version:
    """A commit: `note` is what its plan has said of it, `adds` whether it may have added rows."""

    number: int
    note: str
    adds: bool


@dataclass(frozen=True)
class Log:
    """The log as a plan sees it that is to be committed.

    `turn` is the number that it may write under; `knows` whether only commits since planning, all of them in the log,
    can have brought rows of the plan, and none of them has added any.
    """

    committed: int | None
    turn: int
    knows: bool


def application(plan: Plan) -> str:
    """What the log knows a plan by: planned again, the same rows are another plan."""
    return f"dolly_batch {plan.plan_id} {plan.created_at}"


def read_versions(output: OutputTable, limit: int) -> list[Version]:
    """The latest versions of the table, the last one first."""
    num_rows = F.col("operationMetrics").getItem("numOutputRows")
    adds = ~(F.coalesce("operation", F.lit("")).isin(*ADD_NOTHING) | F.coalesce(num_rows == "0", F.lit(False)))
    history = _table(output).history(limit).select("version", F.coalesce("userMetadata", F.lit("")), adds)
    return sorted((Version(*row) for row in history.collect()), key=lambda found: -found.number)


def see(output: OutputTable) -> dict[str, Any] | None:
    """The table's version, which table it is, and the last plan's turn (None: not known), to be kept with a plan."""
    if is_connect(output.spark):
        return None
    if not output.exists():
        return {"version": -1, "table": None, "turn": None}
    turn = None
    for limit in (FEW, NUM_SEARCHED):
        versions = read_versions(output, limit)
        turn = _last_turn(versions)
        if turn is not None or len(versions) < limit:
            break
    return {"version": versions[0].number, "table": table_id(output), "turn": turn}


def table_id(output: OutputTable) -> str:
    """The table's own name of itself: one that is made anew, or copied, has another one.

    The connector's JVM object knows it. The public way puts the table's state together for it, as for each new version:
    a job of Spark's, for what is asked up to four times in a run. It is taken where the object is another one.
    """
    table = _table(output)
    try:
        return str(table._jdt.deltaLog().tableId())
    except (Py4JError, AttributeError, TypeError):  # another version's, or Databricks' own
        return str(table.detail().select("id").collect()[0][0])


def seen_by(output: OutputTable, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a plan has seen, by the facts that it has kept; nothing where the table is another one now."""
    table = table_id(output)
    if "version" in facts and facts["table"] in (None, table):
        return {**facts, "table": table}
    return {"version": -1, "table": table, "turn": None}


def versions_since(output: OutputTable, seen: Mapping[str, Any]) -> list[Version]:
    """The versions behind the one that was seen, the last one first."""
    before = int(seen["version"])
    found = read_versions(output, FEW)
    if found[0].number - before > len(found) == FEW:
        found = read_versions(output, found[0].number - before)
    return [version for version in found if version.number > before]


def log_of(plan: Plan, seen: Mapping[str, Any], since: Sequence[Version]) -> Log:
    """What the versions `since` the one that the plan has seen, the last one first, mean to its commit.

    Without a turn that is known, the table's version is one: all turns so far are lower.
    """
    latest = since[0].number if since else int(seen["version"])
    is_whole = len(since) == latest - int(seen["version"])  # old versions leave the log
    last = _last_turn(since)
    if last is None and is_whole:
        last = seen["turn"]
    is_known = last is not None or latest == 0
    knows = is_whole and is_known and not any(version.adds for version in since)
    return Log(own_version(plan, since), latest if last is None else last + 1, knows)


def own_version(plan: Plan, versions: Sequence[Version]) -> int | None:
    """The version among these that the plan has committed."""
    own = application(plan)
    return next((found.number for found in versions if found.note == own or found.note.startswith(f"{own} ")), None)


def was_alone(plan: Plan, since: Sequence[Version]) -> bool:
    """Whether the plan's commit is the only one that added rows up to it."""
    own = own_version(plan, since)
    return own is not None and not any(version.adds for version in since if version.number < own)


def turn_of(note: str) -> int | None:
    """The number under which a plan has written, None where the note is no plan's, or an earlier version's."""
    first, *rest = note.split(" ")
    return int(rest[2]) if first == "dolly_batch" and len(rest) == 3 and rest[2].isdecimal() else None


def _last_turn(versions: Sequence[Version]) -> int | None:
    return next((turn for version in versions if (turn := turn_of(version.note)) is not None), None)


def take_turns(look: Callable[[], Log], write: Callable[[Log], None], tries: int) -> bool:
    """Look and write until the plan is committed; False where others were first each time.

    `write` commits under the turn that `look` has found, or does nothing where that was taken meanwhile.
    """
    for _ in range(tries):
        log = look()
        if log.committed is not None:
            return True
        write(log)
    return look().committed is not None


def _table(output: OutputTable) -> Any:
    from delta.tables import DeltaTable

    of = DeltaTable.forPath if output.path is not None else DeltaTable.forName
    return of(output.spark, str(output.path or output.job.output.table))
