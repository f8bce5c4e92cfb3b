"""The columns of answers, by name and type. Imported on executors too, so nothing here reads a job file."""

from pyspark.sql import types as T

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
# What a task adds, after those.
TASK_FIELDS: dict[str, tuple[T.StructField, ...]] = {
    "generate": (),
    "classify": (
        T.StructField("confidence", T.DoubleType()),
        T.StructField("margin", T.DoubleType()),
        T.StructField("label_scores", T.MapType(T.StringType(), T.DoubleType())),
    ),
    "summarize": (T.StructField("num_pieces", T.IntegerType()), T.StructField("num_calls", T.IntegerType())),
    "extract": (),
}
