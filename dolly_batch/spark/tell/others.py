"""What a job's section `report` asks to be told to others, and that their clients are installed."""

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.util import find_spec

from pyspark.sql import SparkSession

from dolly_batch.config.credentials import masked
from dolly_batch.config.job import JobConfig
from dolly_batch.console import say
from dolly_batch.errors import ConfigError
from dolly_batch.report import PlanReport
from dolly_batch.spark.plan.manifest import Plan
from dolly_batch.spark.tell.lineage_event import emit_run
from dolly_batch.spark.tell.mlflow_run import log_run

_CLIENTS = {"mlflow": ("mlflow", "mlflow"), "openlineage": ("openlineage.client", "lineage")}
"""Keys of `report`: the module that each needs, and the extra that brings it."""


def check_clients(job: JobConfig) -> None:
    """Raise ConfigError where a client that the job asks for is not installed on the driver."""
    for key, (module, extra) in _CLIENTS.items():
        if getattr(job.report, key) and not _is_there(module):
            raise ConfigError(f"report.{key} needs its client on the driver: pip install 'dolly-batch[{extra}]'")


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it lies in; other distributions may have one of that name
        return False


def tell_others(spark: SparkSession, job: JobConfig, plan: Plan, report: Callable[[], PlanReport]) -> None:
    """Tell of a run that is complete. What fails is named in one line: the run is complete all the same."""
    if job.report.mlflow:
        _told("MLflow", lambda: log_run(report(), plan.input_version))
    if job.report.openlineage:
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        _told("OpenLineage", lambda: emit_run(spark, job, plan, at))


def _told(whom: str, tell: Callable[[], object]) -> None:
    try:
        tell()
    except Exception as error:  # of a client's own kinds, or of its network
        logging.getLogger("dolly_batch").debug("%s", whom, exc_info=error)
        lines = str(error).splitlines() or [""]
        say(f"{whom} was not told of this run: {type(error).__name__}: {masked(lines[0])[:300]}")
