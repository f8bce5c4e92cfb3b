"""The column that an extracted object becomes: the Spark type of a schema."""

from collections.abc import Mapping
from typing import Any

from pyspark.sql import types as T

from dolly_batch.tasks.schema.json_schema import SPARK_TYPE

_TYPES: dict[str, T.DataType] = {
    "byte": T.ByteType(),
    "short": T.ShortType(),
    "integer": T.IntegerType(),
    "long": T.LongType(),
    "float": T.FloatType(),
    "timestamp_ntz": T.TimestampNTZType(),
}
_FORMATS: dict[str, T.DataType] = {"date": T.DateType(), "date-time": T.TimestampType()}


def struct_type(schema: Mapping[str, Any]) -> T.StructType:
    """The type of the column `response`. Strings have no length: Spark parses no JSON into `varchar(n)`."""
    return T.StructType([T.StructField(name, _type(value)) for name, value in schema["properties"].items()])


def _type(schema: Mapping[str, Any]) -> T.DataType:
    kind = schema["type"]
    if SPARK_TYPE in schema:
        return _TYPES[schema[SPARK_TYPE]]
    if kind == "object":
        return struct_type(schema)
    if kind == "array":
        return T.ArrayType(_type(schema["items"]))
    if kind == "string":
        return _FORMATS.get(str(schema.get("format")), T.StringType())
    return {"integer": T.LongType(), "number": T.DoubleType(), "boolean": T.BooleanType()}[kind]
