"""The numbers of one start, as they are printed and as they are written to `report.json`. Nothing is printed here."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from dolly_batch.records import count_errors

STAGES = ("session", "plan", "generate", "publish", "audit")
"""The steps of a run, in their order."""
WHAT_TO_DO = {
    "too_long": "set limits.long_prompt to cut their text, a larger model.max_positions, or a smaller max_new_tokens",
    "bad_encoding": "correct the input: its text is not valid UTF-8",
    "duplicate_id": "correct the input: give each row an id of its own",
    "out_of_memory": "lower engine.memory_fraction or engine.max_batch_tokens, or set model.max_positions; "
    "on Delta `run --retry out_of_memory` asks these rows again",
    "model_error": "read their column `error`; on Delta `run --retry model_error` asks them again",
    "invalid_output": "read their column `error`; extract: simplify the schema, or allow more max_new_tokens; "
    "on Delta `run --retry invalid_output` asks them again",
    "truncated": "raise generation.max_new_tokens; on Delta `run --retry truncated` then resumes these answers",
    "empty_response": "the model has nothing to say: look at the prompt; on Delta `run --retry empty_response`",
}
"""For each status that asks for something, what helps."""


@dataclass(frozen=True)
class Progress:
    """How far a run is. Speeds are those of the last minutes; they and the time left are None before the first rows."""

    at: str
    """ISO 8601, UTC."""
    num_waves: int
    num_finished_waves: int
    num_todo: int
    num_rows: int
    """Answered, of `num_todo`."""
    num_tokens: int
    """Generated since the run was first started."""
    num_errors: int
    tokens_per_s: float | None = None
    rows_per_s: float | None = None
    left_s: float | None = None

    def __str__(self) -> str:
        """One line."""
        rows = f"{self.num_rows:,} of {self.num_todo:,} rows ({self.num_rows / max(1, self.num_todo):.1%})"
        waves = f"{self.num_finished_waves:,} of {self.num_waves:,} waves"
        return f"{waves}, {rows}, {self.pace}, errors: {self.num_errors:,}"

    @property
    def pace(self) -> str:
        """How fast it is, and how long it will take."""
        speeds = []
        if self.tokens_per_s:
            speeds.append(f"{self.tokens_per_s:,.0f} tokens/s")
        if self.rows_per_s:
            speeds.append(f"{self.rows_per_s:,.{0 if self.rows_per_s >= 100 else 2}f} rows/s")
        left = "not known yet" if self.left_s is None else duration(self.left_s)
        return ", ".join([*speeds, f"time left: {left}"])


def num_new_tokens(report: Mapping[str, Any]) -> int:
    """Tokens that the model has generated, by the content of a report.json: those that were reused are none."""
    return int(report.get("num_generated_tokens") or 0) - int(report.get("num_begun_tokens") or 0)


def duration(seconds: float) -> str:
    """A time for people, in two units at most."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 20:
        return f"{minutes} min {rest} s"
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours / 24:.1f} days"


