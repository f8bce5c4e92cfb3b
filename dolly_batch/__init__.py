"""Bulk instruction following with the Dolly family of language models over tables, on Apache Spark.

    from dolly_batch import Stopped, load_job, run_job

    job = load_job("job.yaml", ["generation.max_new_tokens=64"])
    try:
        report = run_job(job)
    except Stopped:  # finished waves are kept: the same call resumes
        report = run_job(job)
    print(report.message, report.by_status)

SQL functions are in `dolly_batch.functions`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dolly_batch.config.evaluation import EvaluateConfig, load_evaluation
    from dolly_batch.config.job import JobConfig, check_job, load_job
    from dolly_batch.errors import (
        AlreadyRunning,
        AuditError,
        BudgetSpent,
        CalibrationError,
        ConfigError,
        DollyBatchError,
        EngineError,
        InputError,
        ModelError,
        OutputError,
        Refused,
        Stopped,
        UsageError,
    )
    from dolly_batch.evaluate.report import EvaluateReport
    from dolly_batch.evaluate.run import run_evaluation
    from dolly_batch.report import Report
    from dolly_batch.spark.options import Options
    from dolly_batch.spark.run import plan_job, run_job
    from dolly_batch.spark.status import read_status

__version__ = "0.1.0"

__all__ = [
    "AlreadyRunning",
    "AuditError",
    "BudgetSpent",
    "CalibrationError",
    "ConfigError",
    "DollyBatchError",
    "EngineError",
    "EvaluateConfig",
    "EvaluateReport",
    "InputError",
    "JobConfig",
    "ModelError",
    "Options",
    "OutputError",
    "Refused",
    "Report",
    "Stopped",
    "UsageError",
    "check_job",
    "load_evaluation",
    "load_job",
    "plan_job",
    "read_status",
    "run_evaluation",
    "run_job",
]

_MODULES = {
    "config.evaluation": ("EvaluateConfig", "load_evaluation"),
    "config.job": ("JobConfig", "check_job", "load_job"),
    "evaluate.report": ("EvaluateReport",),
    "evaluate.run": ("run_evaluation",),
    "report": ("Report",),
    "spark.options": ("Options",),
    "spark.run": ("plan_job", "run_job"),
    "spark.status": ("read_status",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: executors and hosts import this package, and need little of it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
