"""Parquet: append adds a folder `plan_id=...`, overwrite puts a new folder in the old one's place; both by a rename."""

import json
import os
import uuid
from collections.abc import Callable, Collection
from typing import Any, ClassVar

from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from dolly_batch.errors import OutputError, Stopped
from dolly_batch.spark.files import Files, literal
from dolly_batch.spark.lock import alone
from dolly_batch.spark.plan.manifest import BESIDE, Plan, PlanFolder
from dolly_batch.spark.session.conf import session_conf
from dolly_batch.spark.tables.base import NO_DATA, OutputFormat, has_no_data, sized_writer
from dolly_batch.spark.tables.columns import no_rows, quoted_path
from dolly_batch.spark.tables.output import OutputTable
from dolly_batch.spark.tables.partitions import folder_columns, partition_names
from dolly_batch.spark.tables.trial import trial_folder

SWAPPING = "swapping.json"
COMPARED = "_compared.json"
LOCK = ".dolly_batch.lock"
"""In an output that plans append to: held by the one that is adding its folder."""
INFERENCE = "spark.sql.sources.partitionColumnTypeInference.enabled"


class Parquet(OutputFormat):
    """Folders of Parquet files."""

    name = "parquet"
    title = "a folder of Parquet files"
    faults: ClassVar = {
        "(TIMESTAMP(NANOS": "a column holds times in nanoseconds, as pandas writes them, and Spark has microseconds: "
        "write the files with coerce_timestamps='us', or read them as integers by spark.conf "
        "{{spark.sql.legacy.parquet.nanosAsLong: 'true'}}",
        **NO_DATA,
        "is not a Parquet file": "it is no Parquet file, or not a whole one",
    }

    def read_output(self, output: OutputTable, files: Files, path: str) -> DataFrame | None:
        """The table in the output's folder, None where there is none yet."""
        names = files.list_names(path)
        if has_no_data(names):
            return None
        if not any(name.endswith(".parquet") or "=" in name for name in names):
            raise OutputError(f"output {path} is not empty, and holds no Parquet table; name an empty folder")
        reader = output.spark.read.option("mergeSchema", "false").option("timeZone", "UTC")
        with session_conf(output.spark, {INFERENCE: "false"}):
            found = reader.parquet(literal(path)).schema
        # What stands in the names of folders is text: this job knows what it is.
        types = {field.name.lower(): field.dataType for field in output.schema.fields}
        for name in folder_columns(files, path):
            found[name].dataType = types.get(name.lower(), T.StringType())
        return reader.schema(found).parquet(literal(path))

    def try_write(self, output: OutputTable, name: str, retries: bool) -> None:
        """Write an empty table beside the output, and rename it."""
        files, path = _folder_of(output)
        appends = output.job.output.mode == "append"
        if not appends and os.path.ismount(path):
            raise OutputError(f"output {path} is a mount point, which no other folder can replace; name a folder in it")
        if appends and files.exists(path):
            _check_partitioning(output, files, path)
        place = path if appends else path.rpartition("/")[0]
        with trial_folder(files, place, name) as folder:
            empty = no_rows(output.spark, output.schema)
            empty.write.parquet(f"{folder}/written")
            if not files.rename(f"{folder}/written", f"{folder}/renamed"):
                raise OutputError(f"output {path}: folders cannot be renamed there; write Delta, or to another place")

    def finish_commit(self, output: OutputTable, folder: PlanFolder, plan: Plan) -> bool:
        """Finish the swap of folders that an earlier start has begun."""
        if not folder.has(SWAPPING):
            return False
        _swap(*_folder_of(output), folder, plan)
        return True

    def seen(self, output: OutputTable) -> dict[str, Any] | None:
        """The folders of other plans."""
        return {"folders": _folders(output, *_folder_of(output))} if output.job.output.mode == "append" else None

    def commit(self, output: OutputTable, folder: PlanFolder, plan: Plan, rows: DataFrame) -> None:
        """Write the rows into a folder of this call's own, and rename it."""
        files, path = _folder_of(output)
        if output.job.output.mode == "append":
            # The folder's name holds the plan's id, so the files do not.
            _add_folder(output, files, path, folder, plan, rows.drop(output.output_name("plan_id")))
        else:
            _replace_folder(output, files, path, folder, plan, rows)

    def add(self, output: OutputTable, plan: Plan, rows: DataFrame) -> None:
        """Write the plan's folder, over what a start that was killed has left of it."""
        files, path = _folder_of(output)
        name = output.output_name("plan_id")
        folder, draft = f"{path}/{name}={plan.plan_id}", f"{path}/.{plan.plan_id}"
        files.delete(draft)
        rows.drop(name).write.parquet(draft)
        files.delete(folder)
        if not files.rename(draft, folder):
            raise OSError(f"{folder} could not be put in its place")


FORMAT = Parquet()


def _folder_of(output: OutputTable) -> tuple[Files, str]:
    """The folder itself, where the path is a link to it: a link is never renamed or replaced."""
    if output.files is None or output.path is None:
        raise Stopped("Parquet is written by path")
    return output.files, output.files.resolved(output.path)


def _check_partitioning(output: OutputTable, files: Files, path: str) -> None:
    """Raise OutputError where a folder of this job's partitions would not fit beside those that are there."""
    plan_id, *there = folder_columns(files, path) or [""]
    wanted = partition_names(output.job, output.schema)
    if plan_id == output.output_name("plan_id") and there != wanted:
        raise OutputError(
            f"output {path}: its rows are partitioned by {there or 'nothing'}, and output.partition_by says "
            f"{wanted or 'nothing'}; make it the same, or write to another output"
        )


