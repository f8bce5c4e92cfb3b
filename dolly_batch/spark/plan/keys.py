"""`row_key` and `request_key` as Spark expressions: the identity of a row, and of what is asked of it.

Both are computed by the JVM from the columns alone, so they depend on no batch, partition or worker. Neither may
ever change for the same row: finished tables hold them.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from pyspark.sql import Column, Window
from pyspark.sql import functions as F
from pyspark.sql import types as T

from dolly_batch.config.credentials import without_credentials
from dolly_batch.config.job import JobConfig
from dolly_batch.errors import InputError
from dolly_batch.spark.tables.columns import ColumnRef
from dolly_batch.tasks import KINDS

KEY_HEX_DIGITS = 32  # 128 bits
NULL_KEY = ""  # of rows with a null id, which `input.on_bad_id: status` lets through; no other row has it

_INTEGERS = (T.ByteType, T.ShortType, T.IntegerType, T.LongType)
_CODE = re.compile(r"(?=\D*\d)[A-Za-z0-9._:/-]{1,40}")
_SECONDS = "yyyy-MM-dd'T'HH:mm:ss"
_LATER = {"system", "cascade"}


def request_header(job: JobConfig, model_identity: str) -> str:
    """What every request of a job has in common, as canonical JSON: task, model and parameters.

    Left out on purpose: where the model lies, its dtype, the device, and whatever cannot change an answer. Greedy
    decoding ignores the sampling settings and the seed, so they are no part of its key.
    """
    params: dict[str, object] = {"max_new_tokens": job.generation.max_new_tokens}
    kind = KINDS[job.task.kind]
    if not kind.generates:
        params = {}
    elif job.generation.do_sample:
        params |= {
            "temperature": job.generation.temperature,
            "top_p": job.generation.top_p,
            "top_k": job.generation.top_k,
            "seed": job.generation.seed,
        }
    if job.task.cascade is not None:  # its sample is drawn with the seed
        params["seed"] = job.generation.seed
    if job.generation.repetition_penalty != 1.0:  # said only when it is there, so that older keys stay
        params["repetition_penalty"] = job.generation.repetition_penalty
    header = {
        "version": 1,
        "task": job.task.kind,
        "template": "dolly",  # a model of another prompt format has another identity
        "model": model_identity,
        "engine": "echo" if job.engine.kind == "echo" else "model",
        "quantization": job.model.quantization,
        "params": params,
    }
    if kind.generates and job.engine.kv_dtype != "auto":  # labels are scored without the cache
        header["kv_dtype"] = job.engine.kv_dtype
    # What the task puts into the instruction stands in every row's own text.
    settings = {key: value for key, value in _settings(job).items() if key not in {"kind", *kind.in_prompt}}
    if isinstance(settings.get("schema"), dict):
        settings["schema"] = json.dumps(settings["schema"])  # as text: the order of its fields counts
    if settings:
        header["settings"] = settings
    return json.dumps(header, sort_keys=True, separators=(",", ":"))


def _settings(job: JobConfig) -> dict[str, Any]:
    """The task's settings; what came later only where it is there, so that older keys and open plans stay."""
    return {key: value for key, value in asdict(job.task).items() if key not in _LATER or value is not None}


def task_settings(job: JobConfig) -> str:
    """The task's settings as text: an open plan is resumed only for the same ones."""
    settings: dict[str, object] = {"task": _settings(job), "long_prompt": job.limits.long_prompt}
    if job.model.max_positions is not None:
        settings["max_positions"] = job.model.max_positions
    return json.dumps(settings)


def input_settings(job: JobConfig, limit: int | None) -> str:
    """The settings of which rows are read, as text: an open plan is resumed only for the same ones.

    Credentials among the options are left out: a plan keeps none, and a changed one reads the same rows.
    """
    return _settings_text({"input": job.input.model_dump(by_alias=True), "limit": limit})


def stored_input_settings(text: str) -> str:
    """What a plan holds, as `input_settings` writes it: plans of earlier versions hold credentials."""
    return _settings_text(json.loads(text)) if text else ""


