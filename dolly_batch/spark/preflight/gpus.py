"""GPUs: which ones there are; and that generating tasks get them, and no others."""

import math
import subprocess
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import pandas as pd
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from dolly_batch.engine.processes.machine import may_have_gpu
from dolly_batch.errors import ConfigError
from dolly_batch.models.sizing import QUERY, Gpu, parse_gpus
from dolly_batch.spark.session.session import is_connect, is_local, num_slots

TASKS_PER_GPU = 2  # two shards at once keep a GPU's batch full across the end of one
EXECUTOR_GPUS = "spark.executor.resource.gpu.amount"
TASK_GPUS = "spark.task.resource.gpu.amount"
TASK_CPUS = "spark.task.cpus"
_asked: WeakKeyDictionary[SparkSession, set[str]] = WeakKeyDictionary()


def schedules_gpus(spark: SparkSession) -> bool:
    """Whether Spark gives its tasks GPUs, as the cluster's settings say."""
    return not is_connect(spark) and float(spark.conf.get(EXECUTOR_GPUS, "0") or 0) > 0


def has_gpus(spark: SparkSession) -> bool:
    """Whether engines run on GPUs: Spark gives them some, or else each executor that was asked has one."""
    if is_local(spark):
        return schedules_gpus(spark) or may_have_gpu()
    if schedules_gpus(spark):
        return True
    texts = _described(spark)
    return bool(texts) and all(parse_gpus(text) for text in texts)


def gpus_of(spark: SparkSession) -> list[Gpu]:
    """The kinds of GPUs that executors, or in local mode this machine, describe; none where no driver is there."""
    return sorted({gpu for text in _described(spark) for gpu in parse_gpus(text)}, key=lambda gpu: gpu.name)


def _described(spark: SparkSession) -> set[str]:
    """What `nvidia-smi` says on the executors, empty where there is none. A session's executors are asked once."""
    if spark not in _asked:
        _asked[spark] = _ask(spark)
    return _asked[spark]


def _ask(spark: SparkSession) -> set[str]:
    if is_local(spark):
        return {_nvidia_smi()} if may_have_gpu() else set()
    slots = num_slots(spark)
    try:
        rows = spark.range(0, slots, 1, slots).mapInPandas(_describe_gpus, "gpus string").distinct().collect()
    except PySparkException:  # whatever keeps tasks from running, the checks of the executors name it
        return set()
    return {row[0] for row in rows}


def _describe_gpus(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    for _ in batches:
        yield pd.DataFrame({"gpus": [_nvidia_smi()]})


def _nvidia_smi() -> str:
    try:
        return subprocess.run(QUERY, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""  # no NVIDIA driver here, or none that this process may ask


def check_enough_gpus(spark: SparkSession, num_gpus: int) -> None:
    """Refuse a model over more GPUs than an executor has, or than the cluster gives a task. Raises ConfigError."""
    for key in (EXECUTOR_GPUS, TASK_GPUS):
        amount = spark.conf.get(key, None)
        if num_gpus > 1 and amount is not None and float(amount) < num_gpus:
            raise ConfigError(f"model.gpus is {num_gpus}, and {key} is {amount}; set that to {num_gpus}")


def gpu_profile(spark: SparkSession, num_gpus: int = 1) -> Any:
    """A task profile for the generating stage alone; None where Spark does not support one.

    It asks for a share of a GPU, or, for a model over several, for so many of them whole.

    Standalone, YARN and Kubernetes allow it. Local mode throws on any profile, and Spark refuses a profile for tasks
    only under dynamic allocation; there `spark.task.resource.gpu.amount` of the cluster decides.
    """
    if not schedules_gpus(spark) or is_local(spark) or spark.conf.get(TASK_GPUS, None) is not None:
        return None
    if spark.conf.get("spark.dynamicAllocation.enabled", "false") == "true":
        return None
    from pyspark.resource import ResourceProfileBuilder, TaskResourceRequests

    requests = TaskResourceRequests().cpus(_task_cpus(spark)).resource("gpu", _gpu_share(num_gpus))
    return ResourceProfileBuilder().require(requests).build


def generation_slots(spark: SparkSession, num_gpus: int = 1) -> int:
    """Generating tasks that can run at once: what the executors' cores allow, and their GPUs where they hold any."""
    slots = num_slots(spark)
    if is_connect(spark):
        return slots
    by_cores = max(1, slots // _task_cpus(spark))
    if not schedules_gpus(spark) or is_local(spark):
        return by_cores
    share = float(spark.conf.get(TASK_GPUS, None) or _gpu_share(num_gpus))
    gpus = float(spark.conf.get(EXECUTOR_GPUS, None) or 0)
    # A task that asks for more than one GPU takes them whole.
    per_executor = int(gpus // share) if share > 1 else int(gpus) * int(1 / share)
    return max(1, min(by_cores, _num_executors(spark) * per_executor))


def gpus_at_once(spark: SparkSession, slots: int, num_gpus: int) -> float:
    """GPUs that are paid for while `slots` tasks generate; on CPUs engines, one an executor.

    Where Spark does not give tasks their GPUs, each executor has one engine, of one model over `num_gpus`; over Spark
    Connect, where executors are not counted, one is assumed.
    """
    if schedules_gpus(spark) and not is_local(spark):
        share = float(spark.conf.get(TASK_GPUS, None) or _gpu_share(num_gpus))
        # Three tasks of 0.3 fill a GPU: Spark gives a task no share of two.
        return slots * share if share > 1 else float(max(1, math.ceil(slots / int(1 / share))))
    return float(num_gpus) * (1 if is_connect(spark) or is_local(spark) else _num_executors(spark))


def _gpu_share(num_gpus: int) -> float:
    """GPUs of one task. A model over several has them for itself: a task may not share more than one."""
    return float(num_gpus) if num_gpus > 1 else 1.0 / TASKS_PER_GPU


def _task_cpus(spark: SparkSession) -> int:
    return int(spark.conf.get(TASK_CPUS, None) or 1)


def _num_executors(spark: Any) -> int:
    """Executors that have registered by now; the driver is counted among them by Spark, and not here."""
    return max(1, len(spark.sparkContext._jsc.sc().statusTracker().getExecutorInfos()) - 1)
