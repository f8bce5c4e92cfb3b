"""The status of each row before any model runs: runnable, or skipped with a status; and the counts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from dolly_batch.spark.plan.keys import NULL_KEY
from dolly_batch.spark.plan.token_counts import count_tokens, cut_to_fit
from dolly_batch.tasks.base import PreparedTask
from dolly_batch.tasks.blank import BLANK_TEXT
from dolly_batch.tasks.truncate import Side

# State of a row: to be answered; skipped, with a status; existing in the output; or carried over into a new output.
# The values are on disk, in snapshots and in plan ids.
TODO, SKIPPED, EXISTING, CARRIED_OVER = "todo", "aside", "held", "reused"

# A text with more characters than this times the limit cannot fit, whatever its tokens; it is judged by the JVM, so
# that a cell of megabytes never reaches a Python worker.
CHARACTERS_PER_TOKEN_AT_MOST = 512
# What is to be cut, or split, may be longer: this many characters, so that a worker's memory holds it.
CHARACTERS_AT_MOST = 1 << 28

HISTOGRAM_BOUNDS = (32, 64, 128, 256, 512, 1024, 2048)


def assign_status(
    rows: DataFrame, model_folder: str, max_positions: int, prepared: PreparedTask, long_prompt: Side | Literal["error"]
) -> DataFrame:
    """Add `status`, `error`, `num_prompt_tokens` and `num_dropped_tokens` to rows of row_key, values and context.

    `values`, the array of what stands in the instruction's template, becomes `instruction`. `status` is null for a row
    that can run. A prompt too long for the model's positions, with what follows it, is `too_long`, or cut by
    `long_prompt`: instruction and context are then what is left of them.
    """
    literals, fitted = prepared.literals, long_prompt != "error" and not prepared.any_length
    texts = [F.lit(literals[0]), *(p for i, text in enumerate(literals[1:]) for p in (F.col("values")[i], F.lit(text)))]
    rows = rows.withColumn("instruction", F.concat(*texts))
    subject = F.col("text" if prepared.reads_text else "instruction")
    limit = max_positions - prepared.num_reserved
    most = CHARACTERS_AT_MOST if fitted or prepared.any_length else max_positions * CHARACTERS_PER_TOKEN_AT_MOST
    # Blank is what the row itself brings; template and examples stand around it in every row.
    own = F.col("text") if prepared.reads_text else F.concat_ws("", "values")
    rows = rows.withColumn("fault", _fault(subject, own, most))
    runs = F.col("fault").isNull()
    # Nulls for the rows that cannot run: no bad byte and no cell of megabytes reaches a Python worker.
    context = F.when(runs, F.col("context"))
    if long_prompt != "error" and fitted:
        cut = cut_to_fit(model_folder, limit, literals, long_prompt)
        rows = rows.withColumn("count", cut(F.when(runs, F.col("values")), context))
    else:
        counted = count_tokens(model_folder, CHARACTERS_AT_MOST if prepared.any_length else max_positions)
        rows = rows.withColumn("count", counted(F.when(runs, F.col("instruction")), context))
    was_cut = F.coalesce(F.col("count.num_dropped") > 0, F.lit(False)) if fitted else F.lit(False)
    tokens = F.col("count.num_tokens")
    over = F.lit(False) if prepared.any_length else runs & (tokens > limit)
    too_long = over | (F.col("fault") == "too_long")
    exact = ~F.coalesce(F.col("count.is_bound"), F.lit(True))
    number = F.when(exact, tokens.cast("string")).otherwise(F.lit(f"more than {max_positions}"))
    message = F.concat(
        F.lit("the prompt has "),
        number,
        F.lit(f" tokens; with {prepared.num_reserved} new ones that exceeds the model's {max_positions} positions"),
    )
    dropped = ("fault", "count", "values", "text", "instruction", "context")
    return rows.select(
        *(c for c in rows.columns if c not in dropped),
        *(_cut_text(name, was_cut) if fitted else F.col(name) for name in ("instruction", "context")),
        F.when(too_long, F.lit("too_long")).otherwise(F.col("fault")).alias("status"),
        F.when(too_long, message)
        .when(F.col("fault") == "bad_encoding", F.lit("the text is not valid UTF-8"))
        .alias("error"),
        F.when(exact, tokens).alias("num_prompt_tokens"),
        F.when(was_cut, F.col("count.num_dropped") if fitted else F.lit(0)).otherwise(0).alias("num_dropped_tokens"),
    )


def _cut_text(name: str, was_cut: Column) -> Column:
    return F.when(was_cut, F.col(f"count.{name}")).otherwise(F.col(name)).alias(name)


def _fault(subject: Column, own: Column, max_chars: int) -> Column:
    """The status of a row that cannot run, as far as the JVM can tell; null for one that may.

    `subject` is what is asked, which must not be null; `own` the part of it that is the row's, which must not be blank.
    """
    instruction, context, key = F.col("instruction"), F.col("context"), F.col("row_key")
    valid = F.is_valid_utf8(instruction) & F.coalesce(F.is_valid_utf8(context), F.lit(True))
    valid = valid & F.coalesce(F.is_valid_utf8(key), F.lit(True))
    num_chars = F.length(instruction) + F.coalesce(F.length(context), F.lit(0))
    return (
        F.when(subject.isNull(), "null_instruction")
        .when(~valid, "bad_encoding")
        .when(num_chars > max_chars, "too_long")
        .when(own.rlike(BLANK_TEXT), "empty_instruction")
    )


def mark_bad_ids(keyed: DataFrame) -> DataFrame:
    """Rows of a null or repeated id get the status `duplicate_id`, all of them, since none is better than the others."""
    repeated = (
        keyed.groupBy("row_key").count().filter(F.col("count") > 1).select("row_key", F.lit(True).alias("repeated"))
    )
    marked = keyed.join(repeated, "row_key", "left")
    bad = F.col("row_key").isNull() | F.col("repeated").isNotNull()
    return marked.select(
        *(c for c in keyed.columns if c not in ("row_key", "status", "error")),
        F.coalesce(F.col("row_key"), F.lit(NULL_KEY)).alias("row_key"),
        F.when(bad, "duplicate_id").otherwise(F.col("status")).alias("status"),
        F.when(F.col("row_key").isNull(), "the id is null")
        .when(bad, "the id occurs more than once")
        .otherwise(F.col("error"))
        .alias("error"),
    )


@dataclass(frozen=True)
class Facts:
    """Counts, tokens and a hash of the rows with their states; independent of their order."""

    counts: dict[tuple[str, str | None], int]
    num_prompt_tokens: int
    digest: list[str]
    histogram: dict[str, int]

    def num(self, state: str) -> int:
        """Rows in a state."""
        return sum(count for (found, _), count in self.counts.items() if found == state)


def read_facts(rows: DataFrame) -> Facts:
    """Count rows with a state, and hash them."""
    todo = F.col("state") == TODO
    limit = [name for name in ("max_new_tokens",) if name in rows.columns]
    hashed = F.xxhash64("row_key", "request_key", "attempt", "state", *limit)
    bounds = [*HISTOGRAM_BOUNDS, None]
    lower = [0, *(bound + 1 for bound in HISTOGRAM_BOUNDS)]
    bins: list[Column] = []
    for low, high in zip(lower, bounds, strict=True):
        inside = todo & (F.col("num_prompt_tokens") >= low)
        inside = inside if high is None else inside & (F.col("num_prompt_tokens") <= high)
        bins.append(F.count(F.when(inside, True)))
    found = rows.groupBy("state", "status").agg(
        F.count("*"),
        F.coalesce(F.sum(F.when(todo, F.col("num_prompt_tokens"))), F.lit(0)),
        F.bit_xor(hashed),
        F.sum(hashed.cast("decimal(38,0)")).cast("string"),
        *bins,
    )
    collected: Sequence[Any] = sorted(found.collect(), key=lambda row: (row[0], row[1] or ""))
    names = [f"<= {bound}" for bound in HISTOGRAM_BOUNDS] + [f"> {HISTOGRAM_BOUNDS[-1]}"]
    return Facts(
        counts={(row[0], row[1]): row[2] for row in collected},
        num_prompt_tokens=sum(row[3] for row in collected),
        digest=[f"{row[0]} {row[1]} {row[2]} {row[4]} {row[5]}" for row in collected],
        histogram={name: sum(row[6 + i] for row in collected) for i, name in enumerate(names)},
    )
