"""Stage 2 of planning: match input rows with the rows that the output holds: done, to retry, or to resume.

A row that is retried keeps its keys, also under a larger `max_new_tokens`; see docs/decisions/0008.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from dolly_batch.config.job import JobConfig
from dolly_batch.errors import OutputError
from dolly_batch.spark.decisions import ASKED, CARRIED_OVER, DONE, EXISTING, TODO
from dolly_batch.spark.files import Files
from dolly_batch.spark.plan.keys import (
    NULL_KEY,
    content_row_key,
    kept_values_hash,
    numbered_key,
    request_header,
    request_key,
    shown_ids,
)
from dolly_batch.spark.plan.manifest import plans_under
from dolly_batch.spark.tables.columns import ColumnRef, quoted_path
from dolly_batch.spark.tables.output import OutputTable
from dolly_batch.tasks import KINDS

MAX_EARLIER = 8  # earlier values of max_new_tokens that rows are looked up under; each costs a join
KEYS = ("row_key", "request_key")
PARTIAL_COLUMNS = ("begun_text", "begun_tokens", "max_new_tokens")


@dataclass(frozen=True)
class Retry:
    """What `--retry` asks again: statuses, and request headers of earlier runs with a smaller `max_new_tokens`."""

    statuses: tuple[str, ...] = ()
    earlier: tuple[str, ...] = ()

    def resumes_truncated(self, job: JobConfig) -> bool:
        """Whether truncated answers are resumed, not restarted: only where the answer is the model's own text."""
        return KINDS[job.task.kind].resumes and "truncated" in self.statuses


def find_retryable(
    job: JobConfig, statuses: tuple[str, ...], identity: str, target: OutputTable, files: Files, work: str
) -> Retry:
    """Find the earlier request headers under which the output may hold rows that are to be retried.

    They come from the manifests of the plans under `work`, and from the rows themselves: a truncated answer of the
    first attempt has exactly as many tokens as it was allowed.
    """
    table = target.read() if statuses else None
    if table is None:
        return Retry(statuses)
    limits = {*_planned_limits(request_header(job, identity), files, work)}
    if KINDS[job.task.kind].resumes:
        names = ("status", "attempt", "num_completion_tokens")
        status, attempt, tokens = (F.col(quoted_path(target.output_name(n))) for n in names)
        counts = table.filter((status == "truncated") & (attempt == 1)).select(tokens).distinct().limit(100).collect()
        limits |= {row[0] for row in counts}
    smaller = sorted((limit for limit in limits if limit < job.generation.max_new_tokens), reverse=True)
    return Retry(statuses, tuple(_with_limit(job, identity, limit) for limit in smaller[:MAX_EARLIER]))


def _planned_limits(header: str, files: Files, work: str) -> Iterable[int]:
    """The `max_new_tokens` of plans that differ in nothing else."""
    ours = json.loads(header)
    ours["params"].pop("max_new_tokens", None)
    for _, plan in plans_under(files, work):
        theirs = json.loads(plan.header)
        limit = theirs.get("params", {}).pop("max_new_tokens", None)
        if limit is not None and theirs == ours:
            yield limit


def _with_limit(job: JobConfig, identity: str, max_new_tokens: int) -> str:
    generation = job.generation.model_copy(update={"max_new_tokens": max_new_tokens})
    return request_header(job.model_copy(update={"generation": generation}), identity)


def with_earlier_keys(keyed: DataFrame, retry: Retry, kept: Sequence[ColumnRef], has_ids: bool) -> DataFrame:
    """Add the keys that each row would have under each of the earlier headers."""
    for i, header in enumerate(retry.earlier):
        name = f"earlier_{i}_request_key"
        keyed = keyed.withColumn(name, request_key(header, F.col("instruction"), F.col("context")))
        row_key = F.coalesce("row_key", F.lit(NULL_KEY)) if has_ids else content_row_key(F.col(name), kept)
        keyed = keyed.withColumn(f"earlier_{i}_row_key", row_key)
    return keyed


