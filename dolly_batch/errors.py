"""The faults of a run, each with the exit code it ends in. A fault of one row is a status, never an exception.

DollyBatchError
├── UsageError             2   the command line cannot be read
├── Refused                4   nothing was done, the output is untouched
│   ├── ConfigError            the job file: unknown key, wrong type, a value that cannot work
│   ├── InputError             the input table: missing column, wrong type, bad ids
│   ├── OutputError            the output table: another schema, same as the input, not writable
│   └── ModelError             the model folder: a file missing or changed, an architecture we do not run
├── Stopped                5   stopped on the way; the same command resumes
│   ├── BudgetSpent            limits.max_gpu_hours or limits.max_cost
│   ├── EngineError            the engine host could not be started, or crashed
│   └── AuditError             the published rows are not the planned rows
└── AlreadyRunning         6   another start of this job is active
"""


class DollyBatchError(Exception):
    """Base of every fault this package raises by name."""

    exit_code = 5


class UsageError(DollyBatchError):
    """The command line cannot be read."""

    exit_code = 2


class Refused(DollyBatchError):
    """Refused before any work: the output is unchanged."""

    exit_code = 4


class ConfigError(Refused):
    """The job file asks for something unknown, ill-typed or impossible."""


class InputError(Refused):
    """The input table lacks something the job needs."""


class OutputError(Refused):
    """The output table cannot take this job's rows."""


class ModelError(Refused):
    """The model folder cannot be run: a file is missing or changed, or it is not a supported model."""


class Stopped(DollyBatchError):
    """Stopped on the way. Finished waves are kept, and the same command resumes."""


class BudgetSpent(Stopped):
    """The time or the money that the job may take is spent."""

    def __init__(self, message: str, busy_s: float) -> None:
        super().__init__(message)
        self.busy_s = busy_s
        """For which engines have had tasks of finished waves."""


class EngineError(Stopped):
    """The engine host could not be started, or crashed."""


class CalibrationError(EngineError):
    """The model's scores for texts without content cannot be used."""


class AuditError(Stopped):
    """The published rows are not the planned rows."""


class AlreadyRunning(DollyBatchError):
    """Another start of this job is active."""

    exit_code = 6
