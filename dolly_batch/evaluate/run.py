"""One evaluation: refuse, score the benchmarks, measure finished tables, write the results."""

from collections.abc import Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args, get_type_hints

from pyspark.sql import SparkSession
from pyspark.sql import types as T

from dolly_batch.config.evaluation import EvaluateConfig, load_evaluation
from dolly_batch.console import say
from dolly_batch.errors import ConfigError, OutputError
from dolly_batch.evaluate.accuracy import score_benchmark
from dolly_batch.evaluate.benchmark_files import read_questions
from dolly_batch.evaluate.benchmarks import BENCHMARKS
from dolly_batch.evaluate.card import CARD, card_row
from dolly_batch.evaluate.quality import QualityRow, measure, open_quality, quality_tables
from dolly_batch.evaluate.question import Question
from dolly_batch.evaluate.report import EvaluateReport
from dolly_batch.evaluate.scoring import Scoring
from dolly_batch.evaluate.table import (
    BenchmarkRow,
    ScoredModel,
    benchmark_rows,
    benchmark_tables,
    to_markdown,
)
from dolly_batch.models.folder import inspect_folder
from dolly_batch.spark.files import Files, files_for
from dolly_batch.spark.lock import JobLock
from dolly_batch.spark.model import ModelFacts, resolve_model
from dolly_batch.spark.preflight.executors import check_folders, check_gpus
from dolly_batch.spark.session.session import start_session
from dolly_batch.spark.signals import stopping_on_signals
from dolly_batch.spark.work_dir import prepare_work_dir

MARKDOWN = "results.md"
_RUN_FIELDS = (T.StructField("evaluation", T.StringType()), T.StructField("created_at", T.TimestampType()))
_TYPES: dict[type, T.DataType] = {str: T.StringType(), int: T.IntegerType(), float: T.DoubleType()}

NOTES = (
    "Accuracies are shares, with their standard errors. Benchmarks are zero-shot and without the Dolly template, "
    "formed and scored as lm-evaluation-harness does. The card names no metric; acc_norm (log-likelihood divided by "
    "the characters of the choice), or acc for winogrande and boolq, is inferred. gmean is the geometric mean of the "
    "benchmarks above it, the card's over the same ones."
)


def run_evaluation(config: EvaluateConfig | str | Path, *, report: EvaluateReport | None = None) -> EvaluateReport:
    """Run an evaluation, given as such or as the path of its file, to its end, and return its numbers.

    A `report` that is given is filled as it proceeds. Raises the exceptions of errors.py. After a crash the same call
    resumes: benchmarks that were scored are not scored again.
    """
    config = config if isinstance(config, EvaluateConfig) else load_evaluation(config)
    report = report or EvaluateReport(config.name)
    with report.timed("session"):
        spark = start_session(config.name, config.spark, [entry.format for entry in config.quality])
    files, work = files_for(spark, config.work_dir)
    prepare_work_dir(spark, files, work)
    out_files, out = files_for(spark, config.output.path)
    _check_output(out_files, out)
    questions = read_questions(spark, config)
    finished = open_quality(spark, config.quality)
    with stopping_on_signals(), JobLock(files, f"{work}/.evaluate-{config.name}.lock") as lock:
        model = resolve_model(spark, config, work, say) if questions else None
        _check_executors(
            spark,
            files.plain(work),
            out_files.plain(out),
            model,
        )
        rows: list[BenchmarkRow] = []
        if model is not None:
            for quantization in config.quantizations:  # one may fit the GPU where another does not
                scored_as = config.model_copy(update={"model": config.quantized(quantization)})
                check_gpus(spark, scored_as, model.folder)
            scoring = Scoring(spark, files, _scores_folder(work, config), model.max_positions, lock.check)
            with report.timed("score"):
                rows = _score(config, model, scoring, questions, report)
        with report.timed("quality"):
            measured = [row for entry in finished for row in measure(entry)]
        lock.check()
        _fill(config, report, rows, measured, out)
        _write(spark, config, report, out_files, rows, measured)
        files.delete(_scores_folder(work, config))
    return report


def _scores_folder(work: str, config: EvaluateConfig) -> str:
    """Where the scores of benchmarks are kept until the results are written."""
    return f"{work}/evaluate-{config.name}"


def _check_output(files: Files, out: str) -> None:
    """Raise OutputError for a folder with tables that no evaluation wrote: they would be replaced."""
    names = set(files.list_names(out))
    if {"benchmarks", "quality"} & names and MARKDOWN not in names:
        raise OutputError(
            f"output.path: {out} holds a folder `benchmarks` or `quality` that no evaluation wrote; name another one"
        )


