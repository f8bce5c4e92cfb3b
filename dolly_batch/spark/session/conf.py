"""Settings of the caller's session, changed only for as long as they are needed."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from py4j.protocol import Py4JError
from pyspark.sql import SparkSession


@contextmanager
def session_conf(spark: SparkSession, settings: Mapping[str, str]) -> Iterator[None]:
    """Set the session's `settings`, and restore what they were, or that they were not set, when the context ends.

    A session has one value of a key for all its threads, so two contexts over the same key must not overlap. Where the
    JVM has gone meanwhile there is nothing to restore, and what went through the context is the error to tell.
    """
    explicit = {key: value for key, value in spark.conf.getAll.items() if key in settings}
    for key, value in settings.items():
        spark.conf.set(key, value)
    try:
        yield
    finally:
        with suppress(Py4JError, OSError):
            for key in settings:
                if key in explicit:
                    spark.conf.set(key, explicit[key])
                else:
                    spark.conf.unset(key)
