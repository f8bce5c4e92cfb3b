"""The columns of answers, by name and type. Executors import it too, so nothing here reads a job file."""

from pyspark.sql import types as T

from dolly_batch.tasks import KINDS

# The columns every answer has.
ANSWER_FIELDS = (
    T.StructField("response", T.StringType()),
    T.StructField("status", T.StringType()),
    T.StructField("error", T.StringType()),
    T.StructField("finish_reason", T.StringType()),
    T.StructField("num_prompt_tokens", T.IntegerType()),
    T.StructField("num_completion_tokens", T.IntegerType()),
    T.StructField("input_truncated", T.BooleanType()),
    T.StructField("num_dropped_tokens", T.IntegerType()),
    T.StructField("request_key", T.StringType()),
    T.StructField("plan_id", T.StringType()),
    T.StructField("attempt", T.IntegerType()),
    T.StructField("model", T.StringType()),
    T.StructField("model_revision", T.StringType()),
    T.StructField("created_at", T.TimestampType()),
)


ANSWERERS = ("model", "proxy")
"""Who may have answered a row of a cascade."""
# Its columns, behind those of its kind.
CASCADE_FIELDS = (T.StructField("answered_by", T.StringType()), T.StructField("proxy_hash", T.StringType()))


def task_fields(kind: str, *, cascades: bool = False) -> tuple[T.StructField, ...]:
    """The columns that a kind of task adds, after those; with a cascade, what tells who answered."""
    columns = [
        {"name": name, "type": type_, "nullable": True, "metadata": {}} for name, type_ in KINDS[kind].columns.items()
    ]
    fields = T.StructType.fromJson({"type": "struct", "fields": columns}).fields
    return (*fields, *(CASCADE_FIELDS if cascades else ()))
