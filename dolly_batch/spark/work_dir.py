"""The work folder's rights: who reads it reads prompts and answers, who writes there chooses models and answers."""

import os

from py4j.protocol import Py4JError
from pyspark.sql import SparkSession

from dolly_batch.console import say
from dolly_batch.errors import ConfigError
from dolly_batch.spark.causes import reason
from dolly_batch.spark.files import Files
from dolly_batch.spark.session.session import is_local

OWNER, OWNER_AND_GROUP = 0o700, 0o770
OTHERS_WRITE = 0o002


def prepare_work_dir(spark: SparkSession, files: Files, work: str) -> None:
    """Make the work folder where it is not there, for its owner alone, and check that it can be written.

    On a cluster executors may be another user of its group, where the umask gives that the right. A folder that is
    there keeps its rights; one line says so where every user of the machine may write in it. Raises ConfigError.
    """
    try:
        files.make(work, OWNER if is_local(spark) else OWNER_AND_GROUP)
        files.write(f"{work}/.writable", "")
        files.delete(f"{work}/.writable")
    except (OSError, Py4JError) as error:
        raise ConfigError(f"work_dir {work} cannot be written: {reason(error)}") from error
    plain = files.plain(work)
    if plain is not None and is_anyones(plain):
        say(
            f"work_dir {work} can be written by every user, who could change models and answers there: chmod o-w {work}"
        )


def is_anyones(folder: str) -> bool:
    """Whether every user of the machine may write in a folder, and this one could change that."""
    status = os.stat(folder)
    return bool(status.st_mode & OTHERS_WRITE) and status.st_uid == os.geteuid()
