"""Spark compiles its queries to Java, which pays from some ten thousand rows on: those of small tables are interpreted.

A run makes some forty queries. For a few rows, compiling them is a third of its time; see docs/decisions/0029.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

from pyspark.sql import SparkSession

from dolly_batch.config.job import JobConfig
from dolly_batch.errors import ConfigError
from dolly_batch.spark.files import exists, files_for
from dolly_batch.spark.session.conf import session_conf
from dolly_batch.spark.session.environment import launched_by
from dolly_batch.spark.session.session import is_local

SMALL_BYTES = 512 * 1024
"""Of the files of the input, and of those of the output: some thousand rows."""
INTERPRETED = {"spark.sql.codegen.wholeStage": "false", "spark.sql.codegen.factoryMode": "NO_CODEGEN"}


@contextmanager
def compiling_if_large(spark: SparkSession, job: JobConfig) -> Iterator[None]:
    """Have the queries inside interpreted where the job's tables are small and this process is driver and executor.

    A session that says itself how it compiles keeps its settings: its user has set them, or another run that goes on.
    """
    decides = launched_by() == "this" and is_local(spark) and not INTERPRETED.keys() & spark.conf.getAll.keys()
    if decides and is_small(spark, job):
        with session_conf(spark, INTERPRETED):
            yield
    else:
        yield


def is_small(spark: SparkSession, job: JobConfig) -> bool:
    """Whether the job's input, and its output as far as it is there, are small, and lie on this machine."""
    source, target = job.input.path, job.output.path
    if source is None or target is None or not exists(spark, source):  # a table of the catalog, or a pattern of names
        return False
    return max(_num_bytes(spark, source), _num_bytes(spark, target)) <= SMALL_BYTES


def _num_bytes(spark: SparkSession, path: str) -> float:
    """Bytes of a file or of all in a folder, 0 where nothing is there; infinity where Python cannot look."""
    try:
        files, absolute = files_for(spark, path)
        return math.inf if files.plain(absolute) is None else files.size(absolute)
    except (ConfigError, OSError):
        return math.inf
