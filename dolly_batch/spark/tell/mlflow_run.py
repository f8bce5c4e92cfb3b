"""A complete run as a run of MLflow: parameters, metrics, the report and its page, the version of the input.

Where it goes is MLflow's business: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME and the like, or the workspace's own.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from dolly_batch.page.pages import plan_page
from dolly_batch.report import PlanReport, num_new_tokens

MAX_PARAM = 500
"""Letters of a value, the least that any version of MLflow takes."""


def log_run(plan: PlanReport, input_version: int | None) -> str:
    """Log a run that is complete, and return its id. Raises whatever MLflow does."""
    import mlflow

    # A notebook may have a run of its own open, which this one then is a part of.
    is_part = mlflow.active_run() is not None
    with mlflow.start_run(run_name=f"{plan.name} {plan.plan_id[:8]}", nested=is_part) as run:
        mlflow.set_tags({f"dolly_batch.{name}": value for name, value in plan.report.get("tags", {}).items()})
        mlflow.log_params(parameters(plan, input_version))
        mlflow.log_metrics(metrics(plan.report))
        mlflow.log_text(json.dumps(plan.report, indent=1, sort_keys=True), "report.json")
        mlflow.log_text(plan_page(plan), "report.html")
        return str(run.info.run_id)


def parameters(plan: PlanReport, input_version: int | None) -> dict[str, str]:
    """What ran, as `details.json` has it, by dotted names."""
    ran: Mapping[str, Mapping[str, Any]] = plan.details.get("ran", {})
    found = {f"{part}.{name}": value for part, values in ran.items() for name, value in values.items()}
    found |= {"job": plan.name, "plan_id": plan.plan_id, "input.version": input_version}
    return {name: str(value)[:MAX_PARAM] for name, value in found.items() if value not in (None, "")}


def metrics(report: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of the report: those at its top, rows by status, seconds by step, and the speeds they make."""
    found = {name: float(value) for name, value in report.items() if _is_number(value) and name != "exit_code"}
    for part in ("by_status", "seconds", "answered_by", "checks"):
        found |= {f"{part}.{name}": float(value) for name, value in report.get(part, {}).items()}
    return {**found, **dict(_speeds(report))}


def _speeds(report: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    generate_s = report.get("seconds", {}).get("generate")
    if not generate_s or report.get("num_resumed_waves"):  # the earlier starts' time is not in the report
        return
    asked = report.get("num_answered_by_model", 0) + report.get("num_answered_by_proxy", 0)
    yield "rows_per_s", asked / generate_s
    yield "tokens_per_s", num_new_tokens(report) / generate_s


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