def with_existing(
    keyed: DataFrame, found: DataFrame | None, target: OutputTable, retry: Retry, max_positions: int
) -> DataFrame:
    """Add `state` and `attempt` to keyed rows, and to those that are resumed what they resume. Is a row asked again?

    `found` has the output's rows, as `OutputTable.key_rows` gives them; None without an output.

        in the output                                 the row can run | is too_long | has another status
        ------------------------------------------------------------------------------------------------
        not there                                     todo              skipped       skipped
        with a status that is not retried             done              done          done
        with a retried status, no tokens to reuse     todo (retried)    skipped       skipped
        truncated and retried, positions are left     todo (resumed)    todo          skipped
        truncated and retried, no position is left    done              done          done

    `done` is EXISTING, or CARRIED_OVER where the output is overwritten. Tokens are reused where `retry` resumes
    truncated answers. A resumed row has a limit of its own: that it is too long with the job's limit does not matter.

    `attempt` is one more than the output's. A row that is there under an earlier header keeps those keys. The
    PARTIAL_COLUMNS are added only where answers may be resumed. `max_new_tokens` is then the row's limit: the job's;
    for an answer that has so many tokens already, as many again; and never more than the model has positions for.
    """
    resumes, job = retry.resumes_truncated(target.job), target.job
    existing, status = F.col("existing"), F.col("status")
    resumable, full, limit = F.lit(False), F.lit(False), F.lit(None).cast("int")
    if resumes:
        resumable, full, limit = _partial_answer(existing, job.generation.max_new_tokens, max_positions)
    asked = ASKED.column(
        there=existing["status"].isNotNull(),
        retried=existing["status"].isin(*retry.statuses) if retry.statuses else F.lit(False),
        full=full,
        resumable=resumable,
        runs=status.isNull(),
        too_long=status == "too_long",
    )
    done = CARRIED_OVER if job.output.mode == "overwrite" else EXISTING
    state = F.when(asked == DONE, done).otherwise(asked)
    fits_resumed = resumable & F.coalesce(status == "too_long", F.lit(False))
    partial = (existing["text"], existing["num_tokens"], limit)
    return _matched(keyed, found, target.job, retry).select(
        *(
            F.when(~fits_resumed, F.col(name)).alias(name) if resumes and name in ("status", "error") else F.col(name)
            for name in keyed.columns
            if not name.startswith("earlier_")
        ),
        state.alias("state"),
        (F.coalesce(existing["attempt"], F.lit(0)) + F.lit(1)).alias("attempt"),
        *(
            F.when(resumable & (state == TODO), value).alias(name)
            for name, value in zip(PARTIAL_COLUMNS, partial, strict=True)
            if resumes
        ),
    )


def _partial_answer(existing: Column, max_new_tokens: int, max_positions: int) -> tuple[Column, Column, Column]:
    """Whether a truncated answer can be resumed, whether it has no position left, and its new limit."""
    num_tokens, num_prompt_tokens, wanted = existing["num_tokens"], F.col("num_prompt_tokens"), F.lit(max_new_tokens)
    has_tokens = (existing["status"] == "truncated") & (num_tokens > 0) & existing["text"].isNotNull()
    has_tokens = F.coalesce(has_tokens, F.lit(False))
    longer = F.when(num_tokens < wanted, wanted).otherwise(num_tokens + wanted)
    limit = F.when(has_tokens, F.least(longer, F.lit(max_positions) - num_prompt_tokens))
    # A prompt of unknown length leaves no position that one could be sure of.
    has_room = F.coalesce((limit > num_tokens) & num_prompt_tokens.isNotNull(), F.lit(False))
    return has_tokens & has_room, has_tokens & ~has_room, limit


