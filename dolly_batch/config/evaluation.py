"""What an evaluation says: which model, which benchmarks, which finished tables. Read as a job file is (config.py)."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from dolly_batch.config.job import EngineConfig, ModelConfig, SparkConfig
from dolly_batch.config.tables import ReadableTable
from dolly_batch.config.yaml_file import PathText, Section, load_file


class BenchmarkFiles(Section):
    """The local file of each benchmark: JSON lines (also .gz) or Parquet, in the harness' own format or as requests."""

    openbookqa: PathText | None = None
    arc_easy: PathText | None = None
    winogrande: PathText | None = None
    hellaswag: PathText | None = None
    arc_challenge: PathText | None = None
    piqa: PathText | None = None
    boolq: PathText | None = None

    @property
    def paths(self) -> dict[str, str]:
        """The files that are given, by benchmark."""
        return {name: path for name, path in self if path is not None}


class QualityConfig(ReadableTable):
    """A finished table with a gold column: how good are its answers?

    `classify` compares labels, `summarize` texts (ROUGE), `extract` structs or JSON objects, field by field.
    """

    title: str | None = None
    """What the result is called; by default the table's path or name."""
    kind: Literal["classify", "summarize", "extract"]
    prediction: str = "response"
    gold: str


class ResultConfig(Section):
    """The folder of results: `benchmarks` and `quality` as Parquet, `results.md` for people.

    `overwrite` replaces what an evaluation wrote there before; `append` adds to the Parquet tables, so that models can
    be compared in one.
    """

    path: PathText
    mode: Literal["overwrite", "append"] = "overwrite"


class EvaluateConfig(Section):
    """One evaluation: a model on benchmarks, finished tables against their gold columns, or both."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    model: ModelConfig = ModelConfig(path="tiny")
    """Needed for benchmarks."""
    quantizations: tuple[Literal["none", "int8", "fp8"], ...] = Field(default=("none",), strict=False)
    """The model is scored in each of these in turn."""
    tasks: BenchmarkFiles = BenchmarkFiles()
    limit: int | None = Field(default=None, ge=1)
    """Only the first questions of each benchmark."""
    card: str | None = None
    """The model of the model card to compare with; by default the one that `model.path` names, if it is there."""
    quality: tuple[QualityConfig, ...] = Field(default=(), strict=False)
    output: ResultConfig
    engine: EngineConfig = EngineConfig()
    spark: SparkConfig = SparkConfig()
    work_dir: PathText

    @model_validator(mode="after")
    def _can_be_done(self) -> "EvaluateConfig":
        if not self.tasks.paths and not self.quality:
            raise ValueError("nothing to evaluate: give the files of `tasks`, or tables under `quality`")
        if self.tasks.paths and "model" not in self.model_fields_set:
            raise ValueError("`tasks` are scored by a model: `model.path` is missing")
        if self.tasks.paths and self.engine.kind == "echo":
            raise ValueError("`engine.kind: echo` has no model that could score `tasks`")
        if self.engine.kv_dtype != "auto":
            raise ValueError("`engine.kv_dtype`: an evaluation scores, and stores no keys and values")
        if not self.quantizations or len(set(self.quantizations)) != len(self.quantizations):
            raise ValueError("`quantizations` must name one or more different ones")
        if self.model.quantization != "none":
            raise ValueError("`model.quantization`: an evaluation takes a list, `quantizations: [none, int8]`")
        titles = [entry.title or entry.name for entry in self.quality]
        twice = sorted({title for title in titles if titles.count(title) > 1})
        if twice:
            raise ValueError(f"two entries of `quality` are called {twice[0]!r}: give each its `title`")
        return self

    def quantized(self, quantization: str) -> ModelConfig:
        """The model in one of the quantizations."""
        return self.model.model_copy(update={"quantization": quantization})


def load_evaluation(path: str | Path, overrides: list[str] | None = None) -> EvaluateConfig:
    """Read an evaluation's file, with `a.b=value` overrides put over it. Raises ConfigError as `load_job` does."""
    return load_file(EvaluateConfig, "evaluation", path, overrides)
