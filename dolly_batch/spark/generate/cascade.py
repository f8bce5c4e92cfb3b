"""On the driver, between the sample of a cascade and the other rows: the proxy is found, or trained and kept.

The first start that has the whole sample trains it. It is kept by one rename onto a name that is free, so that every
later start, and one that was suspended meanwhile, goes on with the same proxy.
"""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from dolly_batch.cascade.bounds import has_fallen
from dolly_batch.cascade.proxy import Proxy
from dolly_batch.cascade.training import Example, train
from dolly_batch.config.job import JobConfig
from dolly_batch.console import say
from dolly_batch.errors import Stopped
from dolly_batch.spark.decisions import TODO
from dolly_batch.spark.plan.manifest import COMPLETE, PROXY, Plan, PlanFolder, Wave, plans_under
from dolly_batch.spark.plan.questions import GOLD
from dolly_batch.spark.plan.snapshot import read_part


def find_proxy(job: JobConfig, folder: PlanFolder, plan: Plan, staged: DataFrame, check: Callable[[], None]) -> Proxy:
    """The proxy of a plan whose sample is answered; `staged` are the answers to it, `check` raises for a lost lock.

    Raises Stopped where the one that is there cannot be read.
    """
    if (kept := kept_proxy(folder)) is not None:
        return kept
    examples = _examples(folder, plan, staged)
    cascade, labels = job.task.cascade, [*asdict(job.task)["labels"]]
    against_gold = cascade.gold is not None
    proxy = train(examples, labels, cascade.agreement, job.generation.seed, against_gold=against_gold)
    proxy.facts["drift"] = _drift(job, folder, plan, examples)
    check()
    draft = folder.of("staging", f".proxy.{uuid.uuid4().hex[:12]}")
    folder.files.write(draft, proxy.to_text())
    if not folder.files.rename(draft, folder.of(PROXY)):
        folder.files.delete(draft)
    check()  # where another start has kept its own, it may have finished the plan too
    kept = kept_proxy(folder)
    if kept is None:
        raise Stopped(f"{folder.of(PROXY)} has gone while it was written; run the same command to resume")
    say(_summary(kept, cascade.agreement))
    return kept


def kept_proxy(folder: PlanFolder) -> Proxy | None:
    """The proxy of a plan, None before it is trained. Raises Stopped for one that cannot be read."""
    text = folder.files.read(folder.of(PROXY))
    try:
        return None if text is None else Proxy.from_text(text)
    except Stopped as error:
        raise Stopped(
            f"{folder.of(PROXY)} cannot be read: {error}. Delete it, and run the same command: it is trained again, on "
            "the same rows; or close the plan with --abandon"
        ) from error


def cascade_facts(folder: PlanFolder) -> dict[str, Any]:
    """How the plan's proxy was trained and checked, with its hash; empty where there is none."""
    proxy = kept_proxy(folder)
    return {} if proxy is None else {"proxy_hash": proxy.hash, **proxy.facts}


def _examples(folder: PlanFolder, plan: Plan, staged: DataFrame) -> list[Example]:
    """The sample's rows that the model gave an answer to, in the order of their keys."""
    keys = ["row_key", "request_key"]
    todo = read_part(staged.sparkSession, folder.files, folder.of("snapshot", TODO))
    todo = todo if GOLD in todo.columns else todo.withColumn(GOLD, F.lit(None).cast("string"))
    asked = todo.filter(F.col("wave") < plan.num_sample_waves).select(*keys, "context", GOLD)
    answered = staged.filter(F.col("status") == "ok").select(*keys, "response")
    rows: list[Any] = asked.join(answered, keys).orderBy("request_key").collect()
    return [Example(row.context or "", row.response, row.gold) for row in rows]


def sampled(plan: Plan) -> list[Wave]:
    """The waves of the sample."""
    return [wave for wave in plan.waves if wave.number < plan.num_sample_waves]


def _drift(job: JobConfig, folder: PlanFolder, plan: Plan, examples: Sequence[Example]) -> dict[str, Any] | None:
    """How the proxy of the job's last finished run does on this run's sample; None without one that asked the same."""
    earlier = _last_proxy(folder, plan)
    if earlier is None:
        return None
    cascade, (plan_id, proxy) = job.task.cascade, earlier
    known = [example for example in examples if cascade.gold is None or example.gold is not None]
    answers = zip(known, proxy.answers([example.text for example in known]), strict=True)
    agrees = [example.truth(cascade.gold is not None) == answer.label for example, answer in answers if answer]
    fallen = has_fallen(len(agrees), sum(agrees), cascade.agreement)
    if fallen:
        say(
            f"cascade: the table has changed since plan {plan_id}: its proxy would now agree on {sum(agrees):,} of the "
            f"{len(agrees):,} sampled rows that it answers. This run's proxy is trained on this run's rows"
        )
    return {"plan_id": plan_id, "num_answered": len(agrees), "num_agreeing": sum(agrees), "has_fallen": fallen}


def _last_proxy(folder: PlanFolder, plan: Plan) -> tuple[str, Proxy] | None:
    work = folder.path.rpartition("/")[0]
    plans = [
        (other.created_at, other.plan_id, place)
        for place, other in plans_under(folder.files, work)
        if (other.name, other.header) == (plan.name, plan.header) and place.has(COMPLETE) and place.has(PROXY)
    ]
    if not plans:
        return None
    _, plan_id, place = max(plans, key=lambda found: found[:2])
    try:
        proxy = kept_proxy(place)
    except Stopped:
        return None
    return None if proxy is None else (plan_id, proxy)


def _summary(proxy: Proxy, agreement: float) -> str:
    facts = proxy.facts
    if not proxy.answers_any:
        return (
            f"cascade: by the {facts['num_checked']:,} rows that it was checked on, no answers of the proxy are shown "
            f"to agree in {agreement:.1%}: the model answers all rows"
        )
    return (
        f"cascade: a proxy was trained on {facts['num_training']:,} rows; of {facts['num_checked']:,} others it "
        f"answers {facts['num_answered']:,}, and agrees on {facts['num_agreeing']:,} of those"
    )
