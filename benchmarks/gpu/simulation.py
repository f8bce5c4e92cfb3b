"""The real engine at real sizes without a forward: which rows run together, for how many steps, over which pages.

Scheduler, pages and the engine's loop are the product's own; weights, keys and values are on torch's meta device, which
has shapes and no memory. Each row ends by itself at its length, as a job's rows do, or at `max_new_tokens`. A fault is
raised where a launch would raise it.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from benchmarks.gpu.work import Shape, Work, random_model
from dolly_batch.engine.continuous.cache import CacheShape
from dolly_batch.engine.continuous.gpu.engine import GPU_LIMITS, GpuEngine, InFlightStep
from dolly_batch.engine.continuous.gpu.pages import Pages
from dolly_batch.engine.continuous.sequence import Step
from dolly_batch.records import Completion, GenerationParams

_META = torch.device("meta")
_END, _OTHER = 0, 5


@dataclass(frozen=True, slots=True)
class SimulatedStep:
    """One launched step: rows that decoded, the keys they read, and the tokens and pairs of its prompts."""

    num_rows: int
    num_keys: int
    num_long: int  # of the rows, those whose keys are read in more than one part
    num_prompt_tokens: int
    num_pairs: int  # of a prompt's token and one that it sees
    num_prompts: int


@dataclass
class Simulation:
    """What a run did. `host_s` is the time of Python for all steps: the GPU's work hides it or not."""

    steps: list[SimulatedStep] = field(default_factory=list)
    completions: list[Completion] = field(default_factory=list)
    stats: dict[str, float] = field(default_factory=dict)
    host_s: float = 0.0

    @property
    def mean_rows(self) -> float:
        """Rows in flight, as an answer token meets them on average."""
        tokens = sum(step.num_rows for step in self.steps)
        return sum(step.num_rows**2 for step in self.steps) / max(1, tokens)


class _Tokens:
    """Tokens that have arrived."""

    waited_s = 0.0

    def __init__(self, token_ids: list[int]) -> None:
        self._token_ids = token_ids

    def wait(self) -> list[int]:
        return self._token_ids


class _Instant:
    def since(self, earlier: "_Instant") -> float:
        return 0.0


class SimulatedEngine(GpuEngine):
    """The GPU's engine, whose launches only take notes. `fault` is called with each step and may raise."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.simulation = Simulation()
        self.lengths: dict[str, int] = {}
        self.fault: Callable[[Step, int], None] = lambda step, number: None
        self.num_launches = 0
        self._scheduler._stop_ids = {_END}

    def _launch(self, step: Step) -> InFlightStep:
        self.num_launches += 1
        self._pages._unwritten.clear()
        self.fault(step, self.num_launches)
        chunks = [chunk for chunk in step.chunks if chunk.stop > chunk.start]
        sequences = [*step.decoding, *(chunk.sequence for chunk in chunks if chunk.is_last)]
        keys = [sequence.num_cached + 1 for sequence in step.decoding]
        self.simulation.steps.append(
            SimulatedStep(
                len(keys),
                sum(keys),
                sum(num > 512 for num in keys),
                sum(chunk.stop - chunk.start for chunk in chunks),
                sum((chunk.stop - chunk.start) * (chunk.stop + chunk.start + 1) // 2 for chunk in chunks),
                len(chunks),
            )
        )
        tokens = [
            _END if sequence.num_answer_tokens >= self.lengths[sequence.request.key] else _OTHER
            for sequence in sequences
        ]
        instants: Any = [_Instant()] * 4
        arrived: Any = _Tokens(tokens)
        return InFlightStep(sequences, arrived, instants)


def simulate(
    shape: Shape,
    work: Work,
    kv_bytes: float,
    *,
    max_new_tokens: int | None = 256,
    max_sequences: int = 1024,
    step_tokens: int = GPU_LIMITS.step_tokens,
    admit_every: int = GPU_LIMITS.admit_every,
    kv_item_bytes: float = 2,
    fault: Callable[[Step, int], None] | None = None,
    max_steps: int = 2**60,
) -> Simulation:
    """Run the rows with so many bytes of keys and values; `max_new_tokens` None: each row's limit is its own length."""
    loaded = random_model(shape, _META, torch.bfloat16)
    cache = CacheShape.of(loaded)
    # One page's bytes are those of two-byte numbers: a smaller key counts as more memory.
    budget = int(kv_bytes * cache.dtype.itemsize / kv_item_bytes)
    pages = Pages(cache, budget, max_sequences=max_sequences, max_positions=shape.max_positions)
    limits = replace(GPU_LIMITS, step_tokens=step_tokens, admit_every=admit_every)
    engine = SimulatedEngine(loaded, pages, max_sequences=max_sequences, limits=limits)
    engine.fault = fault or engine.fault
    for request, length in _requests(work, shape, max_new_tokens):
        engine.lengths[request.key] = length
        engine.submit(request)
    started = time.perf_counter()
    simulation = engine.simulation
    while engine.num_unfinished and len(simulation.steps) < max_steps:
        simulation.completions += [found for found in engine.step() if isinstance(found, Completion)]
    simulation.host_s = time.perf_counter() - started
    simulation.stats = engine.stats()
    return simulation


def _requests(work: Work, shape: Shape, max_new_tokens: int | None) -> Sequence[Any]:
    found = []
    for request in work.requests(shape.vocab_size, sampled=False):
        own = request.params.max_new_tokens
        length = own if max_new_tokens is None else min(own, max_new_tokens)
        params = GenerationParams(max_new_tokens=max_new_tokens or own, do_sample=False)
        ids = tuple(token_id + 1 if token_id == _END else token_id for token_id in request.prompt_ids)
        found.append((replace(request, prompt_ids=ids, params=params), length - (length < params.max_new_tokens)))
    return found
