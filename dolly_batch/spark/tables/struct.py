"""The column that an extracted object becomes: Spark's types from and to the schemas that the model is held to."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from pyspark.errors import PySparkException
from pyspark.sql import types as T

from dolly_batch.config.task import ExtractTask
from dolly_batch.engine.json_grammar import fault_of
from dolly_batch.errors import ConfigError
from dolly_batch.tasks.schema.json_schema import INT_RANGE, bound_schema, check_schema

_INTEGERS: dict[type[T.DataType], int] = {T.ByteType: 8, T.ShortType: 16, T.IntegerType: 32, T.LongType: 64}


def struct_type(task: ExtractTask) -> T.StructType:
    """The type of the column `response`. Raises ConfigError for a type that cannot be extracted."""
    if isinstance(task.columns, str) and not task.columns.lstrip().startswith("{"):
        parsed = _parse_ddl(task.columns)
        json_schema(parsed, "task.schema")
        text: T.StructType = _without_lengths(parsed)
        return text
    return _struct(check_schema(_document(task.columns)))


def _without_lengths(kind: Any) -> Any:
    """The type with plain strings: `varchar(n)` bounds what is written, and Spark parses no JSON into it."""
    if isinstance(kind, T.StructType):
        return T.StructType([T.StructField(field.name, _without_lengths(field.dataType)) for field in kind.fields])
    if isinstance(kind, T.ArrayType):
        return T.ArrayType(_without_lengths(kind.elementType))
    return T.StringType() if isinstance(kind, (T.VarcharType, T.CharType)) else kind


def extract_schema(task: ExtractTask, max_new_tokens: int, count: Callable[[str], int]) -> dict[str, Any]:
    """The bounded JSON schema of this task's answers; `count` gives a text's tokens.

    Raises ConfigError as `struct_type` and `bound_schema` do.
    """
    if isinstance(task.columns, str) and not task.columns.lstrip().startswith("{"):
        schema = json_schema(_parse_ddl(task.columns), "task.schema")
    else:
        schema = check_schema(_document(task.columns))
    bounded = bound_schema(schema, max_new_tokens, count, task.max_chars, task.max_items)
    if fault := fault_of(bounded):
        raise ConfigError(f"task.schema: cannot be followed while an answer is written: {fault}")
    return bounded


def _document(schema: str | dict[str, Any]) -> Any:
    try:
        return json.loads(schema) if isinstance(schema, str) else schema
    except ValueError as error:
        raise ConfigError(f"task.schema: not readable JSON: {error}") from error


def _parse_ddl(ddl: str) -> T.StructType:
    try:
        parsed = T._parse_datatype_string(ddl)
    except PySparkException as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"task.schema: neither Spark DDL nor a JSON Schema: {reason}") from error
    if not isinstance(parsed, T.StructType) or not parsed.fields:
        raise ConfigError(f"task.schema: must name fields with their types (`name STRING, age INT`), found {ddl!r}")
    return parsed


def json_schema(kind: T.DataType, where: str) -> dict[str, Any]:
    """A Spark type as a JSON Schema. Raises ConfigError for one that cannot be extracted."""
    if isinstance(kind, T.StructType):
        return {
            "type": "object",
            "properties": {field.name: json_schema(field.dataType, f"{where}.{field.name}") for field in kind.fields},
        }
    if isinstance(kind, T.ArrayType):
        return {"type": "array", "items": json_schema(kind.elementType, f"{where}.items")}
    if type(kind) in _INTEGERS:
        half = 2 ** (_INTEGERS[type(kind)] - 1)
        low, high = max(-half, INT_RANGE["minimum"]), min(half - 1, INT_RANGE["maximum"])
        return {"type": "integer", "minimum": low, "maximum": high}
    if isinstance(kind, (T.VarcharType, T.CharType)):
        return {"type": "string", "maxLength": kind.length}
    if isinstance(kind, T.StringType):
        return {"type": "string"}
    if isinstance(kind, T.BooleanType):
        return {"type": "boolean"}
    if isinstance(kind, (T.FloatType, T.DoubleType)):
        return {"type": "number"}
    if isinstance(kind, T.DateType):
        return {"type": "string", "format": "date"}
    if isinstance(kind, (T.TimestampType, T.TimestampNTZType)):
        return {"type": "string", "format": "date-time"}
    raise ConfigError(
        f"{where}: {kind.simpleString()} cannot be extracted; use string, integers, double, boolean, date, timestamp, "
        "array or struct"
    )


def _struct(schema: Mapping[str, Any]) -> T.StructType:
    return T.StructType([T.StructField(name, _type(value)) for name, value in schema["properties"].items()])


def _type(schema: Mapping[str, Any]) -> T.DataType:
    kind = schema["type"]
    if kind == "object":
        return _struct(schema)
    if kind == "array":
        return T.ArrayType(_type(schema["items"]))
    if kind == "string":
        formats: dict[str, T.DataType] = {"date": T.DateType(), "date-time": T.TimestampType()}
        return formats.get(str(schema.get("format")), T.StringType())
    return {"integer": T.LongType(), "number": T.DoubleType(), "boolean": T.BooleanType()}[kind]
