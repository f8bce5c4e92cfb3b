"""What ends a run at the end of a wave: engines busy for longer than the budget, or too many rows that fail."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from threading import Lock

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from dolly_batch.config.limits import LimitsConfig
from dolly_batch.errors import BudgetSpent, Stopped
from dolly_batch.records import ERROR_STATUSES

MIN_JUDGED_ROWS = 500  # fewer may fail by chance
_TASK = ("engine_id", "began_s", "ended_s")
Span = tuple[float, float]


@dataclass
class ErrorLimit:
    """Counts the errors of finished waves, each wave once, against `limits.max_error_share`."""

    max_share: float
    num_rows: int = 0
    num_errors: int = 0

    def is_due(self, num_new_rows: int) -> bool:
        """Whether so many rows that were not counted yet are worth a Spark job."""
        return self.max_share < 1 and num_new_rows >= MIN_JUDGED_ROWS

    def add(self, staged: DataFrame) -> None:
        """Count the answers of further waves.

        Raises Stopped, naming their commonest fault, when too many are errors: what is left would most likely fail too,
        and be paid for.
        """
        counted = staged.groupBy("status").agg(F.count("*"), F.mode("error")).collect()
        errors = sorted((row for row in counted if row[0] in ERROR_STATUSES), key=lambda row: row[1])
        self.num_rows += sum(row[1] for row in counted)
        self.num_errors += sum(row[1] for row in errors)
        if not errors or self.num_rows < MIN_JUDGED_ROWS or self.num_errors <= self.max_share * self.num_rows:
            return
        status, count, message = errors[-1]
        raise Stopped(
            f"stopped: {self.num_errors:,} of the {self.num_rows:,} rows answered so far are errors, more than "
            f"limits.max_error_share = {self.max_share}; {count:,} of the last ones are {status}, most with: {message}."
            " Finished waves are kept: mend the cause or allow more errors, and run the same command to resume; or "
            "close the plan with --abandon"
        )


@dataclass
class Budget:
    """Counts the time of GPUs, on CPUs of engines, each finished wave once, against the job's limits."""

    limits: LimitsConfig
    num_gpus: int = 1
    """Of one engine."""
    _busy: dict[str, list[Span]] = field(default_factory=dict)
    """When each engine was busy, in seconds of its machine's clock, in order and without overlaps."""

    @property
    def is_set(self) -> bool:
        """Whether there is a limit."""
        return self.limits.max_gpu_hours is not None or self.limits.max_cost is not None

    def add(self, staged: DataFrame) -> None:
        """Count the tasks of further waves. Raises Stopped when the time, or the money, is spent."""
        for engine, began_s, ended_s in staged.where("ended_s is not null").select(*_TASK).collect():
            self._busy.setdefault(engine, []).append((began_s, ended_s))
        self._busy = {engine: merged(spans) for engine, spans in self._busy.items()}
        max_hours, max_cost = self.limits.max_gpu_hours, self.limits.max_cost
        if max_hours is not None and self.hours > max_hours:
            raise BudgetSpent(
                f"stopped: engines have been busy for {self.hours:.3g} hours, more than limits.max_gpu_hours = "
                f"{max_hours}; raise it and run the same command to resume",
                busy_s(self._busy),
            )
        cost = self.hours * (self.limits.price_per_gpu_hour or 0.0)
        if max_cost is not None and cost > max_cost:
            raise BudgetSpent(
                f"stopped: {self.hours:.3g} GPU hours have cost {cost:,.2f}, more than limits.max_cost = {max_cost}; "
                "raise it and run the same command to resume",
                busy_s(self._busy),
            )

    @property
    def hours(self) -> float:
        """Hours for which GPUs have had tasks of finished waves, added up; time that tasks shared counts once."""
        return self.num_gpus * busy_s(self._busy) / 3600


@dataclass
class Limits:
    """What is judged whenever a wave is finished, in that wave's own thread: the others are not kept waiting."""

    errors: ErrorLimit
    budget: Budget
    num_rows: Mapping[int, int]
    """Rows of each wave of the plan."""
    answers: Callable[[Iterable[int]], DataFrame]
    """The staged answers of waves."""
    _counted: set[int] = field(default_factory=set)
    _paid: set[int] = field(default_factory=set)
    _lock: Lock = field(default_factory=Lock)

    def check(self, staged: set[int]) -> None:
        """Judge the waves that are staged, each once. Raises Stopped; not when all are: the audit judges the whole."""
        with self._lock:
            if len(staged) == len(self.num_rows):
                return
            new = staged - self._counted
            if self.errors.is_due(sum(self.num_rows[wave] for wave in new)):
                self._counted |= new
                self.errors.add(self.answers(new))
            if self.budget.is_set and (unpaid := staged - self._paid):
                self._paid |= unpaid
                self.budget.add(self.answers(unpaid))


def merged(spans: Iterable[Span]) -> list[Span]:
    """The same times, in order, those that overlap or touch as one."""
    found: list[Span] = []
    for began_s, ended_s in sorted(spans):
        if found and began_s <= found[-1][1]:
            found[-1] = (found[-1][0], max(ended_s, found[-1][1]))
        else:
            found.append((began_s, ended_s))
    return found


def busy_s(spans: Mapping[str, Iterable[Span]]) -> float:
    """Seconds for which engines were busy, added up over engines; time that tasks shared counts once."""
    return sum(ended_s - began_s for of_engine in spans.values() for began_s, ended_s in merged(of_engine))
