"""Inside a task: the GPU it was given. Apart from what else knows of GPUs, because executors import it."""

from pyspark import TaskContext


def task_device() -> str | None:
    """In a task: the GPU that Spark gave it, or None for the engine's own choice."""
    context = TaskContext.get()
    resources = context.resources() if context is not None else {}
    return f"cuda:{resources['gpu'].addresses[0]}" if "gpu" in resources else None