def _settings_text(settings: dict[str, Any]) -> str:
    read = settings["input"]
    return json.dumps({**settings, "input": {**read, "options": without_credentials(read["options"])}})


def request_key(header: str, instruction: Column, context: Column) -> Column:
    """128 bits, as hex, over a length-prefixed encoding of all that is asked. An empty context is no context."""
    context = F.when(F.length(context) > 0, context)
    parts = F.concat(_prefixed(F.lit(header)), _prefixed(instruction), _prefixed(context))
    return F.substring(F.sha2(parts, 256), 1, KEY_HEX_DIGITS)


def numbered_key(request: Column, number: Column) -> Column:
    """The request key of the second, third... row of one id that ask the same; of the first it is the usual one."""
    text = F.concat_ws("/", request, number.cast("string"))
    return F.when(number > 1, F.substring(F.sha2(text, 256), 1, KEY_HEX_DIGITS)).otherwise(request)


def row_key(ids: Sequence[ColumnRef]) -> Column:
    """The row's id, type-tagged and canonical; null when any part is null.

    `7` as an integer is `i7` whatever its width, `7.00` as a decimal is `d7`, the string `7` is `s7`. Several
    columns are joined with their lengths. Raises InputError for a type that has no exact text.
    """
    parts = [_tagged(chosen) for chosen in ids]
    if len(parts) == 1:
        return parts[0]
    return F.concat(*(F.concat(F.octet_length(part).cast("string"), F.lit(":"), part) for part in parts))


def content_row_key(request: Column, kept: Sequence[ColumnRef]) -> Column:
    """The key of a row without an id: what it asks, what it keeps, and which of its equals it is."""
    kept_hash = kept_values_hash(kept)
    occurrence = F.row_number().over(Window.partitionBy(request, kept_hash).orderBy(F.lit(0)))
    text = F.concat_ws("/", request, kept_hash, occurrence.cast("string"))
    return F.concat(F.lit("h"), F.substring(F.sha2(text, 256), 1, KEY_HEX_DIGITS))


def kept_values_hash(kept: Sequence[ColumnRef]) -> Column:
    """A hash of values, the same in every session: equal for equal values, another one for others.

    It is taken over JSON. Plain JSON of Spark has milliseconds: a row with finer timestamps gets JSON with
    microseconds, and all others keep the keys that they have in finished tables.
    """
    if not kept:
        return F.lit("")
    values = F.struct(*(_with_entries(ref.column, ref.type).alias(ref.name) for ref in kept))
    text = _json(values)
    if any(holds(ref.type, (T.TimestampType, T.TimestampNTZType)) for ref in kept):
        exact, cut = _json(values, ".SSSSSS"), _json(values, ".SSS'000'")
        text = F.when(exact == cut, text).otherwise(exact)
    return F.sha2(text, 256)


def _json(values: Column, fraction: str = ".SSS") -> Column:
    formats = {"timestampFormat": f"{_SECONDS}{fraction}[XXX]", "timestampNTZFormat": f"{_SECONDS}{fraction}"}
    return F.to_json(values, {**formats, "timeZone": "UTC", "ignoreNullFields": "true"})


def _with_entries(column: Column, kind: T.DataType) -> Column:
    """The value with each map as its entries whose keys JSON renders as no text of their own (binary: an address)."""
    if not any(holds(found.keyType, (T.BinaryType, T.StructType, T.ArrayType)) for found in _maps_in(kind)):
        return column
    if isinstance(kind, T.ArrayType):
        return F.transform(column, lambda item: _with_entries(item, kind.elementType))
    if isinstance(kind, T.MapType):
        entries = T.StructType([T.StructField("key", kind.keyType), T.StructField("value", kind.valueType)])
        return F.transform(F.map_entries(column), lambda entry: _with_entries(entry, entries))
    fields = kind.fields if isinstance(kind, T.StructType) else []
    inner = (_with_entries(column.getField(field.name), field.dataType).alias(field.name) for field in fields)
    return F.when(column.isNotNull(), F.struct(*inner))


