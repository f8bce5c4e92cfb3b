"""What a job file says: its sections and their keys.

Every field is strict: an unknown key, a key given twice or a value of another type is refused with its path and,
for a key, the nearest valid name.
"""

import posixpath
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from dolly_batch.config.limits import LimitsConfig, TagName, TagText
from dolly_batch.config.reporting import ReportConfig
from dolly_batch.config.tables import InputConfig, OutputConfig
from dolly_batch.config.task import TaskConfig
from dolly_batch.config.yaml_file import PathText, Section, check, load_file
from dolly_batch.records import EngineName, GenerationParams
from dolly_batch.tasks import KINDS
from dolly_batch.tasks.generate import GenerateSettings


class ModelConfig(Section):
    """Which model answers. `path` is a hub id, `modelscope:ORG/NAME`, a folder, or `tiny`."""

    path: PathText
    revision: str | None = None
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """The model's identity, as `stage-model` prints it; another one is refused."""
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto"
    quantization: Literal["none", "int8", "fp8"] = "none"
    """8 bits for weights and products: int8 anywhere, fp8 on GPUs from Ada and Hopper on."""
    gpus: int = Field(default=1, ge=1, le=64)
    """GPUs that share one model, each with some of its layers; Spark gives a generating task so many."""
    max_positions: int | None = Field(default=None, ge=64)
    """Tokens that prompt and answer may have together, where the model's own window is larger than the rows need."""
    stage_dir: PathText | None = None
    """Where hub models are staged; by default `models` under `work_dir`."""


class GenerationConfig(Section):
    """How to decode; the defaults are those of Dolly's reference pipeline."""

    max_new_tokens: int = Field(default=256, ge=1)
    do_sample: bool = True
    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=0.92, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    repetition_penalty: float = Field(default=1.0, gt=0)
    """Above 1, tokens of the prompt and of the answer so far become less likely; also without sampling."""
    seed: int = Field(default=42, ge=0, lt=2**63)

    @property
    def params(self) -> GenerationParams:
        """The engine's view of it. Greedy decoding ignores the sampling settings, so they are set to their defaults."""
        if not self.do_sample:
            return GenerationParams(self.max_new_tokens, False, repetition_penalty=self.repetition_penalty)
        return GenerationParams(
            self.max_new_tokens, True, self.temperature, self.top_p, self.top_k, self.repetition_penalty
        )


class EngineConfig(Section):
    """The engine of each executor: `auto` is the fast one where it runs, else `plain`; `echo` is a dry run."""

    kind: EngineName = "auto"
    max_batch_tokens: int | None = Field(default=None, ge=1)
    """Rows x (prompt + new tokens) of what runs at once; by default by device."""
    num_threads: int | None = Field(default=None, ge=1)
    """Threads of one engine process; by default one for the fast engine, torch's own number for the plain one."""
    processes: int | None = Field(default=None, ge=1)
    """Engine processes of an executor without a GPU; by default one for each core, as far as memory goes."""
    memory_fraction: float | None = Field(default=None, gt=0, le=1)
    """Share of the memory free after loading that keys and values may take; by default half of a CPU's, and of a GPU's
    nearly all that weights and activations leave."""
    kv_bytes: int | None = Field(default=None, ge=1)
    """The same in bytes, for all processes of an executor together."""
    kv_dtype: Literal["auto", "int8", "fp8"] = "auto"
    """What the fast engine stores keys and values in on a GPU: `auto` the model's own dtype, or for more rows at once
    8 bits, int8 on any GPU, fp8 from Ada and Hopper on. That changes answers a little, and so their request keys."""
    prefix_sharing: bool = True
    """Compute what prompts have in common at their start once. Off only for measuring."""
    step_timeout_s: float = Field(default=600.0, gt=0)
    """An engine that has done no step for so long is taken for frozen, and replaced."""
    idle_timeout_s: float = Field(default=600.0, gt=0)
    """A host that nobody asks for so long ends, and gives its memory back."""
    load_timeout_s: float = Field(default=1800.0, gt=0)
    """How long tasks wait for a host to load the model."""
    local_dir: str | None = None
    """A folder on each node's own disk, which the model is copied to once a node and loaded from."""
    metrics_dir: str | None = None
    """A folder on each node's own disk for counts of its engines, in the form of Prometheus' textfile collector."""
    echo_delay_s: float = Field(default=0.0, ge=0)
    """Seconds that the echo engine takes for an answer."""


