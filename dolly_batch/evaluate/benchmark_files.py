"""The benchmarks' files, read through Spark so that any path it knows will do, and checked row by row on the driver."""

import json
from collections.abc import Iterator

from pyspark.errors import PySparkException
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from dolly_batch.config.evaluation import EvaluateConfig
from dolly_batch.errors import InputError
from dolly_batch.evaluate.benchmarks import BENCHMARKS, Benchmark, read_row
from dolly_batch.evaluate.question import Question, RowFault
from dolly_batch.spark.causes import reason
from dolly_batch.spark.files import Files, files_for


def read_questions(spark: SparkSession, config: EvaluateConfig) -> dict[str, list[Question]]:
    """Read every benchmark's questions, in the order of their files, at most `limit` of each.

    The largest, HellaSwag, has ten thousand; they are kept on the driver, which knows the right choices. Raises
    InputError naming file, line and what is wrong, before any model is loaded.
    """
    return {
        name: _read(spark, BENCHMARKS[name], f"tasks.{name}", path, config.limit)
        for name, path in config.tasks.paths.items()
    }


def _read(spark: SparkSession, benchmark: Benchmark, key: str, path: str, limit: int | None) -> list[Question]:
    files, absolute = files_for(spark, path)
    if not files.exists(absolute):
        raise InputError(f"{key}: there is no file {absolute}")
    questions: list[Question] = []
    try:
        for where, text in _rows(spark, files, absolute):
            if len(questions) == limit:
                break
            questions.append(_question(benchmark, f"{key}: {absolute}, {where}", text))
    except (PySparkException, UnicodeDecodeError) as error:
        why = reason(error) if isinstance(error, PySparkException) else "it is not UTF-8"
        raise InputError(f"{key}: {absolute} cannot be read: {why}") from error
    if not questions:
        raise InputError(f"{key}: {absolute} holds no rows")
    return questions


def _question(benchmark: Benchmark, where: str, text: str) -> Question:
    try:
        return read_row(benchmark, json.loads(text))
    except RowFault as error:
        raise InputError(f"{where}: {error}") from error
    except (ValueError, RecursionError) as error:  # of json.loads, whose message would quote the row
        raise InputError(f"{where}: not a JSON object; a file of JSON lines or Parquet is expected") from error


def _rows(spark: SparkSession, files: Files, path: str) -> Iterator[tuple[str, str]]:
    """Yield (where it is, JSON) of each row in order."""
    if path.endswith(".parquet") or any(name.endswith(".parquet") for name in _names(files, path)):
        table = spark.read.parquet(path)
        row = F.to_json(F.struct(*(F.col(f"`{name}`") for name in table.columns)), {"ignoreNullFields": "false"})
        rows = table.select(row.alias("row"), "_metadata.file_path", "_metadata.row_index")
        for number, (text,) in enumerate(rows.orderBy("file_path", "row_index").select("row").collect()):
            yield f"row {number + 1}", text
        return
    texts = spark.read.text(path, wholetext=True).select("value", "_metadata.file_path").orderBy("file_path")
    for text, _ in texts.collect():
        for number, line in enumerate(text.split("\n")):
            if line.strip():
                yield f"line {number + 1}", line


def _names(files: Files, path: str) -> list[str]:
    try:
        return files.list_names(path)
    except NotADirectoryError:
        return []
