"""What the run asks of a table format."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from pyspark.sql import Column, DataFrame, SparkSession

from dolly_batch.config.tables import ReadableTable
from dolly_batch.spark.session.conf import session_conf
from dolly_batch.spark.tables.partitions import partition_names

if TYPE_CHECKING:  # they import the session, which imports this
    from dolly_batch.spark.files import Files
    from dolly_batch.spark.plan.manifest import Plan, PlanFolder
    from dolly_batch.spark.tables.output import OutputTable


NO_DATA = {
    "UNABLE_TO_INFER_SCHEMA": "it has no data: the folder is empty, all its files are, or their names begin with _ or ."
}
"""What to say where Spark asks for a schema that a job cannot give."""


class InputFormat:
    """A format that tables are read in."""

    name: ClassVar[str]
    """As Spark and the job file call it."""
    read_options: ClassVar[Mapping[str, str]] = {}
    """Options of Spark's reader, which those of the job file override."""
    faults: ClassVar[Mapping[str, str]] = {}
    """What stands in Spark's errors about a file of this format, and what to say of it (`{key}` is the table's)."""
    spark_conf: ClassVar[Mapping[str, str]] = {}
    """What a session must be started with."""

    def jars(self) -> tuple[str, ...]:
        """Jars of its connector that the user has named."""
        return ()

    def packages(self) -> tuple[str, ...]:
        """Maven coordinates of its connector, where Spark does not bring it and `jars` names none.

        Raises Refused where they cannot be known.
        """
        return ()

    def check_session(self, spark: Any) -> None:
        """Raise Refused, saying what to do, where a session of a cluster lacks the connector."""

    def missing(self, config: ReadableTable, key: str) -> str | None:
        """What to say of a column that is not there, where the names that are might be a row's cells; else None."""
        return None

    def read(self, spark: SparkSession, config: ReadableTable, key: str) -> tuple[DataFrame, int | None]:
        """Open a table by its path, and return its version too where the format has versions: the one that is read.

        `key` names the table in the InputError for one that cannot be read; errors of Spark are turned into one.
        """
        from dolly_batch.spark.files import literal_path

        reader = spark.read.options(**self.read_options)
        if config.columns is not None:
            reader = reader.schema(config.columns).option("mode", "FAILFAST")
        path = literal_path(spark, str(config.path))
        return reader.options(**config.options).format(self.name).load(path), None


class OutputFormat(InputFormat, ABC):
    """A format that tables are also written in."""

    title: ClassVar[str]
    """What a table of it is called in messages, with its article."""

    def has_log(self, files: "Files", path: str, names: Sequence[str]) -> bool:
        """Whether a folder with these names in it is a table with a transaction log of this format."""
        return False

    @abstractmethod
    def read_output(self, output: "OutputTable", files: "Files", path: str) -> DataFrame | None:
        """The table in the output's folder, None where there is none yet.

        Raises OutputError where the folder holds something else; PySparkException is turned into one.
        """

    def check_new_table(self, output: "OutputTable") -> None:
        """Raise OutputError where a new table cannot have the output's columns."""

    @abstractmethod
    def try_write(self, output: "OutputTable", name: str, retries: bool) -> None:
        """Take the way of the commit without rows, under `name` beside the output; what it makes is deleted.

        A table that is there stays as it is, its log included. Raises OutputError, or what Spark raises.
        """

    def broken_rules(self, output: "OutputTable", inputs: DataFrame) -> dict[str, Column]:
        """The table's rules that ids and kept columns (`inputs`) can break: a message for each, and which rows do."""
        return {}

    def finish_commit(self, output: "OutputTable", folder: "PlanFolder", plan: "Plan") -> bool:
        """Finish a commit that an earlier start has begun; False, with nothing done, where there is none."""
        return False

    def committed(self, output: "OutputTable", folder: "PlanFolder", plan: "Plan") -> tuple[DataFrame | None, bool]:
        """The table as the plan's commit has left it, None where that is not known; and whether its rows were all that
        was added between the plan and its commit, as far as the plan's keys go."""
        return None, True

    def seen(self, output: "OutputTable") -> dict[str, Any] | None:
        """What the table is now, by which the plan's commit will know what others have added since; else None."""
        return None

    @abstractmethod
    def commit(self, output: "OutputTable", folder: "PlanFolder", plan: "Plan", rows: DataFrame) -> None:
        """Publish the plan's rows in the output's mode, all or none. A second commit of a plan changes nothing."""

    def put_properties(self, output: "OutputTable", properties: Mapping[str, str]) -> None:
        """Set properties of the table, where it can have any; those that are there stay, and make no new version."""

    @abstractmethod
    def add(self, output: "OutputTable", plan: "Plan", rows: DataFrame) -> None:
        """Add a plan's rows to a table that nothing is matched with. A second call for a plan changes nothing."""


def has_no_data(names: Sequence[str]) -> bool:
    """Whether a folder with these names holds no data: Spark takes no notice of the others."""
    return all(name.startswith(".") or (name.startswith("_") and "=" not in name) for name in names)


@contextmanager
def sized(output: "OutputTable", rows: DataFrame) -> Iterator[DataFrame]:
    """The rows, to be written inside: in files of about `output.target_file_mb`.

    Spark counts the bytes of the rows before they are compressed to about half.
    """
    size = f"{output.job.output.target_file_mb * 2}m"
    with session_conf(output.spark, {"spark.sql.adaptive.advisoryPartitionSizeInBytes": size}):
        yield rows.hint("rebalance")


@contextmanager
def sized_writer(output: "OutputTable", rows: DataFrame) -> Iterator[Any]:
    """A writer of rows in the output's partitions, in files of about `output.target_file_mb` (to be used inside)."""
    with sized(output, rows) as rebalanced:
        yield partitioned(output, rebalanced.write)


def partitioned(output: "OutputTable", writer: Any) -> Any:
    """The writer, with the output's `partition_by`. Whatever the session says, a table is replaced as a whole, and
    timestamps in the names of folders are in UTC."""
    writer = writer.option("partitionOverwriteMode", "static").option("timeZone", "UTC")
    columns = partition_names(output.job, output.schema)
    return writer.partitionBy(*columns) if columns else writer
