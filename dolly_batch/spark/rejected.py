"""`output.rejected`: a second table, to which each run adds a copy of its rows with an error status.

The output keeps them too: it has one row for each row of the input. A row without one would be asked again each day.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from dolly_batch.errors import OutputError, Stopped
from dolly_batch.records import ERROR_STATUSES
from dolly_batch.spark.causes import reason
from dolly_batch.spark.files import files_for
from dolly_batch.spark.plan.manifest import Plan
from dolly_batch.spark.tables.columns import quoted_path, schema_difference
from dolly_batch.spark.tables.output import OutputTable
from dolly_batch.spark.tables.places import lie_in_one_another, refuse_overlaps
from dolly_batch.spark.tables.trial import try_output


def open_rejected(target: OutputTable, work: str, inputs: Callable[[], Sequence[str]]) -> None:
    """Raise OutputError where the rejected rows of this output could not be added to their table."""
    rejected = _rejected_table(target)
    if rejected is None:
        return
    name = rejected.job.output.name
    refuse_overlaps(target.spark, rejected, inputs)
    if lie_in_one_another(target, rejected):
        raise OutputError(f"output.rejected: {name} and the output {target.job.output.name} lie in one another")
    try:
        table = rejected.read()
    except PySparkException as error:
        raise OutputError(f"output.rejected: {name} cannot be read: {reason(error)}") from error
    if table is not None and (difference := schema_difference(target.schema, table.schema)):
        lines = "\n".join(f"  {line}" for line in difference)
        raise OutputError(f"output.rejected: {name} has another schema than the output:\n{lines}\nname another table")
    try_output(rejected, work, retries=False)


def add_rejected(target: OutputTable, plan: Plan, rows: DataFrame) -> None:
    """Add the rows with an error status, of a plan's new rows; a second call adds nothing.

    Raises Stopped where they could not be added.
    """
    rejected = _rejected_table(target)
    if rejected is None:
        return
    wrong = rows.filter(F.col(quoted_path(target.output_name("status"))).isin(*ERROR_STATUSES))
    try:
        rejected.format.add(rejected, plan, wrong)
    except (PySparkException, Py4JJavaError, OSError) as error:
        raise Stopped(
            f"the rejected rows could not be added to {rejected.job.output.name}: {reason(error)}. All rows are in the "
            "output; mend that, and run the same command"
        ) from error


def _rejected_table(target: OutputTable) -> OutputTable | None:
    """The table as an output of its own, which plans add rows to; None where the job names none."""
    config = target.job.output.rejected
    if config is None:
        return None
    own = {"path": config.path, "table": config.table, "format": config.format, "mode": "append", "rejected": None}
    job = target.job.model_copy(update={"output": target.job.output.model_copy(update={**own, "partition_by": []})})
    files, path = (None, None) if config.path is None else files_for(target.spark, config.path)
    return replace(target, job=job, path=path, files=files)
