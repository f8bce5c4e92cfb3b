"""This project's engine, as a host on a Spark executor runs it: a pool of engine processes."""

from collections.abc import Callable
from typing import Any

from benchmarks.contest.work import Row
from dolly_batch.engine.processes.pool import WorkerPool
from dolly_batch.records import Completion, EngineSpec, GenerationParams, Request


def load(setup: dict[str, Any]) -> Callable[[list[Row]], Any]:
    """`setup`: model, processes, threads, and whatever else an EngineSpec takes."""
    spec = EngineSpec(
        kind="fast",
        model_folder=setup["model"],
        dtype=setup.get("dtype", "bfloat16"),
        quantization=setup.get("quantization", "none"),
        processes=setup["processes"],
        num_threads=setup["threads"],
        kv_bytes=setup.get("kv_bytes"),
        prefix_sharing=setup.get("prefix_sharing", True),
    )
    pool = WorkerPool(spec, setup["processes"])
    before: dict[str, float] = {}

    def answer(rows: list[Row]) -> Any:
        for row in rows:
            params = GenerationParams(max_new_tokens=row.num_new_tokens, do_sample=False)
            pool.submit(Request(row.key, row.prompt_ids, params))
        found: list[Completion] = []
        while pool.num_unfinished:
            found += pool.step()  # type: ignore[arg-type]
        failed = [completion.failure for completion in found if completion.failure]
        if failed:
            raise RuntimeError(f"{len(failed)} rows failed, the first by {failed[0]}")
        return [(completion.key, completion.token_ids) for completion in found], _since(before, pool.stats())

    return answer


def _since(before: dict[str, float], now: dict[str, float]) -> dict[str, float]:
    """The counts of one run alone: a pool counts from its start."""
    run = {name: value - before.get(name, 0) for name, value in now.items()}
    run["occupancy"] = run["slot_steps_used"] / run["slot_steps"] if run["slot_steps"] else 1.0
    before.update(now)
    return {**run, "peak_kv_bytes": now["peak_kv_bytes"]}