class PlanConfig(Section):
    """How the rows are laid out. A shard is one task; a wave is one Spark job: 2 x `shards_per_slot` shards or more."""

    shard_minutes: float = Field(default=3.0, gt=0)
    """What a shard ought to take, by the estimate."""
    max_shard_rows: int = Field(default=20_000, ge=1)
    """Rows of a shard at most, however short they are."""
    shards_per_slot: int = Field(default=4, ge=1)
    waves_in_flight: int = Field(default=2, ge=1, le=8)
    """Waves that run at once at least, so that no slot waits for the end of one."""
    slots: int | None = Field(default=None, ge=1)
    """Tasks that run at once, and so the size of a wave; by default what Spark reports as it runs."""
    tokens_per_s: float | None = Field(default=None, gt=0)
    """Answer tokens per second of one slot, for the estimate; by default reckoned from the model and the device."""


class SparkConfig(Section):
    """The Spark session, where this command starts one (not under spark-submit, not on Databricks)."""

    master: str | None = None
    remote: str | None = None
    conf: dict[str, str] = Field(default={})

    @model_validator(mode="after")
    def _names_one_place(self) -> "SparkConfig":
        if self.master is not None and self.remote is not None:
            raise ValueError("give `master` or `remote`, not both")
        return self


class WorkConfig(Section):
    """What stays under `work_dir` after a run."""

    keep_days: float = Field(default=0.0, ge=0, le=100_000)
    """Days to keep a finished plan's snapshot and staged answers; 0 deletes them as soon as the audit has passed."""


class JobConfig(Section):
    """One job: a table in, a table out."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    model: ModelConfig
    task: TaskConfig = GenerateSettings()
    input: InputConfig
    output: OutputConfig
    generation: GenerationConfig = GenerationConfig()
    limits: LimitsConfig = LimitsConfig()
    engine: EngineConfig = EngineConfig()
    plan: PlanConfig = PlanConfig()
    spark: SparkConfig = SparkConfig()
    work: WorkConfig = WorkConfig()
    checks: dict[TagName, Annotated[str, StringConstraints(min_length=1)]] = Field(default={}, max_length=100)
    """SQL predicates over the output's columns that answers should meet; those that do not are counted."""
    report: ReportConfig = ReportConfig()
    tags: dict[TagName, TagText] = Field(default={})
    """Whose a run is: in the report, in the job groups of Spark's UI, and in the properties of a Delta table."""
    work_dir: PathText

    @model_validator(mode="before")
    @classmethod
    def _generates_unless_told(cls, document: Any) -> Any:
        task = document.get("task") if isinstance(document, dict) else None
        if isinstance(task, dict) and "kind" not in task:
            return {**document, "task": {"kind": "generate", **task}}
        return document

    @model_validator(mode="after")
    def _reads_what_it_names(self) -> "JobConfig":
        named, kind = self.input.model_fields_set, KINDS[self.task.kind]
        if kind.reads_text:
            unread, read = {"instruction", "context"} & named, "input.text"
        elif kind.template_columns(self.task) is not None:
            unread, read = {"instruction", "text"} & named, "the columns of task.template"
        else:
            unread, read = {"text"} & named, "input.instruction and input.context"
        if unread:
            raise ValueError(f"input.{min(unread)} is not read: this task ({self.task.kind}) reads {read}")
        return self

    @field_validator("work_dir")
    @classmethod
    def _not_the_root(cls, value: str) -> str:
        if posixpath.normpath(value.removeprefix("file:")).strip("/") == "":
            raise ValueError("must be a folder of its own")
        return value


def load_job(path: str | Path, overrides: list[str] | None = None) -> JobConfig:
    """Read a job file, with `a.b=value` overrides put over it.

    Raises ConfigError, with every fault found and the path of its key, when the file cannot be read as a job.
    """
    return load_file(JobConfig, "job", path, overrides)


def check_job(document: dict[str, Any], where: str) -> JobConfig:
    """Return a document as a job. Raises ConfigError, with every fault found; `where` names the document in it."""
    return check(JobConfig, "job", document, where)
