"""The Spark session: the one that is there, or one of our own with what the job needs."""

import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession

from dolly_batch.config.credentials import REDACTED
from dolly_batch.config.job import JobConfig, SparkConfig
from dolly_batch.errors import Refused
from dolly_batch.spark.preflight.package import check_local_python, ship_package
from dolly_batch.spark.session.class_archive import archive_options
from dolly_batch.spark.session.environment import has_own_logging, launched_by
from dolly_batch.spark.session.jars import JARS, PACKAGES, maven_jars
from dolly_batch.spark.session.java import Java, prepare_java
from dolly_batch.spark.tables.base import InputFormat
from dolly_batch.spark.tables.formats import input_format

# A local run talks to nobody else, so it binds to loopback; its scheduler retries a task whose worker died, which
# plain `local[N]` does not.
LOCAL_CONF = {
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.memory": "2g",
    "spark.sql.shuffle.partitions": "8",
    # The state of a Delta table's log, which each new version has to be put together: by default in 50 tasks.
    "spark.databricks.delta.snapshotPartitions": "4",
    "spark.ui.enabled": "false",
}

# What the JVM's second compiler costs a driver that lives for minutes is not earned back: without it a start and the
# planning of 400,000 rows took two thirds of the CPU time. With one compiler the JVM reserves 48 MB for compiled code,
# which Spark and Delta fill: code was dropped and compiled again and again, a third of a later run's CPU time.
LOCAL_JAVA_OPTIONS = "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=256m"

OWN_CONF = {
    "spark.redaction.regex": REDACTED,
    "spark.executorEnv.TOKENIZERS_PARALLELISM": "false",
    "spark.python.worker.faulthandler.enabled": "true",
    "spark.sql.execution.pyspark.udf.faulthandler.enabled": "true",
    # By default Spark writes instants as Impala once did, which others read to nanoseconds: only from 1677 to 2262.
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
    "spark.sql.session.timeZone": "UTC",
    "spark.ui.showConsoleProgress": "false",
}

LOG_CONF = Path(__file__).with_name("log4j2.properties")
# Databricks by its hosts, and by what chooses one of its clusters.
_DATABRICKS = re.compile(r"databricks\.(com|net|us)|x-databricks-")
_NOT_DEDICATED = (
    "Databricks Connect, serverless compute and clusters in standard (shared) access mode keep Python workers apart "
    "from their executor, so that they cannot share an engine; run the job on a cluster in dedicated access mode with "
    "an ML runtime (docs/deploy.md)"
)
SAFE_PATH = "spark.executorEnv.PYTHONSAFEPATH"
EXTENSIONS = "spark.sql.extensions"
JAVA_OPTIONS = "spark.driver.extraJavaOptions"


def open_session(job: JobConfig) -> SparkSession:
    """The session this job runs in.

    Under spark-submit and on Databricks it is the cluster's; else one is started by the job's `spark` section
    (default `local[*]`), with the connectors of the job's table formats. Raises Refused when a cluster lacks one, or
    when this machine's tasks would run in a Python that lacks packages.
    """
    rejected = job.output.rejected
    formats = [job.input.format, job.output.format, *([] if rejected is None else [rejected.format])]
    return start_session(job.name, job.spark, formats)


def start_session(name: str, config: SparkConfig, formats: Sequence[str | None]) -> SparkSession:
    """As `open_session`, for what is not a job. `formats` are those of its tables, None for one of the catalog."""
    if config.remote is not None:
        _refuse_databricks(config.remote)
        return SparkSession.builder.remote(config.remote).getOrCreate()
    launcher = launched_by()
    builder: Any = SparkSession.builder.appName(f"dolly_batch {name}")
    if launcher == "databricks":
        return check_databricks(builder.getOrCreate())
    used = [input_format(format) for format in dict.fromkeys(formats) if format is not None]
    if launcher == "spark-submit":
        builder = _with_conf(builder, _formats_conf(used))
    if launcher == "this":
        java = prepare_java()
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        builder = _own(builder, config, used, java)
    spark = builder.getOrCreate()
    if launcher == "spark-submit":
        _quieten(spark)
    for format in used:
        format.check_session(spark)
    if is_local(spark):
        check_local_python(spark.sparkContext.pythonExec)
    ship_package(spark)
    return spark  # type: ignore[no-any-return]


def check_databricks(spark: SparkSession) -> SparkSession:
    """The session, if a job can run in it where it runs on Databricks. Raises Refused."""
    if launched_by() == "databricks" and is_connect(spark):
        raise Refused(_NOT_DEDICATED)
    return spark


