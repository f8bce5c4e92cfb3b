"""Columns: resolving the ones that a job names, and the ones that every output has."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from dolly_batch.config.job import JobConfig
from dolly_batch.errors import InputError, OutputError
from dolly_batch.spark.tables.schemas import ANSWER_FIELDS, task_fields
from dolly_batch.spark.tables.struct import struct_type
from dolly_batch.tasks import KINDS


def answer_fields(job: JobConfig) -> tuple[T.StructField, ...]:
    """The columns that this job's answers have, in their order, after the id and the kept columns."""
    fields = (*ANSWER_FIELDS, *task_fields(job.task.kind, cascades=job.task.cascade is not None))
    schema = KINDS[job.task.kind].response_schema(job.task)
    return fields if schema is None else (T.StructField("response", struct_type(schema)), *fields[1:])


@dataclass(frozen=True)
class ColumnRef:
    """A resolved input column: expression, name, type."""

    column: Column
    name: str
    type: T.DataType

    @property
    def is_text(self) -> bool:
        """Whether its values are strings."""
        return isinstance(self.type, (T.StringType, T.VarcharType, T.CharType))


def resolve_column(df: DataFrame, name: str, key: str, instead: str | None = None) -> ColumnRef:
    """Resolve the column `name` that the job's `key` names.

    A top-level column of exactly that name comes first, then a field of a struct (`q.text`); backticks force either
    reading (`` `q.text` ``). Raises InputError when there is none, or when two differ only by case; it says `instead`
    what would else be a list of the names that are there.
    """
    top = _unquoted(name)
    exact = [field for field in df.schema.fields if field.name.lower() == top.lower()]
    if len(exact) > 1:
        twins = ", ".join(f"`{field.name}`" for field in exact)
        raise InputError(f"{key}: the input has the columns {twins}, which differ only by case; rename one")
    if exact:
        return ColumnRef(F.col(_quoted(exact[0].name)), exact[0].name, exact[0].dataType)
    nested = _nested(df.schema, name)
    if nested is not None:
        return nested
    near = difflib.get_close_matches(name, df.columns, n=1, cutoff=0.4 if instead is None else 0.8)
    listed = instead or f"it has: {', '.join(df.columns)}"
    others = listed if df.columns else "it has none at all: is the file empty?"
    hint = f"did you mean `{near[0]}`?" if near else others
    raise InputError(f"{key}: the input has no column `{name}`; {hint}")


def output_name(job: JobConfig, name: str) -> str:
    """The output's name of one of our own columns."""
    return job.output.prefix + name


def output_schema(job: JobConfig, ids: Sequence[ColumnRef], kept: Sequence[ColumnRef]) -> T.StructType:
    """The output's columns in order: the ids (`row_key` where there are none), the kept columns, ours.

    Raises OutputError when two of them, or two fields of a struct, have one name, or `partition_by` names none of them.
    """
    fields = [T.StructField(chosen.name, chosen.type) for chosen in ids]
    fields = fields or [T.StructField(output_name(job, "row_key"), T.StringType())]
    fields += [T.StructField(chosen.name, chosen.type) for chosen in kept]
    fields += [T.StructField(output_name(job, field.name), field.dataType) for field in answer_fields(job)]
    seen: set[str] = set()
    for field in fields:
        if field.name.lower() in seen:
            raise OutputError(
                f"output: two columns would be called `{field.name}`; leave it out of output.keep, "
                "or set output.prefix (it is put before this package's own columns)"
            )
        seen.add(field.name.lower())
        if twice := _twice_in(field.dataType, field.name):
            raise OutputError(f"output: `{twice}` stands twice in one struct, capital and small letters being the same")
    absent = [name for name in job.output.partition_by if name.lower() not in seen]
    if absent:
        raise OutputError(f"output.partition_by: the output has no column `{absent[0]}`; add it to output.keep")
    return T.StructType(fields)


