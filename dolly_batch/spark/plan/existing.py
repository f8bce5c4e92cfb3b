"""What the output holds already: which rows are answered, which are opened again, and with what they go on.

A row that `--retry` opens keeps its keys, also under a larger `max_new_tokens`; see docs/decisions/0008.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from dolly_batch.config.job import JobConfig
from dolly_batch.spark.files import Files
from dolly_batch.spark.plan.keys import NULL_KEY, content_row_key, request_header, request_key
from dolly_batch.spark.plan.manifest import plan_folders
from dolly_batch.spark.plan.row_status import CARRIED_OVER, EXISTING, SKIPPED, TODO
from dolly_batch.spark.tables.output import OutputTable
from dolly_batch.tasks import KINDS

MAX_EARLIER = 8  # earlier values of max_new_tokens that are looked for; each costs a join
PARTIAL_COLUMNS = ("begun_text", "begun_tokens", "max_new_tokens")


@dataclass(frozen=True)
class Retry:
    """What `--retry` opens: the statuses, and the request headers of earlier runs with a smaller `max_new_tokens`."""

    statuses: tuple[str, ...] = ()
    earlier: tuple[str, ...] = ()

    def resumes_truncated(self, job: JobConfig) -> bool:
        """Whether truncated answers are gone on with, and not begun anew: only generate's are the model's own text."""
        return KINDS[job.task.kind].resumes and "truncated" in self.statuses


def find_retryable(
    job: JobConfig, statuses: tuple[str, ...], identity: str, target: OutputTable, files: Files, work: str
) -> Retry:
    """Find out what rows that are to be opened again may be held under.

    Earlier headers come from the manifests of the plans under `work`, and from the rows themselves: a truncated answer
    of the first attempt has just as many tokens as it was allowed.
    """
    table = target.read() if statuses else None
    if table is None:
        return Retry(statuses)
    limits = {*_planned_limits(request_header(job, identity), files, work)}
    if KINDS[job.task.kind].resumes:
        status, attempt, tokens = (F.col(target.own(n)) for n in ("status", "attempt", "num_completion_tokens"))
        found = table.filter((status == "truncated") & (attempt == 1)).select(tokens).distinct().limit(100).collect()
        limits |= {row[0] for row in found}
    smaller = sorted((limit for limit in limits if limit < job.generation.max_new_tokens), reverse=True)
    return Retry(statuses, tuple(_with_limit(job, identity, limit) for limit in smaller[:MAX_EARLIER]))


def _planned_limits(header: str, files: Files, work: str) -> Iterable[int]:
    """The `max_new_tokens` of plans that asked the same but for it."""
    ours = json.loads(header)
    ours["params"].pop("max_new_tokens", None)
    for folder in plan_folders(files, work):
        plan = folder.plan()
        theirs = json.loads(plan.header) if plan is not None else {}
        limit = theirs.get("params", {}).pop("max_new_tokens", None)
        if limit is not None and theirs == ours:
            yield limit


def _with_limit(job: JobConfig, identity: str, max_new_tokens: int) -> str:
    generation = job.generation.model_copy(update={"max_new_tokens": max_new_tokens})
    return request_header(job.model_copy(update={"generation": generation}), identity)


def with_earlier_keys(keyed: DataFrame, retry: Retry, kept: Sequence[Column], has_ids: bool) -> DataFrame:
    """Add the keys that each row would have under each of the earlier headers."""
    for i, header in enumerate(retry.earlier):
        name = f"earlier_{i}_request_key"
        keyed = keyed.withColumn(name, request_key(header, F.col("instruction"), F.col("context")))
        row_key = F.coalesce("row_key", F.lit(NULL_KEY)) if has_ids else content_row_key(F.col(name), kept)
        keyed = keyed.withColumn(f"earlier_{i}_row_key", row_key)
    return keyed


def with_existing(keyed: DataFrame, target: OutputTable, retry: Retry, max_positions: int) -> DataFrame:
    """Add `state` and `attempt` to rows with keys, by what the output holds; and what a row goes on with.

    A row that the output holds under an earlier header keeps those keys. Of `PARTIAL_COLUMNS`, which are there
    only where answers may be gone on with, `max_new_tokens` is the row's own limit: the job's, or as many again where
    the answer has so many already, and never more than the model has positions for.
    """
    resumes_truncated, job = retry.resumes_truncated(target.job), target.job
    rows, names = _found(keyed, target, retry), [c for c in keyed.columns if not c.startswith("earlier_")]
    status, tokens = F.col("held.status"), F.col("held.num_tokens")
    limit, wanted = F.lit(None).cast("int"), F.lit(job.generation.max_new_tokens)
    begun = F.lit(False)
    if resumes_truncated:
        begun = F.coalesce((status == "truncated") & (tokens > 0) & F.col("held.text").isNotNull(), F.lit(False))
        room = F.lit(max_positions) - F.col("num_prompt_tokens")
        limit = F.when(begun, F.least(F.when(tokens < wanted, wanted).otherwise(tokens + wanted), room))
        # Without a known count of its prompt, or with no position left, a row stays as it is.
        full = begun & ~F.coalesce((limit > tokens) & F.col("num_prompt_tokens").isNotNull(), F.lit(False))
    else:
        full = F.lit(False)
    goes = begun & ~full
    opened = (status.isin(*retry.statuses) if retry.statuses else F.lit(False)) & ~full
    held = status.isNotNull() & ~opened
    # Whether prompt and answer fit is judged by the job's limit; a row that goes on has its own.
    fits = goes & (F.col("status") == "too_long")
    own = {name: F.when(~fits, F.col(name)).alias(name) for name in ("status", "error")} if resumes_truncated else {}
    as_held = F.lit(CARRIED_OVER if job.output.mode == "overwrite" else EXISTING)
    state = F.when(held, as_held).when(F.col("status").isNotNull() & ~fits, SKIPPED).otherwise(TODO)
    more = (F.when(goes & (state == TODO), value) for value in (F.col("held.text"), tokens, limit))
    return rows.select(
        *(own.get(name, F.col(name)) for name in names),
        state.alias("state"),
        (F.coalesce(F.col("held.attempt"), F.lit(0)) + F.lit(1)).alias("attempt"),
        *(value.alias(name) for name, value in zip(PARTIAL_COLUMNS, more, strict=True) if resumes_truncated),
    )


def _found(keyed: DataFrame, target: OutputTable, retry: Retry) -> DataFrame:
    """The rows with `held`, a struct that is null where the output does not hold them."""
    table = target.read()
    if table is None:
        none = "struct<status:string,attempt:int,num_tokens:int,text:string>"
        return keyed.withColumn("held", F.lit(None).cast(none))
    held = target.held(table, with_text=retry.resumes_truncated(target.job))
    rows = keyed.join(held, ["row_key", "request_key"], "left")
    for i in range(len(retry.earlier)):
        keys = [f"earlier_{i}_row_key", f"earlier_{i}_request_key"]
        renamed = zip(("row_key", "request_key", "held"), (*keys, f"earlier_{i}"), strict=True)
        rows = rows.join(held.select(*(F.col(name).alias(new) for name, new in renamed)), keys, "left")
    earlier = range(len(retry.earlier))
    for name in ("row_key", "request_key"):
        under = F.when(F.col("held").isNotNull(), F.col(name))
        for i in earlier:
            under = under.when(F.col(f"earlier_{i}").isNotNull(), F.col(f"earlier_{i}_{name}"))
        rows = rows.withColumn(f"own_{name}", under.otherwise(F.col(name)))
    held_as = F.coalesce("held", *(f"earlier_{i}" for i in earlier))
    taken = [c for c in keyed.columns if not c.startswith("earlier_") and c not in ("row_key", "request_key")]
    own_keys = [F.col(f"own_{name}").alias(name) for name in ("row_key", "request_key")]
    return rows.select(*taken, *own_keys, held_as.alias("held"))
