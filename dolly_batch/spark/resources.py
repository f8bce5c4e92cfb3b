"""GPUs for the tasks that generate, and for no others."""

from typing import Any

from pyspark.sql import SparkSession

from dolly_batch.spark.session import is_connect, is_local

TASKS_PER_GPU = 2  # two shards at once keep a GPU's batch full across the end of one
EXECUTOR_GPUS = "spark.executor.resource.gpu.amount"
TASK_GPUS = "spark.task.resource.gpu.amount"


def has_gpus(spark: SparkSession) -> bool:
    """Whether Spark's executors hold GPUs, as the cluster's settings say."""
    return not is_connect(spark) and float(spark.conf.get(EXECUTOR_GPUS, "0") or 0) > 0


def gpu_profile(spark: SparkSession) -> Any:
    """A task profile with a share of a GPU, for the generating stage alone; None where that is not to be had.

    Standalone, YARN and Kubernetes allow it. Local mode throws on any profile, and Spark refuses a profile for tasks
    only under dynamic allocation; there `spark.task.resource.gpu.amount` of the cluster decides.
    """
    if not has_gpus(spark) or is_local(spark) or spark.conf.get(TASK_GPUS, None) is not None:
        return None
    if spark.conf.get("spark.dynamicAllocation.enabled", "false") == "true":
        return None
    from pyspark.resource import ResourceProfileBuilder, TaskResourceRequests

    requests = TaskResourceRequests().cpus(1).resource("gpu", 1.0 / TASKS_PER_GPU)
    return ResourceProfileBuilder().require(requests).build