def _latest(found: DataFrame, numbered: bool) -> DataFrame:
    """(row_key, request_key, existing) of the output's rows, one each, the latest attempt where there are several.

    With `numbered`, rows of equal keys, as earlier versions have written them for repeated ids, are there once for
    each, under the keys that `numbered_key` gives them.
    """
    existing = F.struct("attempt", "status", "num_tokens", "text")
    rows = found.groupBy(*KEYS).agg(F.max(existing).alias("existing"), F.count("*").alias("count"))
    if not numbered:
        return rows.drop("count")
    rows = rows.withColumn("number", F.explode(F.sequence(F.lit(1), F.col("count").cast("int"))))
    key = numbered_key(F.col("request_key"), F.col("number")).alias("request_key")
    return rows.select("row_key", key, "existing")


def _matched(keyed: DataFrame, found: DataFrame | None, job: JobConfig, retry: Retry) -> DataFrame:
    """The rows with `existing`, a struct that is null where the output does not hold them, and its keys if it does."""
    if found is None:
        none = "struct<status:string,attempt:int,num_tokens:int,text:string>"
        return keyed.withColumn("existing", F.lit(None).cast(none))
    numbered = job.input.on_bad_id == "status" and job.output.mode != "overwrite"
    answers = _latest(found, numbered)
    rows = keyed.join(answers, [*KEYS], "left")
    earlier = [f"earlier_{i}" for i in range(len(retry.earlier))]
    for name in earlier:
        keys = [f"{name}_{key}" for key in KEYS]
        rows = rows.join(answers.toDF(*keys, name), keys, "left")

    def key_in_output(key: str) -> Column:
        column = F.when(F.col("existing").isNotNull(), F.col(key))
        for name in earlier:
            column = column.when(F.col(name).isNotNull(), F.col(f"{name}_{key}"))
        return column.otherwise(F.col(key)).alias(key)

    others = [name for name in keyed.columns if not name.startswith("earlier_") and name not in KEYS]
    return rows.select(*others, *map(key_in_output, KEYS), F.coalesce("existing", *earlier).alias("existing"))


def check_row_keys(target: OutputTable, found: DataFrame | None) -> None:
    """Raise OutputError for `merge` where a row key is `found` twice: the new row would replace both rows."""
    if found is None or target.job.output.mode != "merge":
        return
    repeated = found.groupBy("row_key").count().filter(F.col("count") > 1).orderBy("row_key").limit(3).collect()
    if repeated:
        shown = shown_ids(map(tuple, repeated), max(1, target.num_ids))
        raise OutputError(
            f"output {target.job.output.name}: mode merge needs one row for each id, and the table holds {shown}; "
            "use mode append, or delete the older rows first"
        )


def is_up_to_date(rows: DataFrame, target: OutputTable) -> bool:
    """Whether the output already is what a plan would make of it whose `rows` all are there: nothing is left to do.

    That takes a comparison where the output is overwritten: rows of the input may be gone, kept columns changed.
    """
    table = target.read()
    if table is None or target.job.output.mode != "overwrite":
        return table is not None
    kept = [
        ColumnRef(F.col(f"keep_{i}"), f"keep_{i}", target.schema[name].dataType)
        for i, name in enumerate(target.kept_names)
    ]
    in_output = table.select(
        target.row_key().alias("row_key"),
        F.col(quoted_path(target.output_name("request_key"))).alias("request_key"),
        *(F.col(quoted_path(name)).alias(ref.name) for name, ref in zip(target.kept_names, kept, strict=True)),
    )
    kept_hash = kept_values_hash(kept).alias("kept")
    new, old = (side.select(*KEYS, kept_hash) for side in (rows, in_output))
    tagged = new.withColumn("side", F.lit(1)).unionByName(old.withColumn("side", F.lit(-1)))
    difference = tagged.groupBy(*KEYS, "kept").agg(F.sum("side").alias("side")).filter(F.col("side") != 0)
    return difference.isEmpty()
