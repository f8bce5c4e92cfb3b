"""Scoring questions on executors: a table of prompts and choices in, a table of log-likelihoods out.

A benchmark is one Spark job that ends in a folder of scores, which stays until the evaluation is written: a crashed
evaluation resumes with the next benchmark. The folder is named by a hash of the model, its engine and the questions.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial

import pandas as pd
from pyspark.sql import SparkSession
from pyspark.sql import types as T

import dolly_batch
from dolly_batch.console import ProgressLine
from dolly_batch.errors import EngineError
from dolly_batch.evaluate.question import Question
from dolly_batch.host.address import HostAddress
from dolly_batch.host.client import EngineClient
from dolly_batch.records import EngineSpec, ScoreRow
from dolly_batch.spark.files import Files, literal
from dolly_batch.spark.generate.device import task_device
from dolly_batch.spark.generate.jobs import Job, run_watched, whole_folder
from dolly_batch.spark.generate.progress import TaskProgress, WaveProgress, rows_and_tokens
from dolly_batch.spark.generate.shard import ROWS_PER_BATCH
from dolly_batch.spark.preflight.gpus import generation_slots, gpu_profile

SHARDS_PER_SLOT = 4
MIN_SHARD_ROWS = 64

PROMPT_SCHEMA = T.StructType(
    [
        T.StructField("question", T.IntegerType()),
        T.StructField("choices", T.ArrayType(T.IntegerType())),
        T.StructField("context", T.StringType()),
        T.StructField("continuations", T.ArrayType(T.StringType())),
    ]
)
SCORED_SCHEMA = T.StructType(
    [
        T.StructField("question", T.IntegerType()),
        T.StructField("choices", T.ArrayType(T.IntegerType())),
        T.StructField("log_likelihoods", T.ArrayType(T.DoubleType())),
        T.StructField("failure", T.StringType()),
        T.StructField("engine_id", T.StringType()),
        T.StructField("engine_load", T.IntegerType()),
    ]
)


Prompted = tuple[int, list[int], str, list[str]]
"""A row of PROMPT_SCHEMA."""


@dataclass(frozen=True)
class ScoreTask:
    """What crosses to the executors: which engine, and where to report progress."""

    spec: EngineSpec
    progress: str | None


def score_shard(task: ScoreTask, batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    """Score the prompts of one shard, in any order. Raises the engine host's errors, so that Spark tries again."""
    prompts = [row for batch in batches for row in batch.itertuples(index=False, name=None)]
    if not prompts:  # Spark calls for empty partitions too; they need no model
        return
    with EngineClient.connect(task.spec, HostAddress.of_this_executor(task_device(task.spec.gpus))) as client:
        rows = (
            ScoreRow(str(index), context, None, tuple(continuations), with_end=False, format="plain")
            for index, (_, _, context, continuations) in enumerate(prompts)
        )
        progress, scored = TaskProgress(WaveProgress(folder=task.progress)), []
        for scores in client.score(rows):
            question, choices, _, _ = prompts[int(scores.key)]
            failure = None if scores.failure is None else f"{scores.failure.status}: {scores.failure.message}"
            scored.append((question, choices, scores.log_probs, failure, client.engine_id, client.incarnation))
            progress.add(scores.num_prompt_tokens)
            if len(scored) >= ROWS_PER_BATCH:
                yield pd.DataFrame(scored, columns=SCORED_SCHEMA.names)
                scored = []
        yield pd.DataFrame(scored, columns=SCORED_SCHEMA.names)
        progress.write()


@dataclass
class Scoring:
    """The scoring of a model's benchmarks, under a folder of the work folder."""

    spark: SparkSession
    files: Files
    folder: str
    max_positions: int
    check: Callable[[], None]
    """Raises when this start must stop because another one has taken over."""
    loads: dict[str, int] = field(default_factory=dict)
    """By engine, how many models it has loaded."""

    def score(self, spec: EngineSpec, name: str, questions: Sequence[Question]) -> list[list[float]]:
        """Return the log-likelihood of each question's choices, by the engine of `spec`.

        Raises EngineError when one could not be scored: an accuracy over fewer questions would be another number.
        """
        prompts = list(self._prompts(questions))
        scored = f"{self.folder}/{name}-{_key(spec, prompts)}"
        if not self.files.exists(scored):
            self._run(spec, name, prompts, scored)
        result = [[float("nan")] * len(question.requests) for question in questions]
        failures = []
        for row in self.spark.read.schema(SCORED_SCHEMA).parquet(literal(scored)).collect():
            self.loads[row.engine_id] = max(self.loads.get(row.engine_id, 0), row.engine_load)
            if row.failure is not None:
                failures.append(f"question {row.question + 1}: {row.failure}")
                continue
            for choice, value in zip(row.choices, row.log_likelihoods, strict=True):
                result[row.question][choice] = value
        if failures or any(value != value for values in result for value in values):
            self.files.delete(scored)  # the next start asks them again
            first = min(failures, default="a row of scores is missing")
            raise EngineError(f"{name}: {len(failures)} of {len(prompts)} prompts could not be scored; {first}")
        return result

    def _prompts(self, questions: Sequence[Question]) -> Iterator[Prompted]:
        """Rows of PROMPT_SCHEMA. A context that may have to be cut is cut for each choice alone, as the harness does.

        A byte is at most one token, so shorter ones surely fit.
        """
        for number, question in enumerate(questions):
            for prompt in question.prompts():
                longest = max(len(text.encode()) for text in prompt.continuations)
                pairs = zip(prompt.choices, prompt.continuations, strict=True)
                if len(prompt.context.encode()) + longest <= self.max_positions:
                    yield number, list(prompt.choices), prompt.context, list(prompt.continuations)
                else:
                    yield from ((number, [choice], prompt.context, [text]) for choice, text in pairs)

    def _run(self, spec: EngineSpec, name: str, prompts: list[Prompted], scored: str) -> None:
        num_shards = generation_slots(self.spark, spec.gpus) * SHARDS_PER_SLOT
        num_shards = max(1, min(num_shards, -(-len(prompts) // MIN_SHARD_ROWS)))
        with whole_folder(self.files, scored) as draft, ProgressLine(len(prompts), f"scoring {name}") as line:
            progress = self.files.plain(f"{draft}.progress")

            def work() -> None:
                table = self.spark.createDataFrame(prompts, PROMPT_SCHEMA).repartition(num_shards)
                task, profile = ScoreTask(spec, progress), gpu_profile(self.spark, spec.gpus)
                answered = table.mapInPandas(partial(score_shard, task), SCORED_SCHEMA, profile=profile)
                answered.write.parquet(draft)

            try:
                run_watched(self.spark, [Job(work)], lambda: line.update(*rows_and_tokens(progress)))
            finally:
                if progress is not None:
                    self.files.delete(progress)
            self.check()


def _key(spec: EngineSpec, prompts: Sequence[Prompted]) -> str:
    """What the scores depend on: not the path of the model, and no timeouts."""
    settings = asdict(spec)
    identity = [settings[name] for name in ("kind", "model_sha256", "dtype", "quantization", "prompt_format")]
    text = json.dumps([dolly_batch.__version__, identity, prompts], ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
