"""The job's model for the Spark side: a folder that executors can read, and a few facts about it."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from pyspark.sql import SparkSession

from dolly_batch.config.job import EngineConfig, ModelConfig
from dolly_batch.engine.load import choose_engine
from dolly_batch.errors import ConfigError, EngineError, ModelError
from dolly_batch.host.address import default_root
from dolly_batch.models.folder import ModelFolder, inspect_folder, verify_hashes
from dolly_batch.models.sizing import num_parameters
from dolly_batch.records import EngineSpec
from dolly_batch.spark.files import files_for
from dolly_batch.spark.plan.manifest import Plan
from dolly_batch.spark.preflight.gpus import gpus_of, has_gpus
from dolly_batch.spark.session.session import is_connect, is_local
from dolly_batch.staging.smollm2 import SMOLLM2
from dolly_batch.staging.sources import TINY
from dolly_batch.staging.stage import stage_under
from dolly_batch.system.private_folder import make_private
from dolly_batch.system.user_cache import user_cache
from dolly_batch.tasks.base import TaskModel


class UsesModel(Protocol):
    """What names a model and its engine: a job, or an evaluation."""

    @property
    def model(self) -> ModelConfig:
        """Which model."""

    @property
    def engine(self) -> EngineConfig:
        """How its engine runs."""


@dataclass(frozen=True)
class ModelFacts:
    """What planning and generating need to know of the model, read without loading it."""

    folder: str
    revision: str | None
    identity: str
    max_positions: int
    num_parameters: int
    on_gpu: bool
    gpu_names: tuple[str, ...] = ()
    """Kinds of GPUs that are there, as far as they could be asked."""
    max_cores: int | None = None

    def device(self, job: UsesModel) -> str:
        """What answers the job's rows: `echo`, `cuda` or `cpu`."""
        return "echo" if job.engine.kind == "echo" else "cuda" if self.on_gpu else "cpu"

    def engine_spec(self, job: UsesModel) -> EngineSpec:
        """What the engine hosts are to load. They refuse a folder that is no longer the planned one."""
        return EngineSpec(
            model_folder=self.folder,
            model_sha256=self.identity,
            dtype=job.model.dtype,
            quantization=job.model.quantization,
            max_cores=self.max_cores,
            gpus=1 if job.engine.kind == "echo" else job.model.gpus,
            max_positions=job.model.max_positions,
            **job.engine.model_dump(),  # its keys have the same names
        )

    @property
    def task_model(self) -> TaskModel:
        """What tasks need to know of it."""
        return TaskModel(self.folder, self.max_positions)

    def scoring_spec(self, job: UsesModel, quantization: str) -> EngineSpec:
        """As `engine_spec`, for plain prompts: base models, without Dolly's markers, are scored too."""
        return replace(self.engine_spec(job), quantization=quantization, prompt_format="none")


def resolve_model(spark: SparkSession, job: UsesModel, work: str, log: Callable[[str], None]) -> ModelFacts:
    """Find the model, staging it under `model.stage_dir` (default `work_dir/models`) where it is not a staged folder.

    Raises ModelError for a model that cannot be had or run, ConfigError when the staging folder is not a path that
    executors can open, or when the engine that the job names cannot run this model as it asks.
    """
    # Where this machine alone runs the job, a model that this user's cache holds is used there.
    cached = str(user_cache() / "models") if job.model.path == SMOLLM2 and is_local(spark) else None
    stage_dir = _plain_path(spark, job.model.stage_dir or cached or f"{work}/models")
    staged = stage_under(job.model.path, stage_dir, job.model.revision, log=log)
    if staged.warning:
        log(staged.warning)
    folder = _checked(staged.folder, job)
    return _runnable(_facts(spark, folder, staged.revision, staged.identity, _runs_model(job)), folder, job)