def names_columns(job: JobConfig, schema: T.StructType, num_ids: int) -> bool:
    """Whether the columns of an output, as an open plan has them, are still those that the job names: the kept ones by
    `output.keep`, ours by `output.prefix`. Types are the input's, which is not looked at."""
    ids = schema.names[:num_ids] or [output_name(job, "row_key")]
    ours = [output_name(job, field.name) for field in answer_fields(job)]
    kept = schema.names[len(ids) : -len(ours)]
    named = [{_unquoted(name).lower(), _unquoted(_parts(name)[-1]).lower()} for name in job.output.keep]
    return (
        schema.names == [*ids, *kept, *ours]
        and len(kept) == len(named)
        and all(name.lower() in names for name, names in zip(kept, named, strict=True))
    )


def _twice_in(kind: T.DataType, where: str) -> str | None:
    """The path of a struct's field whose name another one has, but for the case; Spark writes no such struct."""
    if isinstance(kind, T.ArrayType):
        return _twice_in(kind.elementType, where)
    if isinstance(kind, T.MapType):
        return _twice_in(kind.keyType, where) or _twice_in(kind.valueType, where)
    seen: set[str] = set()
    for field in kind.fields if isinstance(kind, T.StructType) else ():
        path = f"{where}.{field.name}"
        if field.name.lower() in seen:
            return path
        seen.add(field.name.lower())
        if deeper := _twice_in(field.dataType, path):
            return deeper
    return None


def schema_difference(expected: T.StructType, found: T.StructType, case_counts: bool = False) -> list[str]:
    """The differences between two schemas, a line each; order and nullability do not count, nor by default case."""
    have = {field.name if case_counts else field.name.lower(): field for field in found.fields}
    want = {field.name if case_counts else field.name.lower(): field for field in expected.fields}
    lines = [f"- {field.name} {field.dataType.simpleString()}" for key, field in have.items() if key not in want]
    for key, field in want.items():
        if key not in have:
            lines.append(f"+ {field.name} {field.dataType.simpleString()}")
        elif have[key].dataType.simpleString() != field.dataType.simpleString():
            lines.append(
                f"~ {field.name}: the table has {have[key].dataType.simpleString()}, "
                f"this job writes {field.dataType.simpleString()}"
            )
    return lines


def first_rows(df: DataFrame, order: list[str], names: list[str], num_rows: int) -> list[tuple[Any, ...]]:
    """The values of the named columns in the first rows by `order`; what holds other values as JSON."""
    shown = []
    for name in names:
        holds_others = isinstance(df.schema[name].dataType, (T.StructType, T.ArrayType, T.MapType))
        column = F.col(_quoted(name))
        shown.append(F.to_json(column) if holds_others else column)
    return [tuple(row) for row in df.orderBy(*map(_quoted, order)).limit(num_rows).select(*shown).collect()]


def _is_quoted(name: str) -> bool:
    return len(name) > 2 and name.startswith("`") and name.endswith("`") and "`" not in name[1:-1].replace("``", "")


def _unquoted(name: str) -> str:
    return name[1:-1].replace("``", "`") if _is_quoted(name) else name


def _parts(name: str) -> list[str]:
    """The parts of a dotted name; a dot in backticks divides nothing."""
    return re.findall(r"`(?:[^`]|``)+`|[^.]+", name) or [name]


def _quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"


def no_rows(spark: SparkSession, schema: T.StructType) -> DataFrame:
    """A table without rows that costs no Python worker to read, as `createDataFrame` would."""
    return spark.range(0).select(*(F.lit(None).cast(field.dataType).alias(field.name) for field in schema))


def quoted_path(*parts: str) -> str:
    """Name parts as one identifier that Spark reads back to the same parts."""
    return ".".join(_quoted(part) for part in parts)


def _nested(schema: T.StructType, name: str) -> ColumnRef | None:
    """A field reached through structs by a dotted name, or None."""
    parts = _parts(name)
    if len(parts) < 2:
        return None
    here: T.DataType = schema
    column: Column | None = None
    for part in map(_unquoted, parts):
        fields = here.fields if isinstance(here, T.StructType) else []
        field = next((field for field in fields if field.name.lower() == part.lower()), None)
        if field is None:
            return None
        column = F.col(_quoted(field.name)) if column is None else column.getField(field.name)
        here = field.dataType
        leaf = field.name
    return ColumnRef(column, leaf, here) if column is not None else None
