"""The driver's own file system, and what Databricks mounts there.

Under /Volumes and /dbfs a Databricks cluster has its storage twice: as files, with the rights of who runs the job, and
in Spark, by the names `dbfs:/Volumes/...`, or plain `/Volumes/...`, and `dbfs:/...`. Small files go through the mount.
"""

import errno
import os
import re
import shutil
import uuid
from contextlib import suppress
from pathlib import Path

from dolly_batch.spark.session.environment import launched_by

VOLUMES, DBFS = "/Volumes", "/dbfs"
# What a mount may answer to a sync of a file that it sends away when it is closed.
_NO_SYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)


class LocalFiles:
    """The driver's own file system, and what is mounted there under the name that Spark has for it."""

    def plain(self, path: str) -> str | None:
        """See Files."""
        return self._at(path)

    def _at(self, path: str) -> str:
        return path

    def exists(self, path: str) -> bool:
        """See Files."""
        return os.path.lexists(self._at(path))

    def is_folder(self, path: str) -> bool:
        """See Files."""
        return os.path.isdir(self._at(path))

    def resolved(self, path: str) -> str:
        """See Files."""
        return os.path.realpath(path) if os.path.islink(path) else path

    def list_names(self, folder: str) -> list[str]:
        """See Files."""
        try:
            return sorted(os.listdir(self._at(folder)))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def read(self, path: str) -> str | None:
        """See Files."""
        try:
            return Path(self._at(path)).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    def write(self, path: str, text: str) -> None:
        """See Files."""
        target = self._at(path)
        partial = f"{target}.{uuid.uuid4().hex}.partial"
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(partial, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                _sync(file.fileno())
            os.replace(partial, target)
        except BaseException:  # on a full disk too, what was written is no use to anybody
            with suppress(OSError):
                os.unlink(partial)
            raise

    def create(self, path: str, text: str) -> bool:
        """See Files."""
        target = self._at(path)
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(target, "x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            return False
        return True

    def rename(self, source: str, target: str) -> bool:
        """See Files."""
        place = self._at(target)
        Path(place).parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(place):
            return False
        try:
            os.rename(self._at(source), place)
        except OSError:
            if os.path.lexists(place):  # another process took the name in between
                return False
            raise
        return True

    def delete(self, path: str) -> None:
        """See Files."""
        place = self._at(path)
        if os.path.isdir(place) and not os.path.islink(place):
            shutil.rmtree(place, ignore_errors=True)
        elif os.path.lexists(place):
            os.unlink(place)

    def make(self, folder: str, mode: int) -> None:
        """See Files."""
        place = Path(self._at(folder))
        place.parent.mkdir(parents=True, exist_ok=True)
        place.mkdir(mode, exist_ok=True)

    def size(self, folder: str) -> int:
        """See Files."""
        place = Path(self._at(folder))
        files = [place] if place.is_file() else (file for file in place.rglob("*") if file.is_file())
        return sum(file.stat().st_size for file in files)


class MountedFiles(LocalFiles):
    """A part of it that Spark knows by a URI: `dbfs:/x` is the file /dbfs/x; `file:/x` is /x, where /x is elsewhere."""

    def __init__(self, uri: str, mount: str) -> None:
        self._uri, self._mount = uri, mount

    def _at(self, path: str) -> str:
        return self._mount + path.removeprefix(self._uri) if path.startswith(self._uri) else path

    def resolved(self, path: str) -> str:
        """See Files."""
        return path if self._mount else self._uri + os.path.realpath(self._at(path))


def mounted(path: str) -> tuple[LocalFiles, str] | None:
    """The files of a path that Databricks mounts, and the path as Spark names it; None for any other path."""
    if launched_by() != "databricks":
        return None
    plain = re.sub(r"^(?:file|dbfs):/+", "/", path)
    if _is_below(plain, VOLUMES):
        return LocalFiles(), os.path.normpath(plain)
    if path.startswith("dbfs:"):
        return MountedFiles("dbfs:", DBFS), f"dbfs:{os.path.normpath(plain)}"
    if _is_below(plain, DBFS):
        return MountedFiles("dbfs:", DBFS), f"dbfs:{os.path.normpath(plain.removeprefix(DBFS) or '/')}"
    return None


def in_volume(path: str) -> bool:
    """Whether a path lies in a Volume of Databricks."""
    found = mounted(path)
    return found is not None and _is_below(found[1], VOLUMES)


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