@dataclass
class BaseReport:
    """What the reports of all commands have. `outcome` is `complete`, `nothing_to_do`, `planned` ... or an error."""

    name: str
    outcome: str = "started"
    exit_code: int = 5
    message: str = ""
    output: str | None = None
    model: str | None = None
    model_revision: str | None = None
    model_loads: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time by stage."""

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the wall time of a `with` block to its stage, also where the block raises."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[stage] = round(self.seconds.get(stage, 0.0) + time.monotonic() - started, 3)


@dataclass
class Report(BaseReport):
    """One start of a job. Its stages are session, plan, generate, publish and audit."""

    plan_id: str | None = None
    num_input_rows: int = 0
    num_held_rows: int = 0
    """Rows whose answers were in the output before."""
    num_published_rows: int = 0
    num_answered_by_model: int = 0
    """Of rows that ask the same, one."""
    num_answered_by_proxy: int = 0
    """The same, of the proxy of a cascade."""
    num_shared_rows: int = 0
    """Rows that got the answer of another one, which asks the same."""
    num_copied_rows: int = 0
    """Rows that got the answer which the output had for another row that asks the same."""
    prefix_share: float = 0.0
    """Which part of the prompts the plan lays out to be computed once for several rows, by an estimate."""
    by_status: dict[str, int] = field(default_factory=dict)
    answered_by: dict[str, int] = field(default_factory=dict)
    """With a cascade: published rows by who answered them, `model` or `proxy`; skipped ones have nobody."""
    cascade: dict[str, Any] = field(default_factory=dict)
    """How the proxy was trained and checked: its hash, rows, groups of labels with their bounds, drift."""
    error_share: float = 0.0
    num_prompt_tokens: int = 0
    num_completion_tokens: int = 0
    """Of all rows; rows that share an answer count each."""
    num_generated_tokens: int = 0
    """Of all answers, each counted once; `num_begun_tokens` are among them."""
    num_read_tokens: int = 0
    """Of all prompts that the model was given, over all calls; rows that share an answer count once."""
    num_rejected_rows: int = 0
    """Rows that this run added to `output.rejected`."""
    num_checked_rows: int = 0
    """Answers that the job's `checks` were put to."""
    checks: dict[str, int] = field(default_factory=dict)
    """How many of them fail each check."""
    check_faults: dict[str, str] = field(default_factory=dict)
    """Checks that an answer stopped, and why."""
    num_continued_rows: int = 0
    """Truncated answers that `--retry truncated` resumed."""
    num_restarted_rows: int = 0
    """Truncated answers that it restarted from scratch, because their text does not determine their tokens."""
    num_begun_tokens: int = 0
    """Answer tokens that were reused from the output, and not generated again."""
    token_histogram: dict[str, int] = field(default_factory=dict)
    estimated_s: float | None = None
    estimated_cost: float | None = None
    """Of a plan that was only counted, where the job names a price."""
    gpu_hours: float = 0.0
    """For which GPUs were busy with finished waves, on CPUs engines; over all starts. 0 before a run is complete."""
    cost: float | None = None
    """Of these hours, at the job's price; None without one, and for answers that an earlier version has published."""
    tags: dict[str, str] = field(default_factory=dict)
    """The job's own."""
    num_waves: int = 0
    num_resumed_waves: int = 0
    """Waves that earlier starts had finished."""
    num_shards: int = 0
    progress: dict[str, Any] = field(default_factory=dict)
    """Of `status`, where the plan is open: a `Progress`, as the run wrote it last."""

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from dolly_batch.page.pages import report_card

        return report_card(self)

    @property
    def num_asked(self) -> int:
        """Rows that were asked, of the model or its proxy: of those that ask the same, one."""
        return self.num_answered_by_model + self.num_answered_by_proxy

    def check_errors(self, max_error_share: float) -> None:
        """Set the error share, and from it the exit code of a complete run."""
        num_rows = sum(self.by_status.values())
        self.error_share = count_errors(self.by_status) / num_rows if num_rows else 0.0
        too_many = self.error_share > max_error_share or self.check_faults or self.failing_checks(max_error_share)
        self.exit_code = 3 if too_many else 0

    def failing_checks(self, max_error_share: float) -> list[str]:
        """The checks that more than this share of the answers fail."""
        return [
            name for name, count in self.checks.items() if count and count / self.num_checked_rows > max_error_share
        ]


@dataclass(frozen=True)
class PlanReport:
    """One plan of a work folder; `report` is the content of its report.json, empty before it is complete."""

    plan_id: str
    name: str
    created_at: str
    """ISO 8601, UTC."""
    state: str
    model: str
    num_input_rows: int
    num_answered: int
    num_todo: int
    token_histogram: dict[str, int] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    model_revision: str | None = None
    progress: dict[str, Any] = field(default_factory=dict)
    """The content of its progress.json."""
    details: dict[str, Any] = field(default_factory=dict)
    """The content of its details.json."""

    @property
    def listed(self) -> tuple[str, ...]:
        """How its line in a list of plans begins: job, time, state, input rows, answered of planned ones, errors."""
        share = self.report.get("error_share")
        return (
            self.name,
            self.created_at[:16].replace("T", " "),
            self.state,
            f"{self.num_input_rows:,}",
            f"{self.num_answered:,} of {self.num_todo:,}",
            "" if share is None else f"{share:.1%}",
        )
