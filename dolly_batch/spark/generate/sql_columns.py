"""The columns of a SQL call as values in Python, on an executor.

Spark 4.1 and newer hand over Arrow's arrays (`arrow_udf`). Spark 4.0 hands over pandas' series, and a text that is not
UTF-8 ends the query there before any of our code runs.
"""

from typing import Any

import pandas as pd
import pyarrow as pa
from pyspark.sql.pandas.types import from_arrow_type

from dolly_batch.tasks.arguments import OtherValue


class NotUtf8:
    """Stands for a value that holds a text that is not UTF-8."""


def values_of(column: pa.Array | pd.Series | pd.DataFrame) -> list[Any]:
    """The values of an argument's column: None, str, bool, int, float, Decimal, and lists and dicts of str or None.

    A value of any other type is an `OtherValue`, and one with a text that is not UTF-8 a `NotUtf8`.
    """
    if isinstance(column, pd.DataFrame):
        return [OtherValue("struct")] * len(column)
    try:
        array = _array_of(column) if isinstance(column, pd.Series) else column
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return [None if value is None else OtherValue(type(value).__name__) for value in column]
    if not _is_taken(array.type):
        other = OtherValue(_type_name(array.type))
        return [other if is_valid else None for is_valid in array.is_valid().to_pylist()]
    try:
        values = array.to_pylist()
    except UnicodeDecodeError:
        values = [_value(scalar) for scalar in array]
    if pa.types.is_map(array.type):  # as pairs
        return [dict(value) if isinstance(value, list) else value for value in values]
    return list(values)


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return NotUtf8()


def _is_taken(kind: Any) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _is_text(kind.value_type)
    if pa.types.is_map(kind):
        return _is_text(kind.key_type) and _is_text(kind.item_type)
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    return is_number or pa.types.is_boolean(kind) or _is_text(kind)


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind))


def _type_name(kind: Any) -> str:
    try:
        return from_arrow_type(kind).simpleString()
    except Exception:  # a type that Spark has no name for, by whatever error its version says so
        return str(kind)


def _array_of(series: pd.Series) -> Any:
    """The array that a series was made from, as nearly as pandas tells."""
    values = [[*value.items()] if isinstance(value, dict) else value for value in series]
    is_map = any(isinstance(value, dict) for value in series)
    return pa.array(values, pa.map_(pa.string(), pa.string()) if is_map else None, from_pandas=True)
