"""The Spark session: the one that is there, or one of our own with what the job needs."""

import os
import re
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession

from dolly_batch.config.job import JobConfig, SparkConfig
from dolly_batch.errors import Refused
from dolly_batch.spark.preflight.package import ship_package
from dolly_batch.spark.session.environment import delta_jars, has_own_logging, launched_by
from dolly_batch.spark.session.java import prepare_java
from dolly_batch.spark.session.packages import fetching_alone

DELTA_CONF = {
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
}

# A local run talks to nobody else, so it binds to loopback; its scheduler retries a task whose worker died, which
# plain `local[N]` does not.
LOCAL_CONF = {
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.memory": "2g",
    "spark.sql.shuffle.partitions": "8",
    "spark.ui.enabled": "false",
}

OWN_CONF = {
    "spark.executorEnv.TOKENIZERS_PARALLELISM": "false",
    "spark.python.worker.faulthandler.enabled": "true",
    "spark.sql.execution.pyspark.udf.faulthandler.enabled": "true",
    "spark.sql.session.timeZone": "UTC",
    "spark.ui.showConsoleProgress": "false",
}

LOG_CONF = Path(__file__).with_name("log4j2.properties")
JAVA_OPTIONS = "spark.driver.extraJavaOptions"


def open_session(job: JobConfig) -> SparkSession:
    """The session this job runs in.

    Under spark-submit and on Databricks it is the cluster's; else one is started by the job's `spark` section
    (default `local[*]`), with the Delta connector only where the job uses Delta. Raises Refused when Delta is
    asked for and the cluster has no connector.
    """
    return start_session(job.name, job.spark, uses_delta="delta" in (job.input.format, job.output.format))


def start_session(name: str, config: SparkConfig, *, uses_delta: bool) -> SparkSession:
    """As `open_session`, for what is not a job."""
    if config.remote is not None:
        return SparkSession.builder.remote(config.remote).getOrCreate()
    launcher = launched_by()
    builder: Any = SparkSession.builder.appName(f"dolly_batch {name}")
    if launcher == "databricks":
        return builder.getOrCreate()  # type: ignore[no-any-return]
    if launcher == "spark-submit" and uses_delta:
        builder = _with_conf(builder, DELTA_CONF)
    if launcher == "this":
        prepare_java()
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        builder = _own(builder, config, uses_delta)
    with fetching_alone() if launcher == "this" and _fetches(config, uses_delta) else nullcontext():
        spark = builder.getOrCreate()
    if launcher == "spark-submit":
        _quieten(spark)
    if uses_delta:
        _check_delta(spark)
    ship_package(spark)
    return spark  # type: ignore[no-any-return]


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


def _own(builder: Any, config: SparkConfig, uses_delta: bool) -> Any:
    master = _retrying(config.master or "local[*]")
    builder = _with_conf(builder.master(master), OWN_CONF)
    if re.match(r"local(\[|$)", master):
        builder = _with_conf(builder, LOCAL_CONF)
    if uses_delta:
        builder = _with_delta(_with_conf(builder, DELTA_CONF), config.conf)
    builder = _with_conf(builder, config.conf)
    given = config.conf.get(JAVA_OPTIONS, "")
    if not has_own_logging(given):
        builder = builder.config(JAVA_OPTIONS, f"{given} -Dlog4j2.configurationFile=file:{LOG_CONF}".strip())
    return builder


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


def _with_delta(builder: Any, conf: dict[str, str]) -> Any:
    if delta_jars():
        return builder.config("spark.jars", ",".join(delta_jars()))
    try:
        from delta import configure_spark_with_delta_pip
    except ImportError as error:
        raise Refused(
            "this job uses Delta, and delta-spark is not installed: pip install 'dolly-batch[local]', "
            "or name the connector's jars in DELTA_JARS"
        ) from error
    extra = [package for package in conf.get("spark.jars.packages", "").split(",") if package]
    return configure_spark_with_delta_pip(builder, extra_packages=extra)


def _fetches(config: SparkConfig, uses_delta: bool) -> bool:
    """Whether a session of our own may have packages to fetch when it starts."""
    return (uses_delta and not delta_jars()) or "spark.jars.packages" in config.conf


def _with_conf(builder: Any, conf: dict[str, str]) -> Any:
    for key, value in conf.items():
        builder = builder.config(key, value)
    return builder


def _check_delta(spark: Any) -> None:
    loader = spark._jvm.org.apache.spark.util.Utils
    try:
        loader.classForName(DELTA_CONF["spark.sql.extensions"], True, True)
    except Exception as error:  # py4j wraps every Java exception in one class of its own
        raise Refused(
            "this job uses Delta, and the cluster has no Delta connector: give spark-submit "
            "`--packages io.delta:delta-spark_<spark version>_2.13:<version>` (docs/deploy.md has the line)"
        ) from error
