"""The tasks as SQL functions: `dolly_generate`, `dolly_classify`, `dolly_summarize`, `dolly_extract`, each with `try_`.

    functions = dolly_batch.functions.register(spark, model="/Volumes/main/models/dolly-v2-3b")
    spark.sql("SELECT id, dolly_classify(text, array('billing', 'delivery', 'other')) AS topic FROM tickets")
    df.select("id", functions.extract("text", "name STRING, age INT").alias("person"))

They ask the engine host of each executor the same questions as a job, and so get the same answers. They are for
looking around and for small tables: Spark may plan a query so that a function runs twice, a failed query starts from
nothing, and nothing tells what was paid for already. Large tables belong to the job.
"""

import getpass
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from pyspark.sql import Column, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.functions import pandas_udf

from dolly_batch.config.job import check_job
from dolly_batch.config.task import KINDS, ExtractTask
from dolly_batch.config.yaml_file import check
from dolly_batch.errors import ConfigError
from dolly_batch.models.folder import MANIFEST
from dolly_batch.report import say
from dolly_batch.spark.files import files_for
from dolly_batch.spark.generate import calls
from dolly_batch.spark.model import resolve_model
from dolly_batch.spark.preflight.package import ship_package
from dolly_batch.spark.session.session import is_connect
from dolly_batch.spark.tables.struct import struct_type
from dolly_batch.tasks.generate import examples_text

_RESULT = "response STRING, error STRING"
_CLASSIFY_RESULT = f"{_RESULT}, confidence DOUBLE"
_ASKED: dict[str, Callable[..., calls.Question]] = {
    "dolly_generate": calls.ask_generate,
    "dolly_classify": calls.ask_classify,
    "dolly_summarize": calls.ask_summarize,
    "dolly_extract": calls.ask_extract,
}


@dataclass(frozen=True)
class Functions:
    """The registered functions for Python: each takes a column, or its name, and gives a column.

    `try_` gives a struct of `response` and `error` (classify: and `confidence`), with one of them null.
    """

    udfs: Mapping[str, Any]

    def generate(self, instruction: Column | str, context: Column | str | None = None, *, try_: bool = False) -> Column:
        """The model's answer, as text."""
        columns = [instruction] if context is None else [instruction, context]
        return self._call("dolly_generate", try_, *columns)

    def classify(self, text: Column | str, labels: Sequence[str], *, try_: bool = False) -> Column:
        """The likeliest label."""
        return self._call("dolly_classify", try_, text, F.array(*(F.lit(label) for label in labels)))

    def summarize(self, text: Column | str, max_words: int | None = None, *, try_: bool = False) -> Column:
        """A summary of a text of any length."""
        columns = [text] if max_words is None else [text, F.lit(max_words)]
        return self._call("dolly_summarize", try_, *columns)

    def extract(self, text: Column | str, schema: str | dict[str, Any], *, try_: bool = False) -> Column:
        """The fields of `schema` (Spark DDL, or a JSON Schema) as a struct. Raises ConfigError for a bad schema."""
        kind = struct_type(ExtractTask.model_validate({"kind": "extract", "schema": schema}))
        written = schema if isinstance(schema, str) else json.dumps(schema)
        found = self._call("dolly_extract", try_, text, F.lit(written))
        if not try_:
            return F.from_json(found, kind)
        return F.struct(F.from_json(found["response"], kind).alias("response"), found["error"].alias("error"))

    def _call(self, name: str, try_: bool, *columns: Column | str) -> Column:
        column: Column = self.udfs[f"try_{name}" if try_ else name](*columns)
        return column


