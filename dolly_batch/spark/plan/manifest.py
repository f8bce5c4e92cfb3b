"""A plan on disk: what it decided, and how far it is.

work_dir/<plan_id>/manifest.json      what was planned; never changed afterwards
                   snapshot/todo/     the rows to answer: wave=N/shard=M/, one file a shard; of rows that ask the
                                      same, one
                   snapshot/asking/   where several rows ask the same: all rows to answer, without their texts
                   snapshot/aside/    rows that get a status without the model (skipped rows)
                   snapshot/reused/   rows whose answers are carried over from the old output (mode overwrite)
                   snapshot/copied/   rows whose answers are copied from other rows of the output; answers/ holds them
                   snapshot/*.schema.json   the columns of each
                   beside.json        the output before planning: a Parquet output's folders, a Delta table's version
                   proxy.json         the proxy of a cascade, once its sample is answered
                   staging/wave=N/    answers of a finished wave; `.wave=N.<start>` while it is being answered
                   progress/wave=N/   how far its tasks are, for display only
                   progress.json      how far the whole plan is, and its waves took, for display only
                   swapping.json      a Parquet output is being replaced: by which folder
                   published.json     the output holds the rows
                   report.json        the numbers of the run
                   details.json, report.html   what its page shows besides, and the page
                   complete.json      the audit has passed
                   abandoned.json     closed by --abandon
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from dolly_batch.console import say
from dolly_batch.errors import Stopped
from dolly_batch.spark.decisions import ANSWERS, ASKING, CARRIED_OVER, COPIED, SKIPPED, TODO
from dolly_batch.spark.files import Files

MANIFEST = "manifest.json"
PUBLISHED = "published.json"
COMPLETE = "complete.json"
ABANDONED = "abandoned.json"
BESIDE = "beside.json"
PROXY = "proxy.json"
PROGRESS = "progress.json"
DETAILS = "details.json"
PAGE = "report.html"
FORMAT = 1

# Fields whose keys in manifest.json are older than their names.
_KEYS = {
    "num_existing": "num_held",
    "num_carried_over": "num_reused",
    "num_skipped": "num_aside",
    "skipped": "aside",
    "task_settings": "asked",
    "input_settings": "reads",
}
# Left out where they say nothing, so that an earlier version can finish the plan.
_LATER = {"num_shared", "num_copied", "prefix_share", "rate_factor", "num_sample_waves", "retried", "asked_revision"}
_FIELDS = {key: name for name, key in _KEYS.items()}


@dataclass(frozen=True)
class Wave:
    """One Spark job's worth of rows."""

    number: int
    num_rows: int
    num_shards: int


