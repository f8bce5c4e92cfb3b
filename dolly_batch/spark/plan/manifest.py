"""A plan as it lies under `work_dir`: what it decided, how far it has come.

work_dir/<plan_id>/manifest.json      what was planned; never changed afterwards
                   snapshot/todo/     the rows to answer: wave=N/shard=M/, one file a shard
                   snapshot/aside/    rows that get a status without the model
                   snapshot/reused/   rows whose answers the output already holds (mode overwrite)
                   snapshot/*.schema.json   the columns of each
                   staging/wave=N/    answers of a finished wave; `.wave=N.<start>` while it is being answered
                   progress/wave=N/   how far its tasks are, for the eye alone
                   swapping.json      a Parquet output is being replaced: by which folder
                   published.json     the commit is made
                   report.json        the numbers of the run
                   complete.json      the audit has passed
                   abandoned.json     closed by --abandon
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from dolly_batch.errors import Stopped
from dolly_batch.spark.files import Files

MANIFEST = "manifest.json"
PUBLISHED = "published.json"
COMPLETE = "complete.json"
ABANDONED = "abandoned.json"
FORMAT = 1


@dataclass(frozen=True)
class Wave:
    """One Spark job's worth of rows."""

    number: int
    num_rows: int
    num_shards: int


@dataclass(frozen=True)
class Plan:
    """What a plan decided. `header` and `destination` tell whether a job file still asks for this plan."""

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
    num_held: int
    """Rows that the output held already, and so are not part of the plan."""
    num_reused: int
    num_aside: int
    aside: dict[str, int]
    """Rows set aside, by status."""
    waves: tuple[Wave, ...]
    num_prompt_tokens: int
    estimated_s: float
    slots: int
    retries: bool
    """Whether rows that the output holds are answered again (`--retry`)."""
    asked: str = ""
    """The settings of the task, as `keys.asked_settings` writes them."""
    reads: str = ""
    """Which rows were read, as `keys.read_settings` writes it."""
    input_version: int | None = None
    token_histogram: dict[str, int] = field(default_factory=dict)

    @property
    def num_todo(self) -> int:
        """Rows that the model is to answer."""
        return sum(wave.num_rows for wave in self.waves)

    @property
    def num_planned(self) -> int:
        """Rows that this plan publishes anew."""
        return self.num_todo + self.num_aside

    def to_json(self) -> str:
        """The manifest's text."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Read a manifest's text. Raises Stopped for a format of another version of this package."""
        document: dict[str, Any] = json.loads(text)
        if document.pop("format", None) != FORMAT:
            raise Stopped("the open plan was made by another version of dolly_batch; finish it there, or --abandon it")
        document["waves"] = tuple(Wave(**wave) for wave in document["waves"])
        return cls(**document)


@dataclass(frozen=True)
class PlanFolder:
    """The folder of one plan."""

    files: Files
    path: str

    def of(self, *parts: str) -> str:
        """A path inside the folder."""
        return "/".join((self.path, *parts))

    def plan(self) -> Plan | None:
        """The plan, or None where the folder holds none (yet)."""
        text = self.files.read(self.of(MANIFEST))
        return None if text is None else Plan.from_json(text)

    def has(self, marker: str) -> bool:
        """Whether a marker has been set."""
        return self.files.exists(self.of(marker))

    def mark(self, marker: str, facts: dict[str, object]) -> None:
        """Set a marker, with what was found."""
        self.files.write(self.of(marker), json.dumps(facts, indent=1, sort_keys=True))

    def facts(self, marker: str) -> dict[str, Any]:
        """What a marker holds; empty where it is not set."""
        text = self.files.read(self.of(marker))
        return {} if text is None else json.loads(text)

    @property
    def is_open(self) -> bool:
        """Planned, and neither complete nor abandoned."""
        return self.has(MANIFEST) and not self.has(COMPLETE) and not self.has(ABANDONED)

    def staged(self, wave: int) -> str:
        """The folder of a finished wave's answers. It appears by one rename, so it is there whole or not at all."""
        return self.of("staging", f"wave={wave}")

    def staged_waves(self) -> set[int]:
        """The numbers of the finished waves."""
        names = self.files.list_names(self.of("staging"))
        return {int(name.removeprefix("wave=")) for name in names if name.startswith("wave=")}

    def discard_rows(self) -> None:
        """Delete prompts and answers; what is left are the manifest, the markers and the report."""
        self.files.delete(self.of("snapshot"))
        self.files.delete(self.of("staging"))
        self.files.delete(self.of("progress"))


def plan_folders(files: Files, work_dir: str) -> Iterator[PlanFolder]:
    """All plans under a work folder, of whatever job."""
    for name in files.list_names(work_dir):
        folder = PlanFolder(files, f"{work_dir}/{name}")
        if not name.startswith(".") and folder.has(MANIFEST):
            yield folder


def open_plan(files: Files, work_dir: str, name: str) -> tuple[PlanFolder, Plan] | None:
    """The open plan of a job. A job has at most one; after a race of two starts the older one counts."""
    found = []
    for folder in plan_folders(files, work_dir):
        if folder.is_open:
            plan = folder.plan()
            if plan is not None and plan.name == name:
                found.append((folder, plan))
    return min(found, key=lambda pair: (pair[1].created_at, pair[1].plan_id), default=None)
