"""One engine, some rows: how long it took, as `benchmarks/gpu/main.py` counts it."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.gpu.answers import stats_of
from benchmarks.gpu.work import Work
from dolly_batch.engine.protocol import Engine
from dolly_batch.records import Completion, Request


@dataclass(frozen=True)
class Run:
    """What one engine did with the rows. `is_cut`: the time was over before all had ended."""

    seconds: float
    num_rows: int
    prompt_tokens: int
    answer_tokens: int
    num_failed: int
    peak_bytes: int
    is_cut: bool
    stats: dict[str, float]

    @property
    def tokens_s(self) -> float:
        return self.answer_tokens / self.seconds


def drive(
    engine: Engine,
    requests: list[Request],
    device: torch.device,
    say: Callable[[str], None],
    ends: float = float("inf"),
) -> Run:
    """Submit everything and step until all have ended, or the time is over."""
    before = stats_of(engine)
    started = told = time.monotonic()
    for request in requests:
        engine.submit(request)
    completions: list[Completion] = []
    while engine.num_unfinished and time.monotonic() < ends:
        completions += [found for found in engine.step() if isinstance(found, Completion)]
        if time.monotonic() - told > 15:
            told = time.monotonic()
            say(f"  {len(completions):,} of {len(requests):,} rows at {told - started:.0f} s")
    taken = time.monotonic() - started
    return Run(
        taken,
        len(completions),
        sum(completion.num_prompt_tokens for completion in completions),
        sum(completion.num_completion_tokens for completion in completions),
        sum(completion.failure is not None for completion in completions),
        torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0,
        engine.num_unfinished > 0,
        _since(before, stats_of(engine)),
    )


def _since(before: dict[str, float], now: dict[str, float]) -> dict[str, float]:
    """What was counted since; what is no count as it is now."""
    counts = {key for key in now if key.startswith(("num_", "slot_")) or key.endswith("_s")}
    found = {key: round(now[key] - before.get(key, 0) if key in counts else now[key], 3) for key in now}
    if found.get("slot_steps"):
        found["occupancy"] = round(found["slot_steps_used"] / found["slot_steps"], 3)
    return found


def finished(run: Run, work: Work) -> Work:
    """About the rows that ended: as many, of the mean lengths of those. What is in flight is not counted."""
    if not run.num_rows:
        return work.part(1)
    return Work(((run.prompt_tokens // run.num_rows, max(1, run.answer_tokens // run.num_rows)),) * run.num_rows)
