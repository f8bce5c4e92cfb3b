"""The status of each row before any model runs: runnable, or skipped with a status; and the counts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from dolly_batch.spark.decisions import TODO
from dolly_batch.spark.plan.keys import NULL_KEY, kept_values_hash, numbered_key
from dolly_batch.spark.plan.token_counts import count_tokens, cut_to_fit
from dolly_batch.spark.tables.columns import ColumnRef
from dolly_batch.tasks.base import PreparedTask, TaskModel
from dolly_batch.tasks.blank import BLANK_TEXT
from dolly_batch.tasks.truncate import Side

# A text with more characters than this times the limit cannot fit, whatever its tokens; it is judged by the JVM, so
# that a cell of megabytes never reaches a Python worker.
CHARACTERS_PER_TOKEN_AT_MOST = 512
# What is to be cut, or split, may be longer: this many characters, so that a worker's memory holds it.
CHARACTERS_AT_MOST = 1 << 28

HISTOGRAM_BOUNDS = (32, 64, 128, 256, 512, 1024, 2048)


def assign_status(
    rows: DataFrame, model: TaskModel, prepared: PreparedTask, long_prompt: Side | Literal["error"]
) -> DataFrame:
    """Add `status`, `error`, `num_prompt_tokens` and `num_dropped_tokens` to rows of row_key, values and context.

    `is_mended` marks a row whose kept text was not valid UTF-8.
    `values`, the array of what the row puts into the template, becomes `instruction`. `status` is null for a row that
    can run. A prompt that leaves too little room in the model's positions is `too_long`, or cut by `long_prompt`:
    instruction and context are then what is left of them.
    """
    model = replace(model, system=prepared.task.system)
    side = None if long_prompt == "error" or prepared.any_length else long_prompt
    rows = _with_fault(rows, model, prepared, is_cut=side is not None)
    rows = _with_count(rows, model, prepared, side)
    return _with_status(rows, model, prepared, is_cut=side is not None)


def _with_fault(rows: DataFrame, model: TaskModel, prepared: PreparedTask, *, is_cut: bool) -> DataFrame:
    """Add `instruction`, and `fault`, the status of a row that cannot run as far as the JVM can tell."""
    first, *literals = prepared.literals
    texts = [F.lit(first), *(part for i, text in enumerate(literals) for part in (F.col("values")[i], F.lit(text)))]
    rows = rows.withColumn("instruction", F.concat(*texts))
    asked = F.col("text" if prepared.reads_text else "instruction")
    # Blank is what the row itself brings; template and examples stand around it in every row.
    of_the_row = F.col("text") if prepared.reads_text else F.concat_ws("", "values")
    is_bounded = not is_cut and not prepared.any_length
    max_chars = model.max_positions * CHARACTERS_PER_TOKEN_AT_MOST if is_bounded else CHARACTERS_AT_MOST
    return rows.withColumn("fault", _fault(asked, of_the_row, max_chars))


def _with_count(rows: DataFrame, model: TaskModel, prepared: PreparedTask, side: Side | None) -> DataFrame:
    """Add `count`, the struct of `token_counts`: tokens, and, where prompts may be cut, what is left of a cut one."""
    runs = F.col("fault").isNull()
    # Nulls for the rows that cannot run: no bad byte and no cell of megabytes reaches a Python worker.
    context = F.when(runs, F.col("context"))
    if side is not None:
        cut = cut_to_fit(model, model.max_positions - prepared.num_reserved, prepared.literals, side)
        return rows.withColumn("count", cut(F.when(runs, F.col("values")), context))
    count = count_tokens(model, CHARACTERS_AT_MOST if prepared.any_length else model.max_positions)
    return rows.withColumn("count", count(F.when(runs, F.col("instruction")), context))


def _with_status(rows: DataFrame, model: TaskModel, prepared: PreparedTask, *, is_cut: bool) -> DataFrame:
    """Turn `fault` and `count` into the columns that the plan keeps."""
    tokens = F.col("count.num_tokens")
    num_dropped = F.col("count.num_dropped") if is_cut else F.lit(0)
    was_cut = F.coalesce(num_dropped > 0, F.lit(False))
    is_over = F.col("fault").isNull() & (tokens > model.max_positions - prepared.num_reserved)
    too_long = (F.lit(False) if prepared.any_length else is_over) | (F.col("fault") == "too_long")
    is_exact = ~F.coalesce(F.col("count.is_bound"), F.lit(True))
    message = F.concat(
        F.lit("the prompt has "),
        F.when(is_exact, tokens.cast("string")).otherwise(F.lit(f"more than {model.max_positions}")),
        F.lit(
            f" tokens; with {prepared.num_reserved} new ones that exceeds the model's {model.max_positions} positions"
        ),
    )
    error = F.when(too_long, message).when(F.col("fault") == "bad_encoding", "the text is not valid UTF-8")
    internal = ("fault", "is_mended", "count", "values", "text", "instruction", "context")
    return rows.select(
        *(name for name in rows.columns if name not in internal),
        *(_cut_text(name, was_cut) if is_cut else F.col(name) for name in ("instruction", "context")),
        F.when(too_long, "too_long").otherwise(F.col("fault")).alias("status"),
        error.alias("error"),
        F.when(is_exact, tokens).alias("num_prompt_tokens"),
        F.when(was_cut, num_dropped).otherwise(0).alias("num_dropped_tokens"),
    )


def _cut_text(name: str, was_cut: Column) -> Column:
    return F.when(was_cut, F.col(f"count.{name}")).otherwise(F.col(name)).alias(name)


def _fault(asked: Column, of_the_row: Column, max_chars: int) -> Column:
    """The fault of a row; null for one that may run. `asked` must not be null, what is `of_the_row` not blank."""
    instruction, context, key = F.col("instruction"), F.col("context"), F.col("row_key")
    valid = F.is_valid_utf8(instruction) & F.coalesce(F.is_valid_utf8(context), F.lit(True))
    valid = valid & F.coalesce(F.is_valid_utf8(key), F.lit(True)) & ~F.col("is_mended")
    num_chars = F.length(instruction) + F.coalesce(F.length(context), F.lit(0))
    return (
        F.when(asked.isNull(), "null_instruction")
        .when(~valid, "bad_encoding")
        .when(num_chars > max_chars, "too_long")
        .when(of_the_row.rlike(BLANK_TEXT), "empty_instruction")
    )


def mark_bad_ids(keyed: DataFrame, kept: Sequence[ColumnRef]) -> DataFrame:
    """All rows of a null or repeated id get the status `duplicate_id`, since none is better than the others.

    Those that ask the same get request keys of their own, by their number: each has its row in the output, whichever
    of them were there before. The first keeps the key that it had when it was the only one.
    """
    repeated = (
        keyed.groupBy("row_key").count().filter(F.col("count") > 1).select("row_key", F.lit(True).alias("repeated"))
    )
    bad = F.col("row_key").isNull() | F.col("repeated").isNotNull()
    equals = Window.partitionBy("row_key", "request_key").orderBy(kept_values_hash(kept))
    marked = keyed.join(repeated, "row_key", "left").withColumn("number", F.row_number().over(equals))
    changed = {
        "row_key": F.coalesce(F.col("row_key"), F.lit(NULL_KEY)),
        "status": F.when(bad, "duplicate_id").otherwise(F.col("status")),
        "error": F.when(F.col("row_key").isNull(), "the id is null")
        .when(bad, "the id occurs more than once")
        .otherwise(F.col("error")),
    }
    requests = [name for name in keyed.columns if name.endswith("request_key")]  # and those of earlier headers
    changed |= {name: numbered_key(F.col(name), F.col("number")) for name in requests}
    return marked.select(*(changed.get(name, F.col(name)).alias(name) for name in keyed.columns))


@dataclass(frozen=True)
class Facts:
    """Counts, tokens and a hash of the rows with their states; independent of their order."""

    counts: dict[tuple[str, str | None], int]
    num_questions: int
    """Of the rows to answer, those that ask something else than the others."""
    num_prompt_tokens: int
    """Of the questions."""
    digest: list[str]
    histogram: dict[str, int]

    def num(self, state: str) -> int:
        """Rows in a state."""
        return sum(count for (found, _), count in self.counts.items() if found == state)


def read_facts(rows: DataFrame, shares: bool) -> Facts:
    """Count rows with a state, and hash them. With `shares`, rows of one request key are one question."""
    todo, tokens, num_rows = F.col("state") == TODO, F.col("num_prompt_tokens"), F.col("num_rows")
    limit = [name for name in ("max_new_tokens",) if name in rows.columns]
    hashed = F.xxhash64("row_key", "request_key", "attempt", "state", *limit)
    hashes = (hashed.alias("xor"), hashed.cast("decimal(38,0)").alias("sum"))
    questions = rows.select("state", "status", "request_key", F.lit(1).alias("num_rows"), tokens, *hashes)
    if shares:
        sums = (F.sum("num_rows").alias("num_rows"), F.max(tokens).alias("num_prompt_tokens"))
        hashes = (F.bit_xor("xor").alias("xor"), F.sum("sum").alias("sum"))
        questions = questions.groupBy("state", "status", "request_key").agg(*sums, *hashes)
    bounds = [*HISTOGRAM_BOUNDS, None]
    lower = [0, *(bound + 1 for bound in HISTOGRAM_BOUNDS)]
    bins: list[Column] = []
    for low, high in zip(lower, bounds, strict=True):
        inside = todo & (tokens >= low)
        inside = inside if high is None else inside & (tokens <= high)
        bins.append(F.coalesce(F.sum(F.when(inside, num_rows)), F.lit(0)))
    found = questions.groupBy("state", "status").agg(
        F.sum(num_rows),
        F.coalesce(F.sum(F.when(todo, tokens)), F.lit(0)),
        F.bit_xor("xor"),
        F.sum("sum").cast("string"),
        F.count(F.when(todo, True)),
        *bins,
    )
    collected: Sequence[Any] = sorted(found.collect(), key=lambda row: (row[0], row[1] or ""))
    names = [f"<= {bound}" for bound in HISTOGRAM_BOUNDS] + [f"> {HISTOGRAM_BOUNDS[-1]}"]
    return Facts(
        counts={(row[0], row[1]): row[2] for row in collected},
        num_questions=sum(row[6] for row in collected),
        num_prompt_tokens=sum(row[3] for row in collected),
        digest=[f"{row[0]} {row[1]} {row[2]} {row[4]} {row[5]}" for row in collected],
        histogram={name: sum(row[7 + i] for row in collected) for i, name in enumerate(names)},
    )
