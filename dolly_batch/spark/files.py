"""Files and folders that driver and executors share: markers, manifests, renames.

Two real implementations: the driver's own file system, and whatever Hadoop knows (dbfs, abfss, s3a, hdfs) through
the session's JVM. Table data is never read or written here; Spark does that.
"""

import os
import re
import shutil
import uuid
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlparse

from py4j.protocol import Py4JJavaError
from pyspark.sql import SparkSession

from dolly_batch.errors import ConfigError
from dolly_batch.spark.session.session import is_connect

GLOB = frozenset("*?[]{}\\")
"""What Hadoop takes for the letters of a pattern."""
OBJECT_STORES = frozenset({"s3a", "s3", "s3n", "abfs", "abfss", "wasb", "wasbs", "gs", "oss"})
"""Schemes of stores that replace an object by one request, and rename by copying."""


class Files(Protocol):
    """What the run needs of a file system. Paths are absolute, as `qualify` returns them."""

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

    def size(self, folder: str) -> int:
        """Bytes of all files under a folder."""


def files_for(spark: SparkSession, path: str) -> tuple[Files, str]:
    """The file system of `path`, and the path made absolute in it.

    Raises ConfigError for a remote path under Spark Connect, where there is no JVM to reach it with, and for a path
    with letters that Java would replace in the locale that it runs in.
    """
    scheme = urlparse(path).scheme
    if scheme == "file" or (not scheme and _default_is_local(spark)):
        _check_letters(spark, path)
        return LocalFiles(), str(Path(local_path(path)).absolute())
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
    system = hadoop_path.getFileSystem(spark._jsc.hadoopConfiguration())
    return HadoopFiles(spark.sparkContext._gateway, system), str(system.makeQualified(hadoop_path).toString())


class LocalFiles:
    """The driver's own file system (and mounts, Databricks Volumes among them)."""

    def exists(self, path: str) -> bool:
        """See Files."""
        return os.path.lexists(path)

    def is_folder(self, path: str) -> bool:
        """See Files."""
        return os.path.isdir(path)

    def resolved(self, path: str) -> str:
        """See Files."""
        return os.path.realpath(path) if os.path.islink(path) else path

    def list_names(self, folder: str) -> list[str]:
        """See Files."""
        try:
            return sorted(os.listdir(folder))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def read(self, path: str) -> str | None:
        """See Files."""
        try:
            return Path(path).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    def write(self, path: str, text: str) -> None:
        """See Files."""
        partial = f"{path}.{uuid.uuid4().hex}.partial"
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)

    def create(self, path: str, text: str) -> bool:
        """See Files."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(path, "x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            return False
        return True

    def rename(self, source: str, target: str) -> bool:
        """See Files."""
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(target):
            return False
        try:
            os.rename(source, target)
        except OSError:
            if os.path.lexists(target):  # another process took the name in between
                return False
            raise
        return True

    def delete(self, path: str) -> None:
        """See Files."""
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path, ignore_errors=True)
        elif os.path.lexists(path):
            os.unlink(path)

    def size(self, folder: str) -> int:
        """See Files."""
        return sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())


class HadoopFiles:
    """Any file system that the cluster's Hadoop client knows, through the session's JVM."""

    def __init__(self, gateway: Any, system: Any) -> None:
        self._gateway, self._jvm = gateway, gateway.jvm
        self._system = system

    def _path(self, path: str) -> Any:
        return self._jvm.org.apache.hadoop.fs.Path(path)

    def exists(self, path: str) -> bool:
        """See Files."""
        return bool(self._system.exists(self._path(path)))

    def is_folder(self, path: str) -> bool:
        """See Files."""
        return self.exists(path) and bool(self._system.getFileStatus(self._path(path)).isDirectory())

    def resolved(self, path: str) -> str:
        """See Files."""
        return path

    def list_names(self, folder: str) -> list[str]:
        """See Files."""
        if not self.exists(folder):
            return []
        return sorted(str(status.getPath().getName()) for status in self._system.listStatus(self._path(folder)))

    def read(self, path: str) -> str | None:
        """See Files."""
        try:
            stream = self._system.open(self._path(path))
        except Py4JJavaError as error:
            if "FileNotFoundException" in str(error.java_exception.getClass().getName()):
                return None
            raise
        try:
            return str(self._jvm.org.apache.commons.io.IOUtils.toString(stream, "UTF-8"))
        finally:
            stream.close()

    def _put(self, path: str, text: str) -> None:
        stream = self._system.create(self._path(path), True)
        try:
            stream.write(bytearray(text.encode()))
        finally:
            stream.close()

    def write(self, path: str, text: str) -> None:
        """See Files."""
        if str(self._system.getUri().getScheme()) in OBJECT_STORES:
            self._put(path, text)  # one request, which replaces the object when it ends
            return
        partial = f"{path}.{uuid.uuid4().hex}.partial"
        self._put(partial, text)
        self._replace(partial, path)

    def _replace(self, source: str, target: str) -> None:
        """Rename over a file: in one step where Hadoop has a way to do so. Else a reader finds no file for a moment."""
        context, options = self._jvm.org.apache.hadoop.fs.FileContext, self._jvm.org.apache.hadoop.fs.Options
        overwrite = self._gateway.new_array(options.Rename, 1)
        overwrite[0] = options.Rename.OVERWRITE
        try:
            system = context.getFileContext(self._system.getUri(), self._system.getConf())
            system.rename(self._path(source), self._path(target), overwrite)
        except Py4JJavaError as error:
            if "UnsupportedFileSystemException" not in str(error.java_exception.getClass().getName()):
                raise
            self._system.delete(self._path(target), False)
            self._system.rename(self._path(source), self._path(target))

    def create(self, path: str, text: str) -> bool:
        """See Files."""
        partial = f"{path}.{uuid.uuid4().hex}.partial"
        self._put(partial, text)
        if self.rename(partial, path):
            return True
        self.delete(partial)
        return False

    def rename(self, source: str, target: str) -> bool:
        """See Files."""
        target_path = self._path(target)
        # A rename onto an existing folder would move the source into it.
        if self._system.exists(target_path):
            return False
        self._system.mkdirs(target_path.getParent())
        return bool(self._system.rename(self._path(source), target_path))

    def delete(self, path: str) -> None:
        """See Files."""
        self._system.delete(self._path(path), True)

    def size(self, folder: str) -> int:
        """See Files."""
        return int(self._system.getContentSummary(self._path(folder)).getLength())
