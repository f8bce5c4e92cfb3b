"""Files and folders that driver and executors share: markers, manifests, renames.

Two real implementations: the driver's own file system with its mounts (local_files.py), and whatever Hadoop knows
(hadoop_files.py). Table data is never read or written here; Spark does that.
"""

import re
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlparse

from py4j.protocol import Py4JError
from pyspark.sql import SparkSession

from dolly_batch.errors import ConfigError
from dolly_batch.spark.causes import reason
from dolly_batch.spark.hadoop_files import HadoopFiles
from dolly_batch.spark.local_files import LocalFiles, MountedFiles, mounted
from dolly_batch.spark.session.environment import launched_by
from dolly_batch.spark.session.session import is_connect

GLOB = frozenset("*?[]{}\\")
"""What Hadoop takes for the letters of a pattern."""


class Files(Protocol):
    """What the run needs of a file system. Paths are absolute, as `files_for` returns them, and as Spark takes them."""

    def plain(self, path: str) -> str | None:
        """The path as Python opens it, on executors too; None where Python cannot."""

    def exists(self, path: str) -> bool:
        """Whether a file or folder exists."""

    def is_folder(self, path: str) -> bool:
        """Whether it is a folder, or a link that leads to one."""

    def resolved(self, path: str) -> str:
        """Where a link leads; any other path as it is."""

    def list_names(self, folder: str) -> list[str]:
        """The names in a folder, sorted; empty if the folder does not exist."""

    def read(self, path: str) -> str | None:
        """The content of a text file, or None if it does not exist."""

    def write(self, path: str, text: str) -> None:
        """Write a text file atomically: readers see the old text or the new one."""

    def create(self, path: str, text: str) -> bool:
        """Write a new text file; False if it already exists."""

    def rename(self, source: str, target: str) -> bool:
        """Move a file or folder to a free name; False if the name is taken."""

    def delete(self, path: str) -> None:
        """Delete a file or a folder with its content; do nothing if it does not exist."""

    def make(self, folder: str, mode: int) -> None:
        """Make a folder with these rights, less those that the system takes away; one that is there stays as it is."""

    def size(self, folder: str) -> int:
        """Bytes of all files under a folder, or of a file."""


def files_for(spark: SparkSession, path: str) -> tuple[Files, str]:
    """The file system of `path`, and the path made absolute in it.

    Raises ConfigError for a remote path under Spark Connect, where there is no JVM to reach it with, for one that the
    cluster has no credentials for, and for a path with letters that Java would replace in the locale that it runs in.
    """
    if (found := mounted(path)) is not None and not is_connect(spark):
        return found
    scheme, is_local = urlparse(path).scheme, _default_is_local(spark)
    if scheme == "file" or (not scheme and is_local):
        _check_letters(spark, path)
        absolute = str(Path(local_path(path)).absolute())
        return (LocalFiles(), absolute) if is_local else (MountedFiles("file:", ""), f"file:{absolute}")
    if is_connect(spark):
        raise ConfigError(f"{path}: over Spark Connect the path must be one that this process sees too (a mount)")
    return _hadoop(spark, path)


def literal(path: str) -> str:
    """The path as Spark's readers of files take it: they expand `[`, `{`, `*` and `?`, its writers do not."""
    return re.sub(r"([\\{}\[\]*?])", r"\\\1", path)


def local_path(path: str) -> str:
    """A `file:` URI or a plain path as a plain path."""
    parsed = urlparse(path)
    return unquote(parsed.path) if parsed.scheme == "file" else path


def _check_letters(spark: Any, path: str) -> None:
    if path.isascii() or is_connect(spark):
        return
    encoding = str(spark._jvm.java.lang.System.getProperty("sun.jnu.encoding"))
    try:
        path.encode(encoding)
    except (UnicodeEncodeError, LookupError) as error:
        raise ConfigError(
            f"{path}: Java runs in a locale ({encoding}) in which it cannot name this path; set LC_ALL=C.UTF-8"
        ) from error


def literal_path(spark: SparkSession, path: str) -> str:
    """A path as Spark's readers take it: what has this very name is meant by it, else it may be a pattern of names."""
    if not set(path) & GLOB or not exists(spark, path):
        return path
    return literal(path)


def exists(spark: SparkSession, path: str) -> bool:
    """Whether there is a file or folder of this name; False where this process cannot tell."""
    try:
        files, absolute = files_for(spark, path)
    except ConfigError:
        return False
    return files.exists(absolute)


def plain_name(uri: str) -> str:
    """A file as Spark names it, for messages: without `file:`, and with its letters instead of `%C3%A9`."""
    return unquote(re.sub(r"^file:/+", "/", uri))


def _default_is_local(spark: Any) -> bool:
    return is_connect(spark) or str(spark._jsc.hadoopConfiguration().get("fs.defaultFS", "file:")).startswith("file:")


def _hadoop(spark: Any, path: str) -> tuple[Files, str]:
    jvm = spark._jvm
    hadoop_path = jvm.org.apache.hadoop.fs.Path(path)
    try:
        system = hadoop_path.getFileSystem(spark._jsc.hadoopConfiguration())
        system.exists(hadoop_path)  # some find out at the first request only
    except Py4JError as error:
        hint = ""
        if launched_by() == "databricks":
            hint = (
                ". Unity Catalog gives its credentials to tables and Volumes, not to URIs: name a folder of a Volume "
                "(/Volumes/CATALOG/SCHEMA/VOLUME/...); for the output a table of the catalog (output.table)"
            )
        raise ConfigError(f"{path} cannot be reached: {reason(error)}{hint}") from error
    return HadoopFiles(spark.sparkContext._gateway, system), str(system.makeQualified(hadoop_path).toString())
