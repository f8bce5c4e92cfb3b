"""What a job or a call asks of each row, made once; everything after that is the same for all kinds of task."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dolly_batch.engine.json_grammar import fault_of
from dolly_batch.errors import ConfigError
from dolly_batch.records import GenerationParams
from dolly_batch.tasks import KINDS
from dolly_batch.tasks.base import PreparedTask, TaskKind, TaskModel
from dolly_batch.tasks.room import check_room

if TYPE_CHECKING:  # executors prepare tasks too, and have no pydantic
    from dolly_batch.config.job import JobConfig


def prepare_task(job: "JobConfig", model: TaskModel) -> PreparedTask:
    """The job's task. Raises ConfigError as `prepare_settings` does."""
    return prepare_settings(KINDS[job.task.kind], job.task, model, job.generation.params)


def settled(job: "JobConfig", model: TaskModel) -> "JobConfig":
    """The job with what its task leaves to the model put in: what request keys and plans are made of."""
    return job.model_copy(update={"task": KINDS[job.task.kind].settled(job.task, model)})


def prepare_settings(kind: TaskKind, settings: Any, model: TaskModel, params: GenerationParams) -> PreparedTask:
    """A task. Raises ConfigError for settings with which this model can answer no row, and for such schemas."""
    if settings.system == "":
        raise ConfigError("task.system: must not be empty; leave it out for the model's own")
    model = replace(model, system=settings.system)
    prepared = kind.prepare(settings, model, params)
    prepared = replace(prepared, task=replace(prepared.task, system=settings.system))
    check_room(prepared, model, generates=kind.generates)
    if prepared.grammar is not None and (fault := fault_of(prepared.grammar)):
        raise ConfigError(fault)
    return prepared
