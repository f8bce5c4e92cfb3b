"""What a plan says of itself: in the report, before a run, and where it was only counted."""

from dolly_batch.config.job import JobConfig
from dolly_batch.report import Report
from dolly_batch.spark.plan.manifest import Plan
from dolly_batch.spark.plan.sample import least_questions, sample_size
from dolly_batch.spark.tables.output import OutputTable

_WORTH_SAYING = 0.01  # of the prompts


def planned_message(job: JobConfig, plan: Plan) -> str:
    """Of a plan that was only counted."""
    num_todo = plan.num_rows - plan.num_answered_before - plan.num_skipped - plan.num_copied
    different = f" ({num_todo - plan.num_shared:,} different ones)" if plan.num_shared else ""
    message = (
        f"{job.name}: {plan.num_rows:,} input rows, {plan.num_answered_before:,} already answered, "
        f"{_copies(plan)}{plan.num_skipped:,} skipped, {num_todo:,} to answer{different} with {job.model.path} "
        f"({plan.num_prompt_tokens:,} prompt tokens, {plan.slots} slots)"
    )
    max_rows = job.limits.max_rows
    if max_rows is not None and num_todo > max_rows:
        message += f"; `run` will refuse this: limits.max_rows is {max_rows}"
    if note := cascade_note(job, num_todo - plan.num_shared):
        message += f"\n{note}"
    if plan.prefix_share >= _WORTH_SAYING:
        message += f"\nabout {plan.prefix_share:.0%} of the prompts is computed once for rows that begin alike"
    return message


def cascade_note(job: JobConfig, num_questions: int) -> str:
    """What a cascade will do with so many different questions; empty without one."""
    if job.task.cascade is None:
        return ""
    if not (size := sample_size(job, num_questions)):
        least = least_questions(job)
        return f"cascade: the model answers all rows, as there are fewer than {least:,} different texts to answer"
    return (
        f"cascade: the model answers {size:,} rows, by which a proxy is trained and checked; it answers what it can of "
        f"the other {num_questions - size:,}, and the model the rest"
    )


def plan_line(plan: Plan) -> str:
    """Of a plan that is going to run."""
    different = f"{plan.num_todo:,} different ones, " if plan.num_shared else ""
    num_shards = sum(wave.num_shards for wave in plan.waves)
    return (
        f"plan {plan.plan_id}: {plan.num_todo + plan.num_shared:,} rows to answer ({different}"
        f"shards: {num_shards}, waves: {len(plan.waves)}), {plan.num_skipped:,} skipped, "
        f"{_copies(plan)}{plan.num_answered_before:,} already answered"
    )


def fill_plan(report: Report, plan: Plan, target: OutputTable) -> None:
    """Put a plan's numbers into the report of a start."""
    report.plan_id = plan.plan_id
    report.output = target.path or target.job.output.table
    report.model, report.model_revision = plan.model, plan.model_revision
    report.num_input_rows = plan.num_rows
    report.num_held_rows = plan.num_answered_before
    report.num_shared_rows, report.num_copied_rows = plan.num_shared, plan.num_copied
    report.prefix_share = plan.prefix_share
    report.num_prompt_tokens = plan.num_prompt_tokens
    report.num_waves, report.num_shards = len(plan.waves), sum(wave.num_shards for wave in plan.waves)
    report.token_histogram, report.estimated_s = plan.token_histogram, plan.estimated_s


def _copies(plan: Plan) -> str:
    return f"{plan.num_copied:,} copied from equal questions in the output, " if plan.num_copied else ""
