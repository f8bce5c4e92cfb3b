"""How fast earlier runs under the same `work_dir` were, against their estimates: `rates.json` there.

A file of its own, so that a plan reads one small file, however many plans there are. It only makes estimates better:
what is torn or unreadable counts as nothing, and of two runs that end at once one may be forgotten.
"""

import contextlib
import json
from typing import Any

from py4j.protocol import Py4JError

from dolly_batch.spark.files import Files
from dolly_batch.spark.plan.manifest import Plan

RATES = "rates.json"
START_S = {"echo": 1.0, "cpu": 10.0, "cuda": 40.0}
"""Until an engine host answers its first row: imports, kernels, weights. Rough, and no part of a rate."""
MIN_QUESTIONS = 100  # fewer say more of the start than of the rate
_BOUNDS = (1e-3, 1e4)


def rate_name(header: str, device: str) -> str:
    """What a rate depends on: the model, its weights' type and its keys', the kind of task, and the device."""
    request: dict[str, Any] = json.loads(header)
    parts = [request["task"], request["model"][:16], request["quantization"], request["engine"], device]
    return "/".join([*parts, *([request["kv_dtype"]] if "kv_dtype" in request else [])])


def measured_factor(files: Files, work: str, name: str) -> float:
    """By how much longer than estimated the last run took; 1 where there was none."""
    found = _read(files, work).get(name, 1.0)
    return float(found) if isinstance(found, int | float) and _BOUNDS[0] <= found <= _BOUNDS[1] else 1.0


def remember(files: Files, work: str, plan: Plan, device: str, seconds: float) -> None:
    """Keep how long a run that was not resumed took to answer; one of few questions, or with a proxy, says nothing."""
    if plan.num_todo < MIN_QUESTIONS or plan.estimated_s <= 0 or plan.num_sample_waves:
        return
    took = max(seconds - START_S[device], seconds / 10)
    factor = min(max((plan.rate_factor or 1.0) * took / plan.estimated_s, _BOUNDS[0]), _BOUNDS[1])
    rates = {**_read(files, work), rate_name(plan.header, device): round(factor, 4)}
    with contextlib.suppress(OSError, Py4JError):
        files.write(f"{work}/{RATES}", json.dumps(rates, indent=1, sort_keys=True))


def _read(files: Files, work: str) -> dict[str, Any]:
    try:
        found = json.loads(files.read(f"{work}/{RATES}") or "{}")
    except (ValueError, OSError, Py4JError):
        return {}
    return found if isinstance(found, dict) else {}
