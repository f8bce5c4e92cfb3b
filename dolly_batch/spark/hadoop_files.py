"""Any file system that the cluster's Hadoop client knows (dbfs, abfss, s3a, hdfs), through the session's JVM."""

import uuid
from typing import Any

from py4j.protocol import Py4JJavaError

OBJECT_STORES = frozenset({"s3a", "s3", "s3n", "abfs", "abfss", "wasb", "wasbs", "gs", "oss"})
"""Schemes of stores that replace an object by one request, and rename by copying."""


class HadoopFiles:
    """One file system."""

    def __init__(self, gateway: Any, system: Any) -> None:
        self._gateway, self._jvm = gateway, gateway.jvm
        self._system = system

    def _path(self, path: str) -> Any:
        return self._jvm.org.apache.hadoop.fs.Path(path)

    def plain(self, path: str) -> str | None:
        """See Files."""
        return None

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

    def make(self, folder: str, mode: int) -> None:
        """See Files."""
        if not self.exists(folder):
            rights = self._jvm.org.apache.hadoop.fs.permission.FsPermission(f"{mode:o}")
            self._system.mkdirs(self._path(folder), rights)

    def size(self, folder: str) -> int:
        """See Files."""
        return int(self._system.getContentSummary(self._path(folder)).getLength())