def register(
    spark: SparkSession,
    model: str,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    tasks: Mapping[str, Mapping[str, Any]] | None = None,
    generation: Mapping[str, Any] | None = None,
    engine: Mapping[str, Any] | None = None,
    long_prompt: Literal["error", "truncate_left", "truncate_right", "truncate_middle"] = "error",
    stage_dir: str | None = None,
) -> Functions:
    """Register the functions in a session, for SQL and for Python.

    `tasks` holds, by kind, the keys of a job file's section `task` that are not arguments of a call:
    `{"classify": {"instruction": "What is it about?", "none_below": 0.5}, "summarize": {"style": "bullets"}}`.
    `generation` and `engine` hold the keys of those sections; decoding is greedy unless `generation` says
    otherwise, and then a row's seed is made from its text. A model that is not a staged folder is staged in
    `stage_dir`, which the driver and all executors must see (`tiny` by default in the machine's folder for temporary
    files, which does for one machine). Raises ConfigError and ModelError as a job does.
    """
    if stage_dir is None and model != "tiny" and not Path(model, MANIFEST).is_file():
        raise ConfigError(
            f"model {model!r} is not a staged folder: give `stage_dir`, a folder that driver and executors share"
        )
    document: dict[str, Any] = {
        "name": "functions",
        "model": {"path": model, "revision": revision, "dtype": dtype},
        "generation": {"do_sample": False, **(generation or {})},
        "engine": dict(engine or {}),
        "limits": {"long_prompt": long_prompt},
        # A function has neither; a job must have both.
        "input": {"table": "none"},
        "output": {"table": "none"},
        # Unused by a staged folder; `tiny` is copied out of the package, which may be a zip.
        "work_dir": stage_dir or str(Path(tempfile.gettempdir(), f"dolly-batch-{getpass.getuser()}")),
    }
    job = check_job(document, "dolly_batch.functions.register")
    found = resolve_model(spark, job, files_for(spark, job.work_dir)[1], say)
    if not is_connect(spark):
        ship_package(spark)
    caller = calls.Caller(
        spec=found.engine_spec(job),
        params=job.generation.params,
        max_positions=found.max_positions,
        seed=job.generation.seed,
        long_prompt=long_prompt,
        ways=ways(tasks or {}),
    )
    udfs = {}
    for name, ask in _ASKED.items():
        for prefix in ("", "try_"):
            made = _udf(caller, name, ask, bool(prefix))
            spark.udf.register(prefix + name, made)
            udfs[prefix + name] = made
    return Functions(udfs)


# What a call's own arguments say, in values that a task's section can be checked with.
_BY_CALL: dict[str, dict[str, Any]] = {
    "generate": {"template": None},
    "classify": {"labels": ["a", "b"]},
    "summarize": {},
    "extract": {"schema": "a INT"},
}


def ways(tasks: Mapping[str, Mapping[str, Any]]) -> calls.Ways:
    """How the tasks are done. Raises ConfigError for a kind or a key that a job does not have, or that a call gives."""
    sections: dict[str, Any] = {}
    for kind in KINDS:
        given = dict(tasks.get(kind, {}))
        if taken := sorted(_BY_CALL[kind].keys() & given.keys()):
            raise ConfigError(f"tasks.{kind}.{taken[0]}: is an argument of dolly_{kind}, not of register")
        document = {"kind": kind, **_BY_CALL[kind], **given}
        sections[kind] = check(KINDS[kind], "task", document, f"dolly_batch.functions.register, tasks.{kind}")
    if unknown := sorted(set(tasks) - set(KINDS)):
        raise ConfigError(f"tasks.{unknown[0]}: unknown; the kinds are {', '.join(KINDS)}")
    generate, classify, summarize, extract = (sections[kind] for kind in KINDS)
    return calls.Ways(
        examples=examples_text([(e.instruction, e.context, e.response) for e in generate.examples]),
        label_instruction=classify.instruction,
        none_below=classify.none_below,
        normalization=classify.normalization,
        calibrated=classify.calibration == "contextual",
        with_end=classify.with_end,
        summary_instruction=summarize.instruction,
        summary_style=summarize.style,
        max_words=summarize.max_words,
        field_instruction=extract.instruction,
        max_chars=extract.max_chars,
        max_items=extract.max_items,
    )


def _udf(caller: calls.Caller, name: str, ask: Callable[..., calls.Question], tries: bool) -> Any:
    run = partial(calls.call, caller, ask)
    with_confidence = name == "dolly_classify"

    # The types are read by Spark: an iterator keeps one connection to the engine host for all of a task's batches.
    def give_text(batches: Iterator[tuple[pd.Series, ...]]) -> Iterator[pd.Series]:
        for answers in run(batches):
            yield pd.Series([None if answer is None else answer.response for answer in answers], dtype=object)

    def give_struct(batches: Iterator[tuple[pd.Series, ...]]) -> Iterator[pd.DataFrame]:
        for answers in run(batches):
            yield pd.DataFrame([calls.result_columns(answer, with_confidence) for answer in answers])

    made: Any
    if tries:
        made = pandas_udf(give_struct, _CLASSIFY_RESULT if with_confidence else _RESULT)  # type: ignore[call-overload]
    else:
        made = pandas_udf(give_text, "string")  # type: ignore[call-overload]
    # So that Spark does not evaluate it a second time where it merges projections.
    return made.asNondeterministic()
