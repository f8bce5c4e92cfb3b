"""The continuous engine: each step schedules, runs and samples; a sequence that ends leaves its slot to the next one.

Prompts are fed in without padding, packed behind the decoding sequences' tokens; modules are Hugging Face's own,
attention is the cache's (`cache.py`). On CPUs, Llama-like models in int8 do without the modules (`cpu/layers.py`). An
answer depends on prompt, seed and parameters alone, not on the batch.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dolly_batch.engine.base import ModelEngine, no_memory
from dolly_batch.engine.continuous.cache import Cache, StepAttention, install
from dolly_batch.engine.continuous.cpu.attention_numba import CompiledAttention
from dolly_batch.engine.continuous.cpu.layers import CompiledLayers
from dolly_batch.engine.continuous.pace import CPU_LIMITS, StepLimits
from dolly_batch.engine.continuous.scheduler import MAX_SEQUENCES, Scheduler
from dolly_batch.engine.continuous.sequence import CachedSequence, Step
from dolly_batch.engine.grammar import Constraint
from dolly_batch.engine.memory import OUT_OF_MEMORY, allocator_errors
from dolly_batch.engine.protocol import no_heartbeat
from dolly_batch.engine.sampling import next_tokens
from dolly_batch.engine.weights.loading import LoadedModel
from dolly_batch.records import Request

# Products of fewer rows, or of an odd number in float64, give other bits. On Intel's AVX-512 CPUs, MKL's products of 8
# rows in float32 have other bits than those of 16, and are no faster.
_PADDED_TO, _PADDED_FROM = 8, 16
SCORED_TOKENS = 4_096


class ContinuousEngine(ModelEngine):
    """Runs requests in continuous batches, one forward a step.

    When memory runs out, half of the sequences wait again. `Architecture.continuous` says for which models it is.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        cache: Cache,
        *,
        max_sequences: int = MAX_SEQUENCES,
        prefix_sharing: bool = True,
        limits: StepLimits = CPU_LIMITS,
        max_scored_tokens: int = SCORED_TOKENS,
        heartbeat: Callable[[], None] = no_heartbeat,
    ) -> None:
        super().__init__(loaded, max_scored_tokens, heartbeat)
        self._cache = cache
        self._scheduler = Scheduler(cache, max_sequences, prefix_sharing, limits, self._stop_ids)
        self._layers = CompiledLayers.of(loaded, cache)
        install(loaded.model)

    def stats(self) -> dict[str, float]:
        """Counts so far: steps, tokens, slots and how many were used, bytes of keys and values now and at most."""
        memory = {"kv_bytes": self._cache.num_bytes, "peak_kv_bytes": self._cache.peak_bytes}
        return {**self._scheduler.stats.summary(), **memory}

    @property
    def _num_sequences(self) -> int:
        return len(self._scheduler.waiting) + len(self._scheduler.running)

    def _add(self, request: Request, constraint: Constraint | None) -> None:
        self._scheduler.add(CachedSequence(request, constraint=constraint))

    @torch.inference_mode()
    def _generate(self) -> list[CachedSequence]:
        """One step."""
        try:
            return self._run_step()
        except OUT_OF_MEMORY:
            pass
        # Out of the except block, where the error's traceback would keep the step's tensors alive.
        return self._preempt_half()

    def _run_step(self) -> list[CachedSequence]:
        with allocator_errors():
            step = self._scheduler.next_step()
            if not step:
                return []
            self._heartbeat()
            sequences, logits = self._forward(step)
            token_ids, sound = next_tokens(logits, sequences)
        return self._scheduler.postprocess(step, sequences, token_ids, sound)

    def _forward(self, step: Step) -> tuple[list[CachedSequence], Tensor]:
        """Return the sequences whose next token can be chosen, and their logits, [sequences, vocabulary]."""
        decoding, attention = self._cache.plan(step)
        ids = [sequence.token_ids[-1] for sequence in decoding]
        positions = self._positions(decoding)
        sequences, last = list(decoding), list(range(len(decoding)))
        for chunk in step.chunks:
            ids += chunk.sequence.ids(chunk.start, chunk.stop)
            positions += range(chunk.start, chunk.stop)
            if chunk.is_last:
                sequences.append(chunk.sequence)
                last.append(len(ids) - 1)
        if self._layers is not None and isinstance(attention, CompiledAttention):
            return sequences, self._layers.logits(ids, positions, last, attention)
        return sequences, self._run_modules(ids, positions, last, attention)

    def _run_modules(self, ids: list[int], positions: list[int], last: list[int], attention: StepAttention) -> Tensor:
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
        logits: Tensor = output.logits[0, :num_logits]
        return logits

    # A method of its own so that tests can shift positions and see the comparison with `generate` fail.
    def _positions(self, decoding: Sequence[CachedSequence]) -> list[int]:
        return [sequence.num_cached for sequence in decoding]

    def _preempt_half(self) -> list[CachedSequence]:
        """Continue with half of the sequences; one that has no memory even alone fails, and is returned."""
        sequence = self._without_memory()
        self._free_memory()
        if sequence is None:
            return []
        sequence.failure = no_memory(sequence.request)
        self._scheduler.end(sequence)
        return [sequence]

    def _without_memory(self) -> CachedSequence | None:
        """Make the next step smaller; return the sequence that cannot be."""
        return self._scheduler.preempt_half()


def _pad(numbers: list[int]) -> None:
    """Make their count a multiple of `_PADDED_TO`, `_PADDED_FROM` at least; what the padding computes is never read."""
    numbers += [0] * max(-len(numbers) % _PADDED_TO, _PADDED_FROM - len(numbers))
