"""One engine, some rows: how long it took, as `benchmarks/gpu/main.py` counts it."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.gpu.answers import stats_of
from benchmarks.gpu.work import Work
from dolly_batch.engine.continuous.engine import ContinuousEngine
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
    open_rows: tuple[tuple[int, int], ...] = ()  # of a cut run, prompt and answer tokens of the rows in flight

    @property
    def tokens_s(self) -> float:
        return (self.answer_tokens + sum(answer for _, answer in self.open_rows)) / self.seconds


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
        _open_rows(engine),
    )


def _since(before: dict[str, float], now: dict[str, float]) -> dict[str, float]:
    """What was counted since; what is no count as it is now."""
    counts = {key for key in now if key.startswith(("num_", "slot_")) or key.endswith("_s")}
    found = {key: round(now[key] - before.get(key, 0) if key in counts else now[key], 3) for key in now}
    if found.get("slot_steps"):
        found["occupancy"] = round(found["slot_steps_used"] / found["slot_steps"], 3)
    return found


def _open_rows(engine: Engine) -> tuple[tuple[int, int], ...]:
    running = engine._scheduler.running if isinstance(engine, ContinuousEngine) else ()
    return tuple((len(row.request.prompt_ids), len(row.token_ids)) for row in running if row.token_ids)


def finished(run: Run, work: Work) -> Work:
    """What a cut run did: about the rows that ended, of their mean lengths, and those in flight as far as they were."""
    if not run.num_rows:
        return Work(run.open_rows) if run.open_rows else work.part(1)
    mean = (run.prompt_tokens // run.num_rows, max(1, run.answer_tokens // run.num_rows))
    return Work((*(mean,) * run.num_rows, *run.open_rows))
