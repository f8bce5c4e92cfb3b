"""The continuous engine: every step schedules, runs and samples; a row leaves the moment it ends and the next takes its slot.

Prompts are fed in without padding, packed behind the decoding rows' tokens; modules are Hugging Face's own, attention
is the cache's (`cache.py`). A row's answer depends on its prompt, seed and parameters alone, not on its neighbours.
"""

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf

import torch
from torch import Tensor

from dolly_batch.engine.base import ModelEngine, no_memory
from dolly_batch.engine.continuous.cache import Cache, install
from dolly_batch.engine.continuous.scheduler import CPU_PACE, MAX_ROWS, Pace, Schedule
from dolly_batch.engine.continuous.sequence import Sequence, Step
from dolly_batch.engine.grammar import Constraint
from dolly_batch.engine.memory import OUT_OF_MEMORY, allocator_errors
from dolly_batch.engine.protocol import no_heartbeat
from dolly_batch.engine.sampler import next_tokens
from dolly_batch.engine.weights.loading import LoadedModel
from dolly_batch.records import Request

_ROWS_STEP = 8  # products of fewer rows, or of an odd number in float64, give other bits
_SCORED_TOKENS = 4_096


class ContinuousEngine(ModelEngine):
    """Runs requests in continuous batches, a forward a step. When memory runs out, half of the rows go back to wait.

    GPT-NeoX only.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        cache: Cache,
        *,
        max_rows: int = MAX_ROWS,
        prefix_sharing: bool = True,
        pace: Pace = CPU_PACE,
        heartbeat: Callable[[], None] = no_heartbeat,
    ) -> None:
        super().__init__(loaded, _SCORED_TOKENS, heartbeat)
        self._cache = cache
        self._schedule = Schedule(cache, max_rows, prefix_sharing, pace)
        install(loaded.model)

    def stats(self) -> dict[str, float]:
        """What has been done so far: steps, tokens, slots used of those there were, bytes of keys and values."""
        return {**self._schedule.usage.summary(), "peak_kv_bytes": self._cache.peak_bytes}

    @property
    def _num_rows(self) -> int:
        return len(self._schedule.waiting) + len(self._schedule.running)

    def _add(self, request: Request, constraint: Constraint | None) -> None:
        self._schedule.add(Sequence(request, constraint=constraint))

    @torch.inference_mode()
    def _generate(self) -> list[Sequence]:
        """Schedule, run, sample: one step."""
        try:
            return self._run_step()
        except OUT_OF_MEMORY:
            pass
        # Out of the except block, where the error's traceback would keep the step's tensors alive.
        return self._give_way()

    def _run_step(self) -> list[Sequence]:
        with allocator_errors():
            step = self._schedule.next_step()
            if not step:
                return []
            self._heartbeat()
            rows, logits = self._forward(step)
            token_ids, sound = next_tokens(logits, rows)
        self._schedule.advance(step)
        ended = self._take(rows, token_ids, sound)
        self._schedule.read(rows)
        for row in ended:
            self._schedule.end(row)
        return ended

    def _forward(self, step: Step) -> tuple[list[Sequence], Tensor]:
        """Return the rows whose next token can be chosen, and their logits, [rows, vocabulary]."""
        decoding, attention = self._cache.plan(step)
        ids = [row.token_ids[-1] for row in decoding]
        positions = self._positions(decoding)
        rows, last = list(decoding), list(range(len(decoding)))
        for chunk in step.chunks:
            ids += chunk.row.ids(chunk.start, chunk.stop)
            positions += range(chunk.start, chunk.stop)
            if chunk.is_last:
                rows.append(chunk.row)
                last.append(len(ids) - 1)
        num_logits = len(last)
        for numbers in (ids, positions, last):
            _pad(numbers)
        output = self._model(
            input_ids=torch.tensor([ids], device=self._device),
            position_ids=torch.tensor([positions], device=self._device),
            attention_mask=torch.zeros(1, 1, 1, 1, device=self._device),  # of four dimensions: taken as it is
            use_cache=False,
            logits_to_keep=torch.tensor(last, dtype=torch.long, device=self._device),
            step=attention,
        )
        return rows, output.logits[0, :num_logits]

    def _positions(self, decoding: SequenceOf[Sequence]) -> list[int]:
        return [row.num_cached for row in decoding]

    def _give_way(self) -> list[Sequence]:
        """Go on with half of the rows; a row that has no memory even alone fails."""
        row = self._schedule.give_way()
        self._free_memory()
        if row is None:
            return []
        row.failure = no_memory(row.request)
        self._schedule.end(row)
        return [row]


def _pad(numbers: list[int]) -> None:
    """Make their count a multiple of `_ROWS_STEP`; what is computed for the padding is never read."""
    numbers += [0] * (-len(numbers) % _ROWS_STEP)
