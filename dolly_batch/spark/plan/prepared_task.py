"""What a job asks of each row, made once on the driver; everything after that is the same for all kinds of task."""

from dolly_batch.config.job import JobConfig
from dolly_batch.engine.json_grammar import fault_of
from dolly_batch.errors import ConfigError
from dolly_batch.tasks import KINDS
from dolly_batch.tasks.base import PreparedTask, TaskModel


def prepare_task(job: JobConfig, model: TaskModel) -> PreparedTask:
    """The job's task. Raises ConfigError for settings that cannot work with this model, and for such schemas."""
    prepared = KINDS[job.task.kind].prepare(job.task, model, job.generation.params)
    if prepared.grammar is not None and (fault := fault_of(prepared.grammar)):
        raise ConfigError(fault)
    return prepared
