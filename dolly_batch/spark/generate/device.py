"""Inside a task: the GPUs it was given. A module of its own, because executors import it."""

from pyspark import TaskContext

from dolly_batch.errors import ConfigError


def task_device(num_gpus: int = 1) -> str | None:
    """In a task: the GPUs that Spark gave it, as `cuda:0` or `cuda:0,1`, or None for the engine's own choice.

    Raises ConfigError when it was given fewer than share a model.
    """
    context = TaskContext.get()
    resources = context.resources() if context is not None else {}
    if "gpu" not in resources:
        return None
    addresses = resources["gpu"].addresses[:num_gpus]
    if len(addresses) < num_gpus:
        raise ConfigError(
            f"model.gpus is {num_gpus}, and Spark gave a task {len(addresses)}; set spark.task.resource.gpu.amount and "
            f"spark.executor.resource.gpu.amount to {num_gpus} at least"
        )
    return "cuda:" + ",".join(addresses)
