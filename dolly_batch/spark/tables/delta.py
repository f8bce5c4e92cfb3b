"""Delta: append is a MERGE on row and request key that only inserts, merge is one on the row key that also updates."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import types as T

from dolly_batch.config.job import JobConfig
from dolly_batch.config.tables import ReadableTable
from dolly_batch.errors import OutputError, Refused, Stopped
from dolly_batch.spark.files import Files
from dolly_batch.spark.local_files import in_volume
from dolly_batch.spark.plan.manifest import BESIDE, Plan, PlanFolder
from dolly_batch.spark.session.environment import delta_jars
from dolly_batch.spark.session.session import is_connect
from dolly_batch.spark.tables.base import OutputFormat, has_no_data, partitioned
from dolly_batch.spark.tables.columns import no_rows, schema_difference
from dolly_batch.spark.tables.delta_commit import append_once, commit, save, table_identifier
from dolly_batch.spark.tables.delta_log import Version, own_version, see, seen_by, versions_since, was_alone
from dolly_batch.spark.tables.delta_rules import broken_rules, check_rules, table_rules, violated
from dolly_batch.spark.tables.output import OutputTable
from dolly_batch.spark.tables.partitions import partition_names
from dolly_batch.spark.tables.places import name_parts
from dolly_batch.spark.tables.trial import trial_folder

LOG = "_delta_log"
MAPPING = "spark.databricks.delta.properties.defaults.columnMapping.mode"
# Options that say which versions are read; the last two read the changes between some.
CHOOSE_VERSIONS = ("versionasof", "timestampasof", "readchangefeed", "readchangedata")


class Delta(OutputFormat):
    """Delta tables, by path or in the catalog."""

    name = "delta"
    title = "a Delta table"
    spark_conf: ClassVar = {
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
    }

    def jars(self) -> tuple[str, ...]:
        """Those of `DELTA_JARS`."""
        return delta_jars()

    def packages(self) -> tuple[str, ...]:
        """The connector that fits the installed versions of delta-spark and pyspark."""
        try:
            from delta import configure_spark_with_delta_pip
        except ImportError as error:
            raise Refused(
                "this job uses Delta, and delta-spark is not installed: pip install 'dolly-batch[local]', "
                "or name the connector's jars in DELTA_JARS"
            ) from error
        builder = configure_spark_with_delta_pip(SparkSession.builder)
        return tuple(builder._options["spark.jars.packages"].split(","))

    def check_session(self, spark: Any) -> None:
        """Raise Refused where the connector is not on the class path."""
        try:
            spark._jvm.org.apache.spark.util.Utils.classForName(self.spark_conf["spark.sql.extensions"], True, True)
        except Exception as error:  # py4j wraps every Java exception in one class of its own
            raise Refused(
                "this job uses Delta, and the cluster has no Delta connector: give spark-submit "
                "`--packages io.delta:delta-spark_<spark version>_2.13:<version>` (docs/deploy.md has the line)"
            ) from error

    def read(self, spark: SparkSession, config: ReadableTable, key: str) -> tuple[DataFrame, int | None]:
        """Open a table at the version that the options name, by default its latest one, whatever is committed later.

        Over Spark Connect the version is not asked for (that needs a plugin on the server): the rows are read by one
        query, and so from one version, either way.
        """
        options = dict(config.options)
        chosen = any(key.lower() in CHOOSE_VERSIONS for key in options)
        if not chosen and not is_connect(spark):
            options["versionAsOf"] = str(_latest_version(spark, str(config.path)))
        version = next((int(value) for key, value in options.items() if key.lower() == "versionasof"), None)
        return spark.read.format("delta").options(**options).load(config.path), version

    def has_log(self, files: Files, path: str, names: Sequence[str]) -> bool:
        """Whether the log holds a version: while another start creates the table, it is an empty folder."""
        return LOG in names and any(re.match(r"\d{20}\.", name) for name in files.list_names(f"{path}/{LOG}"))

    def read_output(self, output: OutputTable, files: Files, path: str) -> DataFrame | None:
        """The table in the output's folder, None where there is none yet. Raises OutputError for one in a Volume."""
        if in_volume(path):
            raise OutputError(
                f"output {path}: a Delta table cannot lie in a Volume; name a table of the catalog (output.table: "
                "catalog.schema.name), or write Parquet"
            )
        names = files.list_names(path)
        if self.has_log(files, path, names):
            return output.spark.read.format("delta").load(path)
        # A log without a version: a start was killed before the first commit, and its files belong to no table.
        if LOG in names or has_no_data(names):
            return None
        raise OutputError(f"output {path}: output.format is delta, and it is a folder that is not a Delta table")

    def check_new_table(self, output: OutputTable) -> None:
        """Raise OutputError for a column's name that Delta takes only in a table that maps its columns."""
        if output.spark.conf.get(MAPPING, "none") == "none" and (name := _unfit_name(output.schema)):
            raise OutputError(
                f"output {output.job.output.name}: a column of a new Delta table cannot have a space, a tab, a line "
                f"break or one of ,;{{}}()= in its name, as `{name}` has; rename it, write Parquet, or set "
                f"{MAPPING}=name"
            )

    def try_write(self, output: OutputTable, name: str, retries: bool) -> None:
        """Make an empty table beside a new one, and read its columns; of one that is there ask what it demands."""
        _check_time_zone(output)
        if rules := table_rules(output):
            check_rules(output, rules, retries)
            if output.path is not None and output.files is not None:
                with trial_folder(output.files, output.path, name):
                    return
        elif not output.exists() and output.path is not None and output.files is not None:
            with trial_folder(output.files, output.path.rpartition("/")[0], name) as folder:
                _try_new(output, replace(output, path=f"{folder}/table"))
        elif not output.exists():
            *place, _ = name_parts(str(output.job.output.table))
            table = ".".join([*place, f"`{name}`"])
            _drop(output.spark, table)
            try:
                _try_new(output, replace(output, job=_renamed(output.job, table)))
            finally:
                _drop(output.spark, table)

    def broken_rules(self, output: OutputTable, inputs: DataFrame) -> dict[str, Column]:
        """The CHECK and NOT NULL constraints of the table."""
        rules = table_rules(output)
        return broken_rules(output, rules, inputs) if rules is not None else {}

    def finish_commit(self, output: OutputTable, folder: PlanFolder, plan: Plan) -> bool:
        """Whether the plan is in the log: a start was killed after its commit. What was deleted since stays so."""
        return own_version(plan, _since(output, folder)) is not None

    def committed(self, output: OutputTable, folder: PlanFolder, plan: Plan) -> tuple[DataFrame | None, bool]:
        """The version that the plan's commit made, None where the log no longer tells; and whether it followed the one
        that the plan has seen, or others that added nothing."""
        since = _since(output, folder)
        version = own_version(plan, since)
        if version is None:
            return None, False
        reader = output.spark.read.format("delta").option("versionAsOf", version)
        table = reader.load(output.path) if output.path is not None else reader.table(str(output.job.output.table))
        return table, was_alone(plan, since)

    def seen(self, output: OutputTable) -> dict[str, Any] | None:
        """The version that the table has."""
        return see(output)

    def commit(self, output: OutputTable, folder: PlanFolder, plan: Plan, rows: DataFrame) -> None:
        """Publish the rows in one commit of the table."""
        try:
            commit(output, plan, rows, folder.facts(BESIDE))
        except (PySparkException, Py4JJavaError) as error:
            if constraint := violated(error):
                raise Stopped(
                    f"output {output.job.output.name}: an answered row breaks the table's constraint {constraint}. All "
                    "answers are kept: drop the constraint and run the same command, or close the plan with --abandon"
                ) from error
            raise

    def put_properties(self, output: OutputTable, properties: Mapping[str, str]) -> None:
        """Set those that the table does not have, whatever their value.

        Each setting is a version, with which an append at the same time is in conflict: two jobs that differ in a tag
        must not set it in turn. And some values are not shown (`spark.sql.redaction.regex`).
        """
        name = table_identifier(output)
        there = {row[0] for row in output.spark.sql(f"SHOW TBLPROPERTIES {name}").collect()}
        new = [f"{_literal(key)} = {_literal(text)}" for key, text in properties.items() if key not in there]
        if new:
            output.spark.sql(f"ALTER TABLE {name} SET TBLPROPERTIES ({', '.join(new)})")

    def add(self, output: OutputTable, plan: Plan, rows: DataFrame) -> None:
        """Append in one commit, unless the plan has done so before."""
        append_once(output, f"dolly_batch rejected {plan.plan_id} {plan.created_at}", rows)