def _refuse_databricks(remote: str) -> None:
    """Raise Refused for compute of Databricks that is to be reached from elsewhere."""
    if _DATABRICKS.search(remote):
        raise Refused(f"spark.remote: {_NOT_DEDICATED}")


def own_session(spark: SparkSession) -> SparkSession:
    """A session that begins as this one is, and whose settings are its own; over Connect, this one."""
    if is_connect(spark):
        return spark
    classic: Any = spark
    own = type(spark)(classic.sparkContext, classic._jsparkSession.cloneSession())
    own.catalog.setCurrentCatalog(spark.catalog.currentCatalog())
    own.catalog.setCurrentDatabase(spark.catalog.currentDatabase())
    return own


def is_connect(spark: SparkSession) -> bool:
    """Whether the session is a Spark Connect client, which has no JVM of its own."""
    return type(spark).__module__.startswith("pyspark.sql.connect")


def is_local(spark: SparkSession) -> bool:
    """Whether driver and executors are one process on one machine."""
    return not is_connect(spark) and re.match(r"local(\[|$)", str(spark.sparkContext.master)) is not None


def num_slots(spark: SparkSession) -> int:
    """Tasks that can run at once, as Spark's default parallelism has it."""
    from pyspark.sql import functions as F

    if not is_connect(spark):
        return max(1, int(spark.sparkContext.defaultParallelism))
    return max(1, spark.range(10_000).select(F.spark_partition_id().alias("p")).distinct().count())


def _own(builder: Any, config: SparkConfig, formats: Sequence[InputFormat], java: Java | None) -> Any:
    master = _retrying(config.master or "local[*]")
    in_one_process = re.match(r"local(\[|$)", master) is not None
    builder = _with_conf(builder.master(master), {**OWN_CONF, **(LOCAL_CONF if in_one_process else {})})
    if os.getcwd() not in map(os.path.abspath, sys.path):  # then it is not where workers import from either
        builder = builder.config(SAFE_PATH, "1")
    given = {key: value for key, value in config.conf.items() if key != PACKAGES}
    builder = _with_conf(builder, {**_formats_conf(formats), **given, **_jars_conf(formats, config.conf)})
    return builder.config(JAVA_OPTIONS, _java_options(config.conf.get(JAVA_OPTIONS, ""), java, in_one_process))


def _java_options(given: str, java: Java | None, in_one_process: bool) -> str:
    """Options of the driver's JVM. Those that the user has given come last, where the JVM lets them win."""
    ours = [LOCAL_JAVA_OPTIONS] if in_one_process else []
    if not has_own_logging(given):
        ours.append(f"-Dlog4j2.configurationFile=file:{LOG_CONF}")
    if java is not None and SparkSession.getActiveSession() is None:  # a running JVM takes no archive
        ours.append(archive_options(java, given))
    return " ".join(filter(None, [*ours, given]))


def _formats_conf(formats: Sequence[InputFormat]) -> dict[str, str]:
    """What the formats want of a session; several may each bring extensions."""
    conf: dict[str, str] = {}
    for key, value in (item for format in formats for item in format.spark_conf.items()):
        conf[key] = f"{conf[key]},{value}" if key == EXTENSIONS and key in conf else value
    return conf


def _jars_conf(formats: Sequence[InputFormat], conf: Mapping[str, str]) -> dict[str, str]:
    """The jars of the formats' connectors and of the user's packages, with those that the user names."""
    if SparkSession.getActiveSession() is not None:
        return {}  # a running JVM takes no more jars
    packages = [package for format in formats if not format.jars() for package in format.packages()]
    packages += _split(conf.get(PACKAGES))
    jars = [jar for format in formats for jar in format.jars()] + _split(conf.get(JARS))
    if packages:
        jars = [*maven_jars(packages, conf), *jars]
    return {JARS: ",".join(dict.fromkeys(jars))} if jars else {}


def _split(value: str | None) -> list[str]:
    return [part.strip() for part in (value or "").split(",") if part.strip()]


def _quieten(spark: Any) -> None:
    """No lines below a warning, as Spark by itself would log them, unless the user has said what he wants to see."""
    conf = spark.sparkContext.getConf()
    if conf.get("spark.log.level") is None and not has_own_logging(conf.get(JAVA_OPTIONS, "")):
        spark.sparkContext.setLogLevel("WARN")


def _retrying(master: str) -> str:
    """`local` and `local[N]` with four tries a task."""
    if master == "local":
        return "local[1,4]"
    return re.sub(r"^local\[([^,\]]+)\]$", r"local[\1,4]", master)


def _with_conf(builder: Any, conf: dict[str, str]) -> Any:
    for key, value in conf.items():
        builder = builder.config(key, value)
    return builder