def _checked(path: str | Path, job: UsesModel) -> ModelFolder:
    """The folder, its small files read and compared; raises ModelError. Weights are for the hosts that load them."""
    folder = inspect_folder(path, job.model.max_positions)
    verify_hashes(folder, but_weights=True)
    if job.model.sha256 not in (None, folder.sha256):
        raise ModelError(
            f"{path}: model.sha256 is {job.model.sha256}, and this is model {folder.sha256}; name the one that is meant"
        )
    return folder


def private_stage_dir() -> str:
    """A folder of this machine where nobody else can write, for models that need no shared one: who can, chooses them.

    Raises ConfigError where there is none.
    """
    root = default_root()
    try:
        make_private(root)
    except EngineError as error:
        raise ConfigError(f"no folder to stage the model in: {error}; or give `stage_dir`") from error
    return str(root)


def is_at_hand(spark: SparkSession, path: str) -> bool:
    """Whether a model is there, or comes by itself, without a folder to stage it in that executors share."""
    return path == TINY or (path == SMOLLM2 and is_local(spark))


def _runnable(facts: ModelFacts, folder: ModelFolder, job: UsesModel) -> ModelFacts:
    """The facts, if the job's engine can run such a model there; raises ConfigError if not."""
    for quantization in getattr(job, "quantizations", (job.model.quantization,)):
        spec = replace(facts.engine_spec(job), quantization=quantization)
        choose_engine(spec, folder.architecture, "cuda" if facts.on_gpu else "cpu")
    return facts


def planned_model(spark: SparkSession, plan: Plan, job: UsesModel) -> ModelFacts:
    """The model that an open plan was made with, whatever its hub holds today.

    Raises ModelError when its folder is gone or holds another model, ConfigError when the job's engine cannot run it.
    """
    folder = _checked(plan.model_folder, job)
    if folder.sha256 != plan.model_identity:
        raise ModelError(
            f"{plan.model_folder}: it is not the model that the open plan {plan.plan_id} was made with; "
            "put that one back, or close the plan with --abandon"
        )
    return _runnable(_facts(spark, folder, plan.model_revision, plan.model_identity, _runs_model(job)), folder, job)


def _runs_model(job: UsesModel) -> bool:
    return job.engine.kind != "echo"


def _facts(
    spark: SparkSession, folder: ModelFolder, revision: str | None, identity: str, runs_model: bool
) -> ModelFacts:
    return ModelFacts(
        folder=str(folder.path),
        revision=revision,
        identity=identity,
        max_positions=folder.max_positions,
        num_parameters=num_parameters(folder.config),
        on_gpu=runs_model and has_gpus(spark),
        gpu_names=tuple(gpu.name for gpu in gpus_of(spark)) if runs_model else (),
        max_cores=_executor_cores(spark),
    )


def _executor_cores(spark: SparkSession) -> int | None:
    """Cores of its machine that an executor was given, None where it has all that its process may use."""
    if is_connect(spark):
        return None
    return cores_of(str(spark.sparkContext.master), spark.conf.get("spark.executor.cores", None))


def cores_of(master: str, executor_cores: str | None) -> int | None:
    """Cores of one executor by Spark's master, `local[2]` or the like, and its `spark.executor.cores`.

    Unset, that is 1 on YARN and Kubernetes; a standalone worker gives an executor all that it has.
    """
    if local := re.fullmatch(r"local(?:\[([^,\]]+)(?:,[^\]]*)?\])?", master):
        threads = (local[1] or "1").strip()
        return None if threads == "*" else int(threads)
    if executor_cores:
        return int(executor_cores)
    if worker := re.fullmatch(r"local-cluster\[[^,]+,([^,]+),[^,]+\]", master):
        return int(worker[1])
    return 1 if master.startswith(("yarn", "k8s:")) else None


def _plain_path(spark: SparkSession, path: str) -> Path:
    """A path that Python can open on driver and executors."""
    files, absolute = files_for(spark, path)
    if (plain := files.plain(absolute)) is not None:
        return Path(plain)
    raise ConfigError(
        f"the model would be staged in {path}, which executors cannot open as a plain path; "
        "set model.stage_dir to a mount or a Volume that driver and executors share"
    )
