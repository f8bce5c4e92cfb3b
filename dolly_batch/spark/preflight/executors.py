"""Can the executors run the job: do they have the package, and the same files as the driver?

Tried before any work: they import the package, look for the model, and write where the driver then looks.
"""

import socket
import uuid
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
from pyspark.sql import SparkSession

from dolly_batch.config.evaluation import EvaluateConfig
from dolly_batch.config.job import JobConfig
from dolly_batch.errors import ConfigError, Refused
from dolly_batch.models.folder import read_config
from dolly_batch.models.sizing import why_not_fits
from dolly_batch.spark.files import Files
from dolly_batch.spark.local_files import LocalFiles
from dolly_batch.spark.preflight.gpus import check_enough_gpus, gpus_of, has_gpus
from dolly_batch.spark.preflight.package import check_package, check_versions
from dolly_batch.spark.session.session import is_local, num_slots
from dolly_batch.spark.tables.output import OutputTable
from dolly_batch.tasks import KINDS

CASCADE_NEEDS = "sklearn"


def check_executors(spark: SparkSession, target: OutputTable, model_folder: str) -> None:
    """Check that executors have this package, what it needs there, and the model. Nothing is written.

    Raises Refused for the package and what it needs, ConfigError for the model. In local mode executors are not asked,
    and only versions are checked.
    """
    _check_driver(target)
    if is_local(spark):
        return check_versions(target.job.engine.kind != "echo")
    check_package(spark, num_slots(spark), target.job.engine.kind != "echo", _also_needed(target))
    _try_on_executors(spark, "", {}, model_folder)
    check_gpus(spark, target.job, model_folder)


def check_shared(spark: SparkSession, files: Files, work: str, target: OutputTable, model_folder: str) -> None:
    """As `check_executors`, and check that every plain path of the job means the same on the executors.

    Executors write a marker into the work folder and next to the output. Raises ConfigError naming the path that they
    do not share. Paths that are not plain, and those of local mode, are not checked.
    """
    _check_driver(target)
    plain = {"work_dir": files.plain(work)}
    if target.path is not None and target.files is not None:
        plain["output.path"] = target.files.plain(target.path.rpartition("/")[0] or "/")
    shared = {key: folder for key, folder in plain.items() if folder is not None}
    with_model = target.job.engine.kind != "echo"
    check_folders(spark, shared, model_folder, with_model=with_model, also=_also_needed(target))
    check_gpus(spark, target.job, model_folder)


def check_folders(
    spark: SparkSession,
    shared: dict[str, str],
    model_folder: str | None,
    *,
    with_model: bool,
    also: Sequence[str] = (),
) -> None:
    """Check the package, the model (None: there is none) and the plain folders that executors are to share.

    `shared` names each folder by the key of the job that it belongs to; `with_model` asks for what loads a model,
    `also` names further modules.
    Raises as `check_shared` does.
    """
    if is_local(spark):
        return check_versions(with_model)
    check_package(spark, num_slots(spark), with_model, also)
    files, name = LocalFiles(), f".dolly-batch-probe-{uuid.uuid4().hex[:12]}"
    try:
        written = _try_on_executors(spark, name, shared, model_folder)
        for key, folder in shared.items():
            # Every one of them: where one executor shares the folder, another may not.
            if written - set(files.list_names(f"{folder}/{name}")):
                raise ConfigError(
                    f"{key}: {folder} is not shared: what an executor writes there is not seen here; "
                    "name a folder that the driver and all executors mount, or an object store"
                )
    finally:
        for folder in shared.values():
            files.delete(f"{folder}/{name}")


def _also_needed(target: OutputTable) -> tuple[str, ...]:
    needed = KINDS[target.job.task.kind].executor_needs if target.job.engine.kind != "echo" else ()
    return needed if target.job.task.cascade is None else (*needed, CASCADE_NEEDS)


def _check_driver(target: OutputTable) -> None:
    if target.job.task.cascade is not None and find_spec(CASCADE_NEEDS) is None:
        raise Refused(
            "task.cascade needs scikit-learn, here and on executors, and it is not installed: "
            "pip install 'dolly-batch[cascade]'"
        )


def check_gpus(spark: SparkSession, job: JobConfig | EvaluateConfig, model_folder: str) -> None:
    """Refuse a model that the executors' GPUs cannot run. Says nothing where no executor can describe a GPU.

    Raises ConfigError, which names the GPU and what would do.
    """
    model = job.model
    if is_local(spark) or job.engine.kind == "echo" or not has_gpus(spark):
        return
    check_enough_gpus(spark, model.gpus)
    config = read_config(Path(model_folder), model.max_positions)
    for gpu in gpus_of(spark):
        fault = why_not_fits([gpu] * model.gpus, config, model.dtype, model.quantization, job.engine.kv_dtype)
        if fault:
            raise ConfigError(f"{model.path}: {fault}")


def _try_on_executors(spark: SparkSession, name: str, shared: dict[str, str], model_folder: str | None) -> set[str]:
    """Have each slot look for the model and write a marker into each folder; the markers' names."""
    slots = num_slots(spark)
    probe = partial(_probe, name, tuple(shared.values()), model_folder)
    found = spark.range(0, slots, 1, slots).mapInPandas(probe, "host string, marker string, fault string").collect()
    faults = sorted({f"on {row[0]} {row[2]}" for row in found if row[2]})
    if faults:
        raise ConfigError("driver and executors do not see the same files: " + "; ".join(faults[:3]))
    return {row[1] for row in found}


def _probe(
    name: str, folders: tuple[str, ...], model_folder: str | None, batches: Iterator[pd.DataFrame]
) -> Iterator[pd.DataFrame]:
    for _ in batches:
        marker, fault = uuid.uuid4().hex, ""
        if model_folder is not None and not Path(model_folder, "config.json").is_file():
            fault = f"the model folder {model_folder} is not there; set model.stage_dir to a shared folder"
        for folder in folders:
            try:
                path = Path(folder, name, marker)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
            except OSError as error:
                fault = f"{folder} cannot be written ({error.strerror})"
        yield pd.DataFrame([(socket.gethostname(), marker, fault)], columns=["host", "marker", "fault"])
