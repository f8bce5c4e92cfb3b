"""The tasks as SQL functions: `dolly_generate`, `dolly_classify`, `dolly_summarize`, `dolly_extract`, each with `try_`.

    functions = dolly_batch.functions.register(spark, model="/Volumes/main/models/dolly-v2-3b")
    spark.sql("SELECT id, dolly_classify(text, array('billing', 'delivery', 'other')) AS topic FROM tickets")
    df.select("id", functions.extract("text", "name STRING, age INT").alias("person"))

They ask the engine host of each executor the same questions as a job, and so get the same answers. They are for
exploration and for small tables: Spark may plan a query so that a function runs twice, and a failed query starts
again from nothing. Large tables belong to the job.
"""

import getpass
import inspect
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from pyspark.sql import Column, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.functions import pandas_udf

from dolly_batch.config.job import check_job
from dolly_batch.config.task import check_task
from dolly_batch.console import say
from dolly_batch.errors import ConfigError
from dolly_batch.models.folder import MANIFEST
from dolly_batch.spark.files import files_for
from dolly_batch.spark.generate.sql_call import SqlFunction, answer_calls, call_settings, result_columns
from dolly_batch.spark.model import resolve_model
from dolly_batch.spark.preflight.package import ship_package
from dolly_batch.spark.session.session import is_connect
from dolly_batch.spark.tables.schemas import task_fields
from dolly_batch.spark.tables.struct import struct_type
from dolly_batch.tasks import KINDS
from dolly_batch.tasks.base import TaskKind, TaskSettings


@dataclass(frozen=True)
class Functions:
    """The registered functions for Python, one method for each kind of task; a column, or its name, gives a column.

        functions.generate(instruction, context=None)      the model's answer, as text
        functions.classify(text, labels)                   the likeliest label
        functions.summarize(text, max_words=None)          a summary of a text of any length
        functions.extract(text, schema)                    the fields of Spark DDL, or of a JSON Schema, as a struct

    With `try_=True` each gives a struct of `response` and `error` (classify: and `confidence`), with one of them null.
    Raises ConfigError for a bad schema.
    """

    udfs: Mapping[str, Any]

    def __getattr__(self, name: str) -> Any:
        if name not in KINDS:
            raise AttributeError(f"no function {name!r}; the kinds of task are {', '.join(KINDS)}")
        call = partial(self._call, KINDS[name])
        call.__doc__ = f"{KINDS[name].__doc__}"
        return call

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *KINDS]

    def _call(self, kind: TaskKind, text: Column | str, *values: Any, try_: bool = False, **named: Any) -> Column:
        given = _signature(kind).bind(text, *values, **named)
        given.apply_defaults()
        arguments = {name: json.dumps(v) if isinstance(v, Mapping) else v for name, v in given.arguments.items()}
        settings = {one.name: arguments[one.name] for one in kind.sql_arguments if not one.is_column}
        schema = kind.response_schema(
            call_settings(kind, kind.settings(kind=kind.name, **kind.sql_placeholders), settings)
        )
        columns: list[Any] = [text]
        for argument in kind.sql_arguments:
            value = arguments[argument.name]
            if value is not None:
                columns.append(value if argument.is_column else _literal(value))
        result: Column = self.udfs[("try_" if try_ else "") + f"dolly_{kind.name}"](*columns)
        if schema is None:
            return result
        type_ = struct_type(schema)
        if not try_:
            return F.from_json(result, type_)
        others = [result[name].alias(name) for name in ("error", *kind.sql_columns)]
        return F.struct(F.from_json(result["response"], type_).alias("response"), *others)


def _signature(kind: TaskKind) -> inspect.Signature:
    """The arguments of a kind's function, so that Python itself refuses missing and unknown ones."""
    parameters = [inspect.Parameter("text", inspect.Parameter.POSITIONAL_ONLY)]
    for argument in kind.sql_arguments:
        default = None if argument.is_optional else inspect.Parameter.empty
        parameters.append(inspect.Parameter(argument.name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default))
    return inspect.Signature(parameters)


def _literal(value: Any) -> Column:
    """A setting of a call as a column."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return F.array(*(F.lit(one) for one in value))
    return F.lit(value)


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
    model_facts = resolve_model(spark, job, files_for(spark, job.work_dir)[1], say)
    if not is_connect(spark):
        ship_package(spark)
    udfs = {}
    for name, settings in _settings(tasks or {}).items():
        function = SqlFunction(
            kind=name,
            settings=settings,
            spec=model_facts.engine_spec(job),
            params=job.generation.params,
            max_positions=model_facts.max_positions,
            seed=job.generation.seed,
            long_prompt=long_prompt,
        )
        for prefix in ("", "try_"):
            udfs[f"{prefix}dolly_{name}"] = udf = _udf(function, tries=bool(prefix))
            spark.udf.register(f"{prefix}dolly_{name}", udf)
    return Functions(udfs)


def _settings(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, TaskSettings]:
    """The settings of each kind. Raises ConfigError for an unknown kind or key, and for one that a call gives."""
    if unknown := sorted(set(tasks) - set(KINDS)):
        raise ConfigError(f"tasks.{unknown[0]}: unknown; the kinds are {', '.join(KINDS)}")
    settings = {}
    for name, kind in KINDS.items():
        given = dict(tasks.get(name, {}))
        if twice := sorted(kind.sql_placeholders.keys() & given.keys()):
            raise ConfigError(f"tasks.{name}.{twice[0]}: is an argument of dolly_{name}, not of register")
        document = {"kind": name, **kind.sql_placeholders, **given}
        settings[name] = check_task(document, f"dolly_batch.functions.register, tasks.{name}")
    return settings


def _udf(function: SqlFunction, *, tries: bool) -> Any:
    kind = KINDS[function.kind]

    # The types are read by Spark: an iterator keeps one connection to the engine host for all of a task's batches.
    def give_text(batches: Iterator[tuple[pd.Series, ...]]) -> Iterator[pd.Series]:
        for results in answer_calls(function, batches):
            yield pd.Series([None if result is None else result.response for result in results], dtype=object)

    def give_struct(batches: Iterator[tuple[pd.Series, ...]]) -> Iterator[pd.DataFrame]:
        for results in answer_calls(function, batches):
            yield pd.DataFrame([result_columns(KINDS[function.kind], result) for result in results])

    udf: Any
    if tries:
        extras = [f"{field.name} {field.dataType.simpleString()}" for field in task_fields(kind.name)]
        shown = [extra for extra in extras if extra.split()[0] in kind.sql_columns]
        udf = pandas_udf(give_struct, ", ".join(["response STRING", "error STRING", *shown]))  # type: ignore[call-overload]
    else:
        udf = pandas_udf(give_text, "string")  # type: ignore[call-overload]
    # So that Spark does not evaluate it a second time where it merges projections.
    return udf.asNondeterministic()