def _check_executors(spark: SparkSession, work: str | None, out: str | None, model: ModelFacts | None) -> None:
    """Check that executors have the packages they need, and see the model and these plain folders."""
    shared = {} if work is None else {"work_dir": work}
    if out is not None:
        shared["output.path"] = str(Path(out).parent)
    check_folders(spark, shared, None if model is None else model.folder, with_model=model is not None)


def _score(
    config: EvaluateConfig,
    model: ModelFacts,
    scoring: Scoring,
    questions: dict[str, list[Question]],
    report: EvaluateReport,
) -> list[BenchmarkRow]:
    """Score every benchmark in every quantization."""
    card = _card_model(config, model)
    report.model, report.model_revision, report.card_model = config.model.path, model.revision, card
    rows: list[BenchmarkRow] = []
    for quantization in config.quantizations:
        spec = model.scoring_spec(config, quantization)
        scores = []
        for name, of_benchmark in questions.items():
            say(f"{name}: scoring {len(of_benchmark):,} questions with {config.model.path} ({quantization})")
            scores.append(score_benchmark(BENCHMARKS[name], of_benchmark, scoring.score(spec, name, of_benchmark)))
        scored = ScoredModel(config.model.path, model.revision, quantization, config.model.dtype, card)
        rows += benchmark_rows(scored, scores)
    report.model_loads = sum(scoring.loads.values())
    return rows


def _card_model(config: EvaluateConfig, model: ModelFacts) -> str | None:
    """The card's model to compare with: the configured one, else the one that is scored, by its name or its source."""
    if config.card is not None:
        row = card_row(config.card)
        if row is None:
            raise ConfigError(f"card: the model card has no {config.card!r}; it has {', '.join(CARD)}")
        return row[0]
    source = inspect_folder(Path(model.folder)).source or ""
    row = card_row(config.model.path) or card_row(source)
    return None if row is None else row[0]


def _fill(
    config: EvaluateConfig,
    report: EvaluateReport,
    rows: Sequence[BenchmarkRow],
    measured: Sequence[QualityRow],
    out: str,
) -> None:
    report.outcome, report.exit_code, report.output = "complete", 0, out
    report.benchmarks = [asdict(row) for row in rows]
    report.quality = [asdict(row) for row in measured]
    report.tables = [*(benchmark_tables(rows) if rows else []), *quality_tables(measured)]
    num_benchmarks, num_tables = len(config.tasks.paths), len(config.quality)
    report.message = f"{config.name}: {num_benchmarks} benchmark(s) scored, {num_tables} finished table(s) measured"


def _write(
    spark: SparkSession,
    config: EvaluateConfig,
    report: EvaluateReport,
    files: Files,
    rows: Sequence[BenchmarkRow],
    measured: Sequence[QualityRow],
) -> None:
    """Write the Parquet tables, and last the page that marks the folder as an evaluation's."""
    now, out = datetime.now(UTC), str(report.output)
    if not files.exists(f"{out}/{MARKDOWN}"):
        files.write(f"{out}/{MARKDOWN}", f"# {config.name}\n\nbeing written\n")
    for name, kind, records in (("benchmarks", BenchmarkRow, rows), ("quality", QualityRow, measured)):
        if records:
            values = [(config.name, now, *asdict(record).values()) for record in records]
            table = spark.createDataFrame(values, _schema(kind)).coalesce(1)
            table.write.mode(config.output.mode).parquet(f"{out}/{name}")
        elif config.output.mode == "overwrite":
            files.delete(f"{out}/{name}")
    facts = {"evaluated": f"{now:%Y-%m-%d %H:%M} UTC"}
    if rows:
        facts |= {"model": config.model.path, "revision": report.model_revision or "", "dtype": config.model.dtype}
    notes = NOTES if rows else ""
    files.write(f"{out}/{MARKDOWN}", to_markdown(config.name, facts, report.tables, [notes]))


def _schema(kind: type[BenchmarkRow] | type[QualityRow]) -> T.StructType:
    """A dataclass of plain fields as a schema, after the columns of the evaluation."""
    types = get_type_hints(kind)
    columns = [
        T.StructField(one.name, _TYPES[(get_args(types[one.name]) or (types[one.name],))[0]]) for one in fields(kind)
    ]
    return T.StructType([*_RUN_FIELDS, *columns])
