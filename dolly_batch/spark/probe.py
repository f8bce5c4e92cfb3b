"""Whether driver and executors see the same files: found out before any work, by writing there and looking here."""

import socket
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pandas as pd
from pyspark.sql import SparkSession

from dolly_batch.errors import ConfigError
from dolly_batch.spark.files import Files, LocalFiles
from dolly_batch.spark.session import is_local, num_slots
from dolly_batch.spark.target import Target


def check_shared(spark: SparkSession, files: Files, work: str, target: Target, model_folder: str) -> None:
    """Check that every plain path of the job means the same on the executors as here.

    Executors write a marker into the work folder and beside the output, and look for the model. Raises ConfigError
    naming the path that they do not share. Nothing to check in local mode, or where paths are not plain.
    """
    if is_local(spark):
        return
    name = f".dolly-batch-probe-{uuid.uuid4().hex[:12]}"
    shared = {"work_dir": work} if isinstance(files, LocalFiles) else {}
    if target.path is not None and isinstance(target.files, LocalFiles):
        shared["output.path"] = str(Path(target.path).parent)
    slots = num_slots(spark)
    probe = partial(_probe, name, tuple(shared.values()), model_folder)
    try:
        found = spark.range(0, slots, 1, slots).mapInPandas(probe, "host string, fault string").collect()
        for key, folder in shared.items():
            if not files.list_names(f"{folder}/{name}"):
                raise ConfigError(f"{key}: {folder} is not shared: what an executor writes there is not seen here")
    finally:
        for folder in shared.values():
            files.delete(f"{folder}/{name}")
    faults = sorted({f"{row[0]}: {row[1]}" for row in found if row[1]})
    if faults:
        raise ConfigError("driver and executors do not see the same files; " + "; ".join(faults[:3]))


def _probe(
    name: str, folders: tuple[str, ...], model_folder: str, batches: Iterator[pd.DataFrame]
) -> Iterator[pd.DataFrame]:
    for _ in batches:
        fault = ""
        if not Path(model_folder, "config.json").is_file():
            fault = f"the model folder {model_folder} is not there; set model.stage_dir to a shared folder"
        for folder in folders:
            try:
                marker = Path(folder, name, uuid.uuid4().hex)
                marker.parent.mkdir(parents=True, exist_ok=True)
                marker.touch()
            except OSError as error:
                fault = f"{folder} cannot be written ({error.strerror})"
        yield pd.DataFrame([(socket.gethostname(), fault)], columns=["host", "fault"])
