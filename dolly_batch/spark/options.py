"""What one start of a job is given: the job, and what the command line adds to its file."""

from dataclasses import dataclass
from pathlib import Path

from dolly_batch.config.formats import FORMATS, listed
from dolly_batch.config.job import JobConfig, load_job
from dolly_batch.errors import ConfigError
from dolly_batch.records import ERROR_STATUSES

RETRYABLE = (*ERROR_STATUSES, "truncated", "empty_response")


@dataclass(frozen=True)
class Options:
    """What a start adds to the job file."""

    retry: tuple[str, ...] = ()
    """Statuses whose rows are answered again."""
    limit: int | None = None
    """Read only the first rows by row key."""
    abandon: bool = False
    """Close the open plan without finishing it, and do nothing else."""

    def check(self, job: JobConfig) -> None:
        """Raise ConfigError for options that cannot work with this job."""
        for status in self.retry:
            if status not in RETRYABLE:
                raise ConfigError(f"--retry {status}: not one of {', '.join(RETRYABLE)}")
        if "duplicate_id" in self.retry:
            raise ConfigError("--retry duplicate_id: fix the ids in the input instead; rows with new ids are new rows")
        if self.retry and not FORMATS[job.output.format].replaces_rows:
            formats = listed(name for name, facts in FORMATS.items() if facts.replaces_rows)
            raise ConfigError(
                f"--retry needs output.format {formats}: rows of a {job.output.format} table cannot be replaced"
            )


NO_OPTIONS = Options()


def loaded(job: JobConfig | str | Path) -> JobConfig:
    """The job itself, or the one of a job file. Raises ConfigError as `load_job` does."""
    return job if isinstance(job, JobConfig) else load_job(job)
