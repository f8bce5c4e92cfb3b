"""What only the page of a run shows: lengths, labels, rows that need a look, settings. Nothing of a row but its id.

It is counted while the staged answers are still there, and kept as details.json in the plan's folder.
"""

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

import dolly_batch
from dolly_batch.config.job import JobConfig
from dolly_batch.report import WHAT_TO_DO
from dolly_batch.spark.decisions import SKIPPED
from dolly_batch.spark.model import ModelFacts
from dolly_batch.spark.plan.keys import shown_id
from dolly_batch.spark.plan.manifest import DETAILS, Plan, PlanFolder
from dolly_batch.spark.publish import snapshot, staged_answers
from dolly_batch.spark.tables.output import OutputTable

ANSWER_BOUNDS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048)
NUM_SHOWN = 10
Look = dict[str, list[str | None]]
UNSURE = "least confident"
# Of a task's settings, those whose values say something and are no text of somebody's.
_SETTINGS = ("with_end", "normalization", "none_below", "max_words", "style", "max_chars", "max_items")


def keep_details(target: OutputTable, folder: PlanFolder, plan: Plan, model: ModelFacts) -> None:
    """Count what the page shows, and keep it."""
    job, answers = target.job, staged_answers(target, folder, plan)
    details: dict[str, Any] = {"ran": _ran(job, model, target), "tags": job.tags}
    if plan.waves:
        details |= _lengths(answers)
        details["look"] = _rows_to_look_at(target, folder, plan, answers)
        if job.task.kind == "classify":
            details["labels"] = _labels(answers)
            details["look"][UNSURE] = _unsure(answers, plan.num_ids)
    folder.files.write(folder.of(DETAILS), json.dumps(details))


def _ran(job: JobConfig, model: ModelFacts, target: OutputTable) -> dict[str, dict[str, Any]]:
    """What ran, by sections. Texts of the task (instructions, examples) are left out: they may quote rows."""
    task = {name: value for name, value in asdict(job.task).items() if name in _SETTINGS}
    engine = job.engine.model_dump(exclude_defaults=True)
    return {
        "model": {
            **{"path": job.model.path, "revision": model.revision, "identity": model.identity},
            **{"dtype": job.model.dtype, "quantization": job.model.quantization, "gpus": job.model.gpus},
        },
        "task": {"kind": job.task.kind, **task},
        "generation": asdict(job.generation.params) | {"seed": job.generation.seed},
        "engine": {"kind": job.engine.kind, "device": model.device(job), **engine, "GPUs": ", ".join(model.gpu_names)},
        "tables": {"input": job.input.name, "output": job.output.name, "mode": job.output.mode},
        "versions": {
            **{
                "dolly_batch": dolly_batch.__version__,
                "spark": target.spark.version,
                "python": platform.python_version(),
            },
        },
    }


def _lengths(answers: DataFrame) -> dict[str, Any]:
    """Answers by their length in tokens, and classified rows by their confidence."""
    tokens = F.col("num_completion_tokens")
    columns = {f"answer_lengths:{name}": inside for name, inside in _bins(tokens, ANSWER_BOUNDS).items()}
    if "confidence" in answers.columns:
        tenth = F.least(F.floor(F.col("confidence") * 10), F.lit(9))
        columns |= {f"confidences:{n / 10:.1f}": tenth == n for n in range(10)}
    counts = answers.agg(*(F.count(F.when(inside, True)).alias(name) for name, inside in columns.items())).collect()[0]
    found: dict[str, dict[str, int]] = {}
    for name in columns:
        kind, _, bin = name.partition(":")
        found.setdefault(kind, {})[bin] = counts[name]
    return {kind: bins for kind, bins in found.items() if any(bins.values())}


def _bins(value: Column, bounds: tuple[int, ...]) -> Mapping[str, Column]:
    lower = (0, *bounds)
    bins = {f"<= {bound}": (value > low) & (value <= bound) for low, bound in zip(lower, bounds, strict=False)}
    return {**bins, f"> {bounds[-1]}": value > bounds[-1]}


def _labels(answers: DataFrame) -> list[tuple[str | None, int, float | None]]:
    """Labels, the commonest first, with their answered questions and their mean confidence."""
    counted = answers.groupBy("response").agg(F.count("*"), F.avg("confidence")).collect()
    rows = ((label, count, None if mean is None else round(mean, 4)) for label, count, mean in counted)
    return sorted(rows, key=lambda row: (-row[1], row[0] or ""))


def _rows_to_look_at(target: OutputTable, folder: PlanFolder, plan: Plan, answers: DataFrame) -> Look:
    """For each status that asks for something, the ids of some rows; None for one that may name a person."""
    parts = [answers.select("status", "row_key")]
    if plan.num_skipped:
        parts.append(snapshot(target, folder, SKIPPED).select("status", "row_key"))
    found: Look = {}
    by_key = Window.partitionBy("status").orderBy("row_key")
    for rows in parts:
        bad = rows.filter(F.col("status").isin(*WHAT_TO_DO)).withColumn("n", F.row_number().over(by_key))
        for status, key, _ in bad.filter(F.col("n") <= NUM_SHOWN).collect():
            found.setdefault(status, []).append(shown_id(key, plan.num_ids))
    return {status: ids[:NUM_SHOWN] for status, ids in sorted(found.items())}


def _unsure(answers: DataFrame, num_ids: int) -> list[str | None]:
    sure = answers.filter(F.col("confidence").isNotNull()).orderBy("confidence", "row_key")
    return [shown_id(row[0], num_ids) for row in sure.select("row_key").limit(NUM_SHOWN).collect()]


def read_details(folder: PlanFolder) -> dict[str, Any]:
    """The content of details.json; empty where there is none, or it cannot be read."""
    try:
        details = json.loads(folder.files.read(folder.of(DETAILS)) or "{}")
    except ValueError:
        return {}
    return details if isinstance(details, dict) else {}