def _types_in(kind: T.DataType) -> Iterator[T.DataType]:
    """The type, and those of all that it holds."""
    yield kind
    inner: list[T.DataType] = []
    if isinstance(kind, T.StructType):
        inner = [field.dataType for field in kind.fields]
    elif isinstance(kind, T.ArrayType):
        inner = [kind.elementType]
    elif isinstance(kind, T.MapType):
        inner = [kind.keyType, kind.valueType]
    for one in inner:
        yield from _types_in(one)


def _maps_in(kind: T.DataType) -> Iterator[T.MapType]:
    return (found for found in _types_in(kind) if isinstance(found, T.MapType))


def holds(kind: T.DataType, types: tuple[type[T.DataType], ...]) -> bool:
    """Whether the type, or one that it holds, is of these."""
    return any(isinstance(found, types) for found in _types_in(kind))


def shown_ids(counts: Iterable[tuple[str, int]], num_ids: int) -> str:
    """Row keys for a message, each with how often it occurs; those that `shown_id` does not tell are counted."""
    told, num_others = [], 0
    for key, count in counts:
        shown = shown_id(key, num_ids)
        if shown is None:
            num_others += 1
        else:
            told.append(f"{shown!r} ({count} times)")
    if num_others:
        told.append(f"{num_others} that may name a person, and are not shown")
    return ", ".join(told)


def shown_id(key: str, num_ids: int) -> str | None:
    """The id of a row key, for people; None where it may name a person. Of a row without an id the key itself.

    Of an id that is text only a plain code is told: letters, digits and `._:/-`, some digit among them. Names and mail
    addresses are not.
    """
    if num_ids == 0:
        return key
    parts = list(_id_texts(key, num_ids))
    if any(is_text and not _CODE.fullmatch(text) for text, is_text in parts):
        return None
    return "/".join(text for text, _ in parts)


def _id_texts(key: str, num_ids: int) -> Iterator[tuple[str, bool]]:
    """The parts of a row key as `row_key` joins them: what they say, and whether they are text."""
    rest = key.encode()
    for _ in range(num_ids):
        length, part = len(rest), rest
        if num_ids > 1:
            head, _, part = rest.partition(b":")
            length = int(head)
        yield part[1:length].decode(errors="replace"), part[:1] == b"s"
        rest = part[length:]


def _prefixed(text: Column) -> Column:
    """`<bytes>:<text>` as binary, and `-` for null: no two lists of texts give the same bytes."""
    value = F.concat(F.octet_length(text).cast("string").cast("binary"), F.lit(":").cast("binary"), text.cast("binary"))
    return F.when(text.isNull(), F.lit("-").cast("binary")).otherwise(value)


def decimal_text(column: Column, kind: T.DecimalType) -> Column:
    """A decimal as its digits: a cast gives `1E-7` for 0.0000001 in a session where `spark.sql.ansi.enabled` is off."""
    return F.replace(F.format_number(column, kind.scale), F.lit(","), F.lit(""))


def _tagged(chosen: ColumnRef) -> Column:
    kind, column = chosen.type, chosen.column
    if isinstance(kind, T.StringType) and kind.collation == "UTF8_BINARY":
        return F.concat(F.lit("s"), column)
    if isinstance(kind, _INTEGERS):
        return F.concat(F.lit("i"), column.cast("string"))
    if isinstance(kind, T.DecimalType):
        text = decimal_text(column, kind)
        if kind.scale > 0:
            text = F.regexp_replace(F.regexp_replace(text, r"0+$", ""), r"\.$", "")
        return F.concat(F.lit("d"), text)
    if isinstance(kind, T.DateType):
        return F.concat(F.lit("D"), column.cast("string"))
    if isinstance(kind, T.TimestampType):
        return F.concat(F.lit("t"), F.unix_micros(column).cast("string"))
    if isinstance(kind, T.TimestampNTZType):
        return F.concat(F.lit("n"), column.cast("string"))
    if isinstance(kind, T.BinaryType):
        return F.concat(F.lit("b"), F.hex(column))
    raise InputError(
        f"input.id: column `{chosen.name}` is {kind.simpleString()}; an id must be a string without a collation, an "
        "integer, a decimal, a date, a timestamp or binary (cast it, or leave `id` out)"
    )
