"""The tasks as SQL functions: `dolly_generate`, `dolly_classify`, `dolly_summarize`, `dolly_extract`, each with `try_`.

    functions = dolly_batch.functions.register(spark, model="/Volumes/main/models/dolly-v2-3b")
    spark.sql("SELECT id, dolly_classify(text, array('billing', 'delivery', 'other')) AS topic FROM tickets")
    df.select("id", functions.extract("text", "name STRING, age INT").alias("person"))

They ask the engine host of each executor the same questions as a job, and so get the same answers. They are for
exploration and for small tables: Spark may plan a query so that a function runs twice, and a failed query starts
again from nothing. Large tables belong to the job.
"""

import inspect
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
from pyspark.sql import Column, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T
from pyspark.sql.pandas.functions import pandas_udf
from pyspark.sql.pandas.types import to_arrow_type

from dolly_batch.config.job import check_job
from dolly_batch.config.task import check_task
from dolly_batch.console import say
from dolly_batch.errors import ConfigError
from dolly_batch.models.folder import MANIFEST
from dolly_batch.spark.files import files_for
from dolly_batch.spark.generate.sql_call import SqlFunction, answer_calls, call_settings, result_rows
from dolly_batch.spark.model import is_at_hand, private_stage_dir, resolve_model
from dolly_batch.spark.preflight.package import ship_package
from dolly_batch.spark.session.session import check_databricks, is_connect
from dolly_batch.spark.tables.schemas import task_fields
from dolly_batch.spark.tables.struct import struct_type
from dolly_batch.tasks import KINDS
from dolly_batch.tasks.arguments import SqlArgument, check_argument
from dolly_batch.tasks.base import TaskKind, TaskSettings

ARROW_UDFS_FROM = (4, 1)  # the first version of Spark that has them


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
        of_call = [argument for argument in kind.sql_arguments if not argument.is_column]
        settings = {argument.name: _setting(argument, given.arguments[argument.name]) for argument in of_call}
        schema = kind.response_schema(
            call_settings(kind, kind.settings(kind=kind.name, **kind.sql_placeholders), settings)
        )
        columns: list[Any] = [text]
        for argument in kind.sql_arguments:
            value = given.arguments[argument.name]
            if value is not None:
                columns.append(value if argument.is_column else _literal(settings[argument.name]))
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


def _setting(argument: SqlArgument, value: Any) -> Any:
    """A setting of a call, a schema as its text. Raises ConfigError for one of a type that is not taken."""
    is_schema = argument.takes == "schema" and isinstance(value, Mapping)
    return check_argument(argument, json.dumps(value) if is_schema else value)


def _literal(value: Any) -> Column:
    """A setting of a call as a column."""
    if isinstance(value, dict):
        return F.create_map(*(F.lit(one) for pair in value.items() for one in pair))
    return F.array(*map(F.lit, value)) if isinstance(value, list) else F.lit(value)


def register(
    spark: SparkSession,
    model: str | Mapping[str, Any],
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

    `model` is a model's path, or a job file's section `model`: `{"path": "smollm2", "quantization": "int8"}`.
    `tasks` holds, by kind, the keys of a job file's section `task` that are not arguments of a call:
    `{"classify": {"instruction": "What is it about?", "none_below": 0.5}, "summarize": {"style": "bullets"}}`.
    `generation` and `engine` hold the keys of those sections; decoding is greedy unless `generation` says
    otherwise, and then a row's seed is made from its text. A model that is not a staged folder is staged in
    `stage_dir`, which the driver and all executors must see. Without it `tiny` is staged in a private folder of the
    user's below that for temporary files, and `smollm2` in the user's cache, which does for one machine. Raises
    ConfigError and ModelError as a job does.
    """
    check_databricks(spark)
    chosen = {"path": model} if isinstance(model, str) else dict(model)
    path = str(chosen.get("path"))
    if stage_dir is None and not (is_at_hand(spark, path) or Path(path, MANIFEST).is_file()):
        raise ConfigError(
            f"model {path!r} is not a staged folder: give `stage_dir`, a folder that driver and executors share"
        )
    document: dict[str, Any] = {
        "name": "functions",
        "model": {"revision": revision, "dtype": dtype, **chosen},
        "generation": {"do_sample": False, **(generation or {})},
        "engine": dict(engine or {}),
        "limits": {"long_prompt": long_prompt},
        # A function has neither; a job must have both.
        "input": {"table": "none"},
        "output": {"table": "none"},
        # Unused by a staged folder; `tiny` is copied out of the package, which may be a zip.
        "work_dir": stage_dir or private_stage_dir(),
    }
    job = check_job(document, "dolly_batch.functions.register")
    model_facts = resolve_model(spark, job, files_for(spark, job.work_dir)[1], say)
    if not is_connect(spark):
        ship_package(spark)
    spec, params, seed = model_facts.engine_spec(job), job.generation.params, job.generation.seed
    functions = [
        SqlFunction(kind, settings, spec, params, model_facts.max_positions, seed, long_prompt)
        for kind, settings in _settings(tasks or {}).items()
    ]
    return Functions(_registered(spark, functions))


def _registered(spark: SparkSession, functions: Iterable[SqlFunction]) -> dict[str, Any]:
    """The functions by their names in SQL, two of each kind."""
    udfs = {}
    for function in functions:
        for prefix in ("", "try_"):
            name = f"{prefix}dolly_{function.kind}"
            udfs[name] = udf = _udf(spark, function, tries=bool(prefix))
            spark.udf.register(name, udf)
    return udfs


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
        if settings[name].cascade is not None:
            raise ConfigError(f"tasks.{name}.cascade: is for jobs; a SQL function asks the model for each text")
    return settings


def _udf(spark: SparkSession, function: SqlFunction, *, tries: bool) -> Any:
    kind = KINDS[function.kind]
    extras = [field for field in task_fields(kind.name) if field.name in kind.sql_columns]
    texts = [T.StructField(name, T.StringType()) for name in ("response", "error")]
    returns: T.DataType = T.StructType([*texts, *extras]) if tries else T.StringType()

    # The types are read by Spark: an iterator keeps one connection to the engine host for all of a task's batches.
    def give(batches: Iterator[tuple[pa.Array, ...]]) -> Iterator[pa.Array]:
        for results in answer_calls(function, batches):
            yield pa.array(result_rows(function, results, tries=tries), to_arrow_type(returns))

    def give_texts(batches: Iterator[tuple[pd.Series, ...]]) -> Iterator[pd.Series]:
        for results in answer_calls(function, batches):
            yield pd.Series(result_rows(function, results, tries=False), dtype=object)

    def give_structs(batches: Iterator[tuple[pd.Series, ...]]) -> Iterator[pd.DataFrame]:
        for results in answer_calls(function, batches):
            yield pd.DataFrame(result_rows(function, results, tries=True))

    arrow_udf: Any = getattr(F, "arrow_udf", None)
    server = tuple(int(number) for number in spark.version.split(".")[:2])
    if arrow_udf is not None and server >= ARROW_UDFS_FROM:
        udf = arrow_udf(give, returns)
    else:
        udf = pandas_udf(give_structs if tries else give_texts, returns)  # type: ignore[call-overload]
    # So that Spark does not evaluate it a second time where it merges projections.
    return udf.asNondeterministic()
