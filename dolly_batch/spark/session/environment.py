"""What the environment says of Spark: who starts it, how it logs, where the connector lies."""

import os
from pathlib import Path
from typing import Literal

_SPARK_FOLDERS = {"SPARK_CONF_DIR": "", "SPARK_HOME": "conf"}


def launched_by() -> Literal["databricks", "spark-submit", "this"]:
    """Who starts Spark: the Databricks runtime, spark-submit, or this process itself."""
    if os.environ.get("DATABRICKS_RUNTIME_VERSION"):
        return "databricks"
    return "spark-submit" if os.environ.get("PYSPARK_GATEWAY_PORT") else "this"


def has_own_logging(java_options: str) -> bool:
    """Whether the user configures Spark's log: in these options of its JVM, in the environment, or in its folders."""
    options = [java_options, *(os.environ.get(name, "") for name in ("SPARK_SUBMIT_OPTS", "JAVA_TOOL_OPTIONS"))]
    files = [file for folder in conf_folders() for file in folder.glob("log4j2.*") if file.suffix != ".template"]
    return bool(files) or any("log4j" in option for option in options)


def conf_folders() -> list[Path]:
    """The folders of Spark's own settings (spark-defaults.conf, log4j2.properties) that the environment names."""
    return [Path(os.environ[name], below) for name, below in _SPARK_FOLDERS.items() if os.environ.get(name)]


def delta_jars() -> tuple[str, ...]:
    """Jars of the Delta connector given by hand (`DELTA_JARS`, comma-separated), for where Maven cannot be reached."""
    return tuple(jar for jar in os.environ.get("DELTA_JARS", "").split(",") if jar)
