"""JSON, one object a line, read only: every value as text, or by `input.schema`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from dolly_batch.config.tables import ReadableTable
from dolly_batch.errors import InputError
from dolly_batch.spark.files import GLOB, literal_path, plain_name
from dolly_batch.spark.tables.base import NO_DATA, InputFormat
from dolly_batch.spark.tables.columns import quoted_path
from dolly_batch.spark.tables.lines import LINE, ascii_encoding, is_damaged, is_on, read_lines, reader_options

CORRUPT = "_corrupt_record"
_ROWS, _END, _HALVED, _DAMAGED, _PARSED = "__rows", "__end", "__halved", "__damaged", "__parsed"
REPLACED = "\ufffd"
# Escapes of two halves of a character, which make one together and no text apart. An escaped backslash is none of both.
_HIGH, _LOW = r"\\u[dD][89abAB][0-9a-fA-F]{2}", r"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_WHOLE = rf"\\\\|{_HIGH}{_LOW}"
_HALF = rf"(?<!\\)((?:\\\\)*+)(?:{_HIGH}(?!{_LOW})|(?<!{_HIGH}){_LOW})"


class Json(InputFormat):
    """JSON files. Without a schema a value is the text in the file: `007` stays `007`, `1.0` stays `1.0`.

    Spark by itself takes the first object of a line, or of a file with `multiLine`, and passes over the rest of it.
    """

    name = "json"
    read_options: ClassVar = {"primitivesAsString": "true"}
    faults: ClassVar = {
        **NO_DATA,
        "MALFORMED_JSON_TEXT": "an array or an object holds text that is not valid UTF-8; correct it",
        "MALFORMED": "a line is not one whole JSON object (two of them, or something behind one), or a value is not of "
        "the type that {key}.schema gives it; where objects have many lines, set {key}.options: {{multiLine: 'true'}}",
    }

    def read(self, spark: SparkSession, config: ReadableTable, key: str) -> tuple[DataFrame, int | None]:
        """As every format; raises InputError where a line is not a JSON object and no schema is given.

        What cannot be read strictly, by the job's own options, is read as Spark does it.
        """
        options = reader_options(config.options)
        lines, encoding = read_lines(spark, config, whole=is_on(options, "multiline")), ascii_encoding(options)
        if config.columns is None:
            _refuse_patterns(lines, config, key)
        found = super().read(spark, config, key)[0].schema.fields
        some_are_corrupt = config.columns is None and any(field.name == CORRUPT for field in found)
        # Bytes that are not UTF-8 make a line corrupt for Spark; here they are a fault of its row.
        if some_are_corrupt and (encoding is None or lines.filter(is_damaged(F.col(LINE), encoding)).isEmpty()):
            raise _not_objects(config, key)
        folders = lines.schema.fields[1:]
        others = {CORRUPT, *(field.name.lower() for field in folders)}
        columns = [field for field in found if field.name.lower() not in others]
        if not columns or encoding is None or options.get("mode", "FAILFAST").upper() != "FAILFAST":
            reader = spark.read.options(**self.read_options, **config.options).format(self.name)
            return reader.schema(T.StructType([*columns, *folders])).load(literal_path(spark, str(config.path))), None
        return _rows(lines, columns, folders, encoding, options), None


FORMAT = Json()


def _not_objects(config: ReadableTable, key: str) -> InputError:
    return InputError(
        f"{key} {config.name}: some lines are not JSON objects; fix them, or leave them out with "
        f"{key}.options {{mode: DROPMALFORMED}} (for one object over many lines: {{multiLine: 'true'}})"
    )


def _refuse_patterns(lines: DataFrame, config: ReadableTable, key: str) -> None:
    """Raise InputError for a file whose name Spark would take for a pattern, and look for columns in others."""
    if names := sorted(name for file in lines.inputFiles() if GLOB & set(name := plain_name(file))):
        raise InputError(
            f"{key} {config.name}: rename {names[0]}, or name its columns in {key}.schema: Spark takes `*?[]{{}}\\` in "
            "a name for a pattern when it looks for columns"
        )


def _rows(
    lines: DataFrame,
    columns: Sequence[T.StructField],
    folders: Sequence[T.StructField],
    encoding: str,
    options: Mapping[str, str],
) -> DataFrame:
    """The objects of the lines. The text of a value that is not UTF-8 is not UTF-8 here either."""
    line = F.ltrim(F.col(LINE), F.lit("\ufeff")) if is_on(options, "multiline") else F.col(LINE)
    text = line if encoding == "UTF-8" else F.decode(line.cast("binary"), encoding)
    in_folders = [F.col(quoted_path(field.name)).alias(f"__{i}") for i, field in enumerate(folders)]
    texts = lines.select(*in_folders, text.alias(LINE), _has_half(text).alias(_HALVED))
    text = F.when(F.col(_HALVED), _halves_replaced(F.col(LINE))).otherwise(F.col(LINE))
    parsed = texts.select(
        *(f"__{i}" for i in range(len(folders))),
        (is_damaged(F.col(LINE), encoding) | F.col(_HALVED)).alias(_DAMAGED),
        _parsed(text, columns, options).alias(_PARSED),
    )
    whole = F.when(F.col(f"{_PARSED}.{_END}"), F.col(f"{_PARSED}.{_ROWS}"))
    whole = whole.otherwise(F.raise_error(F.lit("[MALFORMED_JSON_LINE]")).cast(T.ArrayType(T.StructType([*columns]))))
    rows = parsed.select(*parsed.columns[:-1], F.inline(whole))
    return rows.select(*_values(columns), *(F.col(f"__{i}").alias(field.name) for i, field in enumerate(folders)))


def _parsed(text: Column, columns: Sequence[T.StructField], options: Mapping[str, str]) -> Column:
    """The line as one of two members of an object, so that whatever stands behind its end is a fault.

    It is an array of objects there: a line may be one by itself, and some exports end each line in a comma.
    """
    objects = F.when(text.endswith(","), F.rtrim(text, F.lit(", "))).otherwise(text)
    is_array = F.ltrim(text).startswith("[")
    objects = F.when(is_array, objects).otherwise(F.concat(F.lit("["), objects, F.lit("]")))
    row = T.StructType([*columns])
    schema = T.StructType([T.StructField(_ROWS, T.ArrayType(row)), T.StructField(_END, T.BooleanType())])
    member = F.concat(F.lit(f'{{"{_ROWS}":'), objects, F.lit(f',"{_END}":true}}'))
    return F.from_json(member, schema, {**options, "mode": "FAILFAST"})


def _has_half(text: Column) -> Column:
    """Whether half of a character is escaped without its other half."""
    some = F.contains(text, F.lit("\\ud")) | F.contains(text, F.lit("\\uD"))
    return some & F.regexp_replace(text, _WHOLE, "").rlike(f"{_HIGH}|{_LOW}")


def _halves_replaced(text: Column) -> Column:
    return F.regexp_replace(text, _HALF, f"$1{REPLACED}")


def _values(columns: Sequence[T.StructField]) -> Iterator[Column]:
    """The values; in damaged rows, what replaces bytes that are no text becomes bytes that are none again."""
    no_text = F.lit(b"\xff").cast("string")
    for field in columns:
        value = F.col(quoted_path(field.name))
        if isinstance(field.dataType, T.StringType):
            value = F.when(F.col(_DAMAGED), F.replace(value, F.lit(REPLACED), no_text)).otherwise(value)
        elif isinstance(field.dataType, (T.StructType, T.ArrayType, T.MapType)):
            damaged = F.col(_DAMAGED) & F.contains(F.to_json(value), F.lit(REPLACED))
            fault = F.raise_error(F.lit("[MALFORMED_JSON_TEXT]")).cast(field.dataType)
            value = F.when(damaged, fault).otherwise(value)
        yield value.alias(field.name)
