"""Options of JVMs that live for a minute, to which a second compiler and a parallel collector only cost time."""

import os

from dolly_batch.spark.session.class_archive import archive_options
from dolly_batch.spark.session.java import find_java
from dolly_batch.spark.session.session import LOCAL_JAVA_OPTIONS

LIGHT_JVM = f"{LOCAL_JAVA_OPTIONS} -XX:+UseSerialGC"


def with_archive() -> str:
    """For JVMs that this package does not start: with the archive of Spark's classes, if an earlier start left one."""
    options = archive_options(find_java(os.environ), "")
    return LIGHT_JVM if "ArchiveClassesAtExit" in options else f"{LIGHT_JVM} {options}".strip()