def _add_folder(output: OutputTable, files: Files, path: str, folder: PlanFolder, plan: Plan, rows: DataFrame) -> None:
    """Add the plan's folder, without the rows that other plans have added since this one was made.

    One plan is added at a time. A start that was suspended for so long that another went on adds what it has seen no
    rows of: so a folder holds the names of those that it was compared with, and is taken back, and added again, where
    it turns out to share rows with another one.
    """
    planned = set(folder.facts(BESIDE).get("folders", _folders(output, files, path)))
    own = f"{output.output_name('plan_id')}={plan.plan_id}"
    writing = f"_writing-{plan.plan_id}-"
    with alone(files, f"{path}/{LOCK}", output.job.output.name) as check:
        while True:
            if not files.exists(f"{path}/{own}"):
                beside = set(_folders(output, files, path))
                fresh = f"{path}/{writing}{uuid.uuid4().hex[:12]}"
                _add(output, files, fresh, f"{path}/{own}", _without(output, rows, beside - planned), beside, check)
            late = _not_compared(output, files, path, own)
            if not late or not _overlap(output, own, late):
                break
            check()
            files.rename(f"{path}/{own}", f"{path}/{writing}{uuid.uuid4().hex[:12]}")
    _clear(files, path, writing)


def _add(
    output: OutputTable,
    files: Files,
    fresh: str,
    final: str,
    rows: DataFrame,
    beside: Collection[str],
    check: Callable[[], None],
) -> None:
    """Write the rows under a name of this call's own, so that two starts never mix their files, and rename them."""
    try:
        _write(output, rows, fresh)
        files.write(f"{fresh}/{COMPARED}", json.dumps(sorted(beside)))
        check()
        files.rename(fresh, final)
    except Exception:
        if not files.exists(final):  # else another start was first, and has deleted this one's folder
            raise


def _folders(output: OutputTable, files: Files, path: str) -> list[str]:
    """The folders of plans that the output holds."""
    return [name for name in files.list_names(path) if name.startswith(f"{output.output_name('plan_id')}=")]


def _not_compared(output: OutputTable, files: Files, path: str, own: str) -> set[str]:
    """The other folders, where this one's rows were not compared with theirs."""
    compared = files.read(f"{path}/{own}/{COMPARED}")
    return set() if compared is None else set(_folders(output, files, path)) - {own, *json.loads(compared)}


def _without(output: OutputTable, rows: DataFrame, folders: Collection[str]) -> DataFrame:
    """The rows that none of these folders holds."""
    if not folders:
        return rows
    request = F.col(quoted_path(output.output_name("request_key")))
    same = (output.row_key() == F.col("__row_key")) & (request == F.col("__request_key"))
    return rows.join(_keys(output, folders), same, "left_anti")


def _overlap(output: OutputTable, own: str, folders: Collection[str]) -> bool:
    """Whether this folder and one of the others hold the same row."""
    keys = ["__row_key", "__request_key"]
    return not _keys(output, [own]).join(_keys(output, folders), keys, "left_semi").isEmpty()


def _keys(output: OutputTable, folders: Collection[str]) -> DataFrame:
    table = output.read()
    if table is None:
        raise Stopped(f"{output.job.output.name} has gone while it was written to")
    plan_id = F.col(quoted_path(output.output_name("plan_id")))
    rows = table.filter(plan_id.isin(*(name.partition("=")[2] for name in folders)))
    request = F.col(quoted_path(output.output_name("request_key")))
    return rows.select(output.row_key().alias("__row_key"), request.alias("__request_key"))


def _replace_folder(
    output: OutputTable, files: Files, path: str, folder: PlanFolder, plan: Plan, rows: DataFrame
) -> None:
    fresh = f"{_beside(path, plan)}{uuid.uuid4().hex[:12]}.new"
    _write(output, rows, fresh)
    if not folder.has(SWAPPING):
        # From here on a restart finishes the swap: the rows are safe in the fresh folder.
        folder.mark(SWAPPING, {"fresh": fresh, "old": f"{_beside(path, plan)}old"})
    _swap(files, path, folder, plan)


def _swap(files: Files, path: str, folder: PlanFolder, plan: Plan) -> None:
    """Put the fresh folder in the old one's place; called again after a crash, it continues where it stopped.

    A start that was suspended on the way finds no fresh folder: another one has put it in place meanwhile.
    """
    fresh, old = (str(folder.facts(SWAPPING)[name]) for name in ("fresh", "old"))
    if files.exists(fresh) and files.exists(path) and not files.exists(old):
        files.rename(path, old)
        if not files.exists(fresh):
            files.rename(old, path)  # what this start has just moved away was not the old table, but the new one
    if files.exists(fresh) and not files.rename(fresh, path) and files.exists(fresh):
        raise Stopped(f"{path} was written by another program meanwhile; the finished rows are in {fresh}")
    parent, _, prefix = _beside(path, plan).rpartition("/")
    _clear(files, parent, prefix)


def _beside(path: str, plan: Plan) -> str:
    """How the names of the folders begin that stand beside the output while a plan is published."""
    parent, _, name = path.rpartition("/")
    return f"{parent}/.{name}.{plan.plan_id}."


def _clear(files: Files, folder: str, prefix: str) -> None:
    """Delete the folders that this commit, or one that was cut off before it, has left."""
    for name in files.list_names(folder):
        if name.startswith(prefix):
            files.delete(f"{folder}/{name}")


def _write(output: OutputTable, rows: DataFrame, path: str) -> None:
    with sized_writer(output, rows) as writer:
        writer.mode("overwrite").parquet(path)