@dataclass(frozen=True)
class Plan:
    """What a plan decided. `header`, `destination` and the settings tell whether a job still asks for this plan."""

    plan_id: str
    name: str
    created_at: str
    """ISO 8601, UTC: the `created_at` of every row."""
    header: str
    destination: str
    model: str
    model_revision: str | None
    model_identity: str
    model_folder: str
    output_schema: str
    """The output's columns as Spark's JSON."""
    num_ids: int
    num_rows: int
    """Rows of the input, after `where` and `--limit`."""
    num_existing: int
    """Rows that the output holds and keeps: they are not part of the plan."""
    num_carried_over: int
    """Rows whose answers are carried over from the old output to the new one (mode overwrite)."""
    num_skipped: int
    """Rows that get a status without the model."""
    skipped: dict[str, int]
    """Those by status."""
    waves: tuple[Wave, ...]
    num_prompt_tokens: int
    estimated_s: float
    slots: int
    retries: bool
    """Whether rows that the output holds are answered again (`--retry`)."""
    task_settings: str = ""
    """As `keys.task_settings` writes them; empty in plans of earlier versions."""
    input_settings: str = ""
    """As `keys.input_settings` writes them; empty in plans of earlier versions."""
    input_version: int | None = None
    token_histogram: dict[str, int] = field(default_factory=dict)
    num_shared: int = 0
    """Rows that ask what another row of the plan asks, and get its answer."""
    num_copied: int = 0
    """Rows that get a copy of the answer that the output has for another row which asks the same."""
    rate_factor: float = 0.0
    """By how much more than the constants say the estimate is, as earlier runs took it; 0 where there were none."""
    prefix_share: float = 0.0
    """Which part of the prompts is computed once for several questions, as the layout expects it."""
    num_sample_waves: int = 0
    """The first waves, which hold the sample of a cascade: a proxy that is trained on their answers sees the others."""
    retried: tuple[str, ...] = ()
    """The statuses that `--retry` named, sorted; empty in plans of earlier versions."""
    asked_revision: str | None = None
    """The job's `model.revision`, which found `model_revision`; None in plans of earlier versions too."""

    @property
    def num_todo(self) -> int:
        """Rows that the model is to answer, or the proxy of a cascade; of rows that ask the same, one."""
        return sum(wave.num_rows for wave in self.waves)

    @property
    def num_sampled(self) -> int:
        """Rows of the sample of a cascade."""
        return sum(wave.num_rows for wave in self.waves if wave.number < self.num_sample_waves)

    @property
    def num_answered_before(self) -> int:
        """Rows that need no new answer, because the output holds one."""
        return self.num_existing + self.num_carried_over

    @property
    def num_planned(self) -> int:
        """Rows that this plan adds to the output, or replaces there; carried-over rows are not counted."""
        return self.num_todo + self.num_shared + self.num_copied + self.num_skipped

    def to_json(self) -> str:
        """The manifest's text."""
        document = {_KEYS.get(name, name): value for name, value in asdict(self).items() if value or name not in _LATER}
        return json.dumps({"format": FORMAT, **document}, indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Read a manifest's text. Raises Stopped for one that is torn, or of another version of this package."""
        try:
            document: dict[str, Any] = json.loads(text)
            if document.pop("format", None) != FORMAT:
                raise Stopped("it was made by another version of dolly_batch")
            document["waves"] = tuple(Wave(**wave) for wave in document["waves"])
            document["retried"] = tuple(document.get("retried", ()))
            return cls(**{_FIELDS.get(key, key): value for key, value in document.items()})
        except TypeError as error:  # a key that a later version has added, or one that it no longer has
            raise Stopped("it was made by another version of dolly_batch") from error
        except (ValueError, KeyError, AttributeError) as error:
            raise Stopped("it is not whole") from error


@dataclass(frozen=True)
class PlanFolder:
    """The folder of one plan."""

    files: Files
    path: str

    def of(self, *parts: str) -> str:
        """A path inside the folder."""
        return "/".join((self.path, *parts))

    def plan(self) -> Plan | None:
        """The plan, or None where the folder holds none (yet). Raises Stopped as `Plan.from_json` does."""
        text = self.files.read(self.of(MANIFEST))
        return None if text is None else Plan.from_json(text)

    def is_of(self, name: str) -> bool:
        """Whether the plan is of the job of this name, as far as its manifest can be read."""
        try:
            document = json.loads(self.files.read(self.of(MANIFEST)) or "")
        except ValueError:
            return False
        return isinstance(document, dict) and document.get("name") == name

    def has(self, marker: str) -> bool:
        """Whether a marker has been set."""
        return self.files.exists(self.of(marker))

    def mark(self, marker: str, facts: dict[str, object]) -> None:
        """Set a marker, with facts to keep."""
        self.files.write(self.of(marker), json.dumps(facts, indent=1, sort_keys=True))

    def facts(self, marker: str) -> dict[str, Any]:
        """What a marker holds; empty where it is not set."""
        text = self.files.read(self.of(marker))
        return {} if text is None else json.loads(text)

    def holds_rows(self, plan: Plan) -> bool:
        """Whether the snapshot is there. A start that was suspended while it planned may write a manifest alone."""
        waves = {f"wave={wave.number}" for wave in plan.waves}
        parts = {
            ASKING: plan.num_shared,
            SKIPPED: plan.num_skipped,
            CARRIED_OVER: plan.num_carried_over,
            COPIED: plan.num_copied,
            ANSWERS: plan.num_copied,
        }
        return waves <= {*self.files.list_names(self.of("snapshot", TODO))} and all(
            self.has(f"snapshot/{part}") for part, count in parts.items() if count
        )

    @property
    def is_open(self) -> bool:
        """Planned, and neither complete nor abandoned."""
        return self.has(MANIFEST) and not self.has(COMPLETE) and not self.has(ABANDONED)

    def staged(self, wave: int) -> str:
        """The folder of a finished wave's answers. It appears by one rename, so it is complete if it exists."""
        return self.of("staging", f"wave={wave}")

    def staged_waves(self) -> set[int]:
        """The numbers of the finished waves."""
        names = self.files.list_names(self.of("staging"))
        return {int(name.removeprefix("wave=")) for name in names if name.startswith("wave=")}

    def progress(self, wave: int) -> str | None:
        """Where the tasks of a wave write their progress, None where that would not be a plain path."""
        return self.files.plain(self.of("progress", f"wave={wave}"))

    def discard_rows(self) -> None:
        """Delete prompts and answers; the manifest, the markers and the report remain."""
        self.files.delete(self.of("snapshot"))
        self.files.delete(self.of("staging"))
        self.files.delete(self.of("progress"))


Unreadable = Callable[[PlanFolder, Stopped], None]


def pass_over(folder: PlanFolder, fault: Stopped) -> None:
    """Say nothing of a plan that cannot be read."""


def plans_under(files: Files, work_dir: str, unreadable: Unreadable = pass_over) -> Iterator[tuple[PlanFolder, Plan]]:
    """All plans under a work folder, of all jobs; `unreadable` is called for one whose manifest cannot be read."""
    for name in files.list_names(work_dir):
        folder = PlanFolder(files, f"{work_dir}/{name}")
        if name.startswith(".") or not folder.has(MANIFEST):
            continue
        try:
            plan = folder.plan()
        except Stopped as fault:
            unreadable(folder, fault)
            continue
        if plan is not None:
            yield folder, plan


def unreadable_plans(files: Files, work_dir: str, name: str) -> list[PlanFolder]:
    """The open plans of a job that this version cannot read."""
    found: list[PlanFolder] = []

    def keep(folder: PlanFolder, fault: Stopped) -> None:
        if folder.is_open and folder.is_of(name):
            found.append(folder)

    for _ in plans_under(files, work_dir, keep):
        pass
    return found


def open_plan(files: Files, work_dir: str, name: str) -> tuple[PlanFolder, Plan] | None:
    """The open plan of a job. A job has at most one; after a race of two starts the older one counts.

    A manifest that cannot be read, or has lost its rows, is named and passed over. Raises Stopped where one that cannot
    be read is known to be this job's open plan: planned again, its rows would be paid for twice.
    """

    def unreadable(folder: PlanFolder, fault: Stopped) -> None:
        manifest = folder.of(MANIFEST)
        if folder.is_of(name) and folder.is_open:
            raise Stopped(
                f"the open plan {manifest} cannot be read: {fault}. Finish it with the version that made it, or close "
                "it with --abandon"
            )
        say(f"{manifest} cannot be read: {fault}; it is passed over")

    def can_go_on(folder: PlanFolder, plan: Plan) -> bool:
        if plan.name != name or not folder.is_open:
            return False
        if not (whole := folder.holds_rows(plan)):
            say(f"{folder.path} holds a plan without its rows; it is passed over")
        return whole

    plans = [pair for pair in plans_under(files, work_dir, unreadable) if can_go_on(*pair)]
    return min(plans, key=lambda pair: (pair[1].created_at, pair[1].plan_id), default=None)
