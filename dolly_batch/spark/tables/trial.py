"""Trying the write path with an empty table, before the first question."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

from py4j.protocol import Py4JError
from pyspark.errors import PySparkException

from dolly_batch.errors import OutputError
from dolly_batch.spark.causes import reason
from dolly_batch.spark.files import Files
from dolly_batch.spark.tables.output import OutputTable


def try_output(output: OutputTable, work: str, retries: bool) -> None:
    """Raise OutputError for an output that could not be published to, whatever the reason. Leaves nothing there.

    `retries` says whether rows that are there will be replaced.
    """
    # The same name in every start of a job: one that was killed leaves what the next one deletes.
    name = "dolly_batch_trial_" + hashlib.sha256(f"{output.job.name} {work}".encode()).hexdigest()[:12]
    try:
        output.format.try_write(output, name, retries)
    except (PySparkException, Py4JError, OSError) as error:
        raise OutputError(f"output {output.job.output.name} cannot be written: {reason(error)}") from error


@contextmanager
def trial_folder(files: Files, folder: str, name: str) -> Iterator[str]:
    """A folder of this name in `folder`, or in the nearest one above it that is there; deleted in the end."""
    while not files.exists(folder) and "/" in folder.strip("/"):
        folder = folder.rpartition("/")[0] or "/"
    if files.exists(folder) and not files.is_folder(folder):
        raise OutputError(f"output: {folder} is no folder, so nothing can be written below it; name another path")
    path = f"{folder.rstrip('/')}/.{name}"
    files.delete(path)
    try:
        files.create(f"{path}/writable", "")
        yield path
    finally:
        files.delete(path)