FORMAT = Delta()


def _literal(text: str) -> str:
    """A text as SQL has it."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _since(output: OutputTable, folder: PlanFolder) -> list[Version]:
    """The versions behind the one that the plan has seen; none where there is no table or, over Connect, no log."""
    if is_connect(output.spark) or not output.exists():
        return []
    return versions_since(output, seen_by(output, folder.facts(BESIDE)))


def _latest_version(spark: SparkSession, path: str) -> int:
    from delta.tables import DeltaTable

    row = DeltaTable.forPath(spark, path).history(1).select("version").first()
    return int(row[0]) if row is not None else 0


def _unfit_name(kind: T.DataType, where: str = "") -> str | None:
    """The path of a name with a character that only a table that maps its columns can have, None without one."""
    if isinstance(kind, T.ArrayType):
        return _unfit_name(kind.elementType, where)
    if isinstance(kind, T.MapType):
        return _unfit_name(kind.keyType, where) or _unfit_name(kind.valueType, where)
    for field in kind.fields if isinstance(kind, T.StructType) else ():
        path = f"{where}.{field.name}" if where else field.name
        if set(field.name) & set(" ,;{}()\n\t="):
            return path
        if deeper := _unfit_name(field.dataType, path):
            return deeper
    return None


def _check_time_zone(output: OutputTable) -> None:
    """Raise OutputError where the names of folders would tell local times apart, which a clock shows twice a year."""
    names = partition_names(output.job, output.schema)
    zone = str(output.spark.conf.get("spark.sql.session.timeZone", "UTC"))
    times = [name for name in names if isinstance(output.schema[name].dataType, T.TimestampType)]
    if times and zone not in ("UTC", "Etc/UTC", "Z", "GMT"):
        raise OutputError(
            f"output.partition_by: `{times[0]}` is a timestamp, and Delta names folders in the session's time zone, "
            f"{zone}; set spark.sql.session.timeZone to UTC, or partition by a date"
        )


def _try_new(output: OutputTable, trial: OutputTable) -> None:
    """Make the trial's table without rows. Raises OutputError where its columns are not the output's."""
    save(trial, partitioned(trial, no_rows(output.spark, output.schema).write.format("delta")))
    table = trial.read()
    difference = schema_difference(output.schema, table.schema) if table is not None else ["nothing is there"]
    if difference:
        lines = "\n".join(f"  {line}" for line in difference)
        raise OutputError(f"output {output.job.output.name}: Delta does not keep columns of these types:\n{lines}")


def _renamed(job: JobConfig, table: str) -> JobConfig:
    return job.model_copy(update={"output": job.output.model_copy(update={"table": table})})


def _drop(spark: SparkSession, table: str) -> None:
    if spark.catalog.tableExists(table):
        spark.sql(f"DROP TABLE {table}")
