"""The continuous engine on a GPU: the host launches the next step while the GPU still runs the last one.

Each step is schedule, run, sample, as on the CPU, but nothing waits for its tokens: they stay on the device, where the
next step reads them, and the host collects them one step late. A sequence that ended meanwhile has computed one token
too many, which is dropped. Sequences whose tokens must be known to choose the next one (grammars, repetition penalties)
are collected first. A step of decoding sequences alone is a recorded graph; in a step with prompts they are packed in
front of these.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from dolly_batch.engine.continuous.engine import SCORED_TOKENS, ContinuousEngine
from dolly_batch.engine.continuous.gpu.graphs import Decoder
from dolly_batch.engine.continuous.gpu.layers import forward_of
from dolly_batch.engine.continuous.gpu.pages import OutOfPages, Pages
from dolly_batch.engine.continuous.pace import StepLimits
from dolly_batch.engine.continuous.sequence import CachedSequence, Step
from dolly_batch.engine.host_device import Download, Timestamp
from dolly_batch.engine.memory import allocator_errors
from dolly_batch.engine.protocol import no_heartbeat
from dolly_batch.engine.sampling import needs_known_tokens, next_tokens_on_device
from dolly_batch.engine.weights.loading import LoadedModel

MAX_SEQUENCES = 1024
STEP_TOKENS = 8_192  # of prompts; enough to keep the matrix units busy, few enough for their activations
RECORD_AT = 4  # runs of a bucket of a long reach: those that a batch only passes through are not worth it
_PARTS = ("decode_s", "prefill_s", "choose_s")  # the second of all steps with prompts, the last with the output layer
GPU_LIMITS = StepLimits(chunk_tokens=2**30, step_tokens=STEP_TOKENS, admit_every=2, regrows=True)


@dataclass(frozen=True, slots=True)
class InFlightStep:
    """A launched step: the sequences whose next tokens it chooses, the tokens, and when its parts ran."""

    sequences: list[CachedSequence]
    token_ids: Download
    timestamps: list[Timestamp]  # between its parts, as `_PARTS` names them


class GpuEngine(ContinuousEngine):
    """Runs requests over pages, one step ahead of the tokens it has collected; see `ContinuousEngine`.

    `use_kernels` is whether tokens are chosen by the Triton kernel, `is_fused` whether layers run with kernels between
    their products, `use_graphs` whether decode steps are recorded.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        pages: Pages,
        *,
        max_sequences: int = MAX_SEQUENCES,
        prefix_sharing: bool = True,
        limits: StepLimits = GPU_LIMITS,
        use_kernels: bool = False,
        is_fused: bool = False,
        use_graphs: bool = False,
        max_scored_tokens: int = SCORED_TOKENS,
        heartbeat: Callable[[], None] = no_heartbeat,
    ) -> None:
        super().__init__(
            loaded,
            pages,
            max_sequences=max_sequences,
            prefix_sharing=prefix_sharing,
            limits=limits,
            max_scored_tokens=max_scored_tokens,
            heartbeat=heartbeat,
        )
        self._pages = pages
        self._use_kernels = use_kernels
        # The newest token of each sequence, by slot.
        self._last_ids = torch.zeros(len(pages.block_tables), dtype=torch.int64, device=loaded.device)
        record_at = RECORD_AT if use_graphs else None
        self._run_layers = forward_of(loaded, is_fused=is_fused)
        hidden_size = loaded.folder.config.hidden_size
        self._decoder = Decoder(self._run_layers, hidden_size, pages, self._last_ids, max_sequences, record_at)
        self._in_flight: InFlightStep | None = None
        self._timestamps: list[Timestamp] = []
        self._ended: list[CachedSequence] = []  # and not yet returned
        self._seconds = dict.fromkeys((*_PARTS, "waiting_s"), 0.0)

    def record_graphs(self) -> None:
        """Record the decode steps that there will be, before the first request; nothing without `use_graphs`."""
        self._decoder.record_all(self._heartbeat)

    def stats(self) -> dict[str, float]:
        """As on the CPU; and seconds of the device by part of the step, and of the host waiting for it."""
        memory = {"kv_bytes": self._pages.reserved_bytes, "num_graphs": self._decoder.num_graphs}
        return {**super().stats(), **self._seconds, **memory}

    def _run_step(self) -> list[CachedSequence]:
        if any(needs_known_tokens(sequence) for sequence in self._scheduler.running):
            self._collect()
        with allocator_errors():
            step = self._next_step()
            launched = self._launch(step) if step else None
        if launched is not None:
            self._scheduler.launched(step, launched.sequences)
        self._collect()
        self._in_flight = launched
        return self._take_ended()

    def _next_step(self) -> Step:
        """The next step; where sequences have outgrown the pages, some are preempted first."""
        while True:
            try:
                return self._scheduler.next_step()
            except OutOfPages:
                if self._in_flight is not None:
                    self._collect()  # sequences that ended have freed their pages
                else:
                    self._scheduler.preempt()

    def _launch(self, step: Step) -> InFlightStep:
        """Run a step and choose its tokens, without waiting for any of it."""
        self._heartbeat()
        sequences, logits = self._forward(step)
        token_ids = next_tokens_on_device(logits, sequences, self._use_kernels)
        slots = self._pages.upload_slots(sequences)
        timestamps = [*self._timestamps, Timestamp(self._device)]
        # Once the tokens have arrived, the device has passed the timestamps.
        launched = InFlightStep(sequences, Download(token_ids), timestamps)
        self._last_ids[slots] = token_ids.clamp(min=0)  # last, when nothing can run out of memory any more
        return launched

    def _forward(self, step: Step) -> tuple[list[CachedSequence], Tensor]:
        """Return the sequences whose next token can be chosen, and their logits, [sequences, vocabulary]."""
        self._timestamps = [Timestamp(self._device)]
        self._pages.write_block_tables()
        sequences, hidden = list(step.decoding), None
        if not step.chunks:
            slots = [sequence.location.slot for sequence in sequences]
            hidden = self._decoder.run(slots, self._positions(sequences))
        self._timestamps.append(Timestamp(self._device))
        if hidden is None:
            sequences, hidden = self._run_packed(step)
        self._timestamps.append(Timestamp(self._device))
        return sequences, self._model.get_output_embeddings()(hidden)

    def _run_packed(self, step: Step) -> tuple[list[CachedSequence], Tensor]:
        """Run chunks of prompts, and decoding sequences with them, whose products then cost next to nothing.

        Return the sequences whose next token can be chosen, and their last hidden states.
        """
        sequences, upload = list(step.decoding), self._pages.upload
        ids: list[int] = []
        positions, last = self._positions(sequences), list(range(len(sequences)))
        for chunk in step.chunks:
            ids += chunk.sequence.ids(chunk.start, chunk.stop)
            positions += range(chunk.start, chunk.stop)
            if chunk.is_last:
                sequences.append(chunk.sequence)
                last.append(len(positions) - 1)
        _, attention = self._pages.plan(step)
        newest = self._last_ids[self._pages.upload_slots(step.decoding)]
        packed = torch.cat([newest, upload(ids)])
        return sequences, self._run_layers(packed, upload(positions), attention, upload(last))

    def _collect(self) -> None:
        """Wait for the step in flight, if there is one, and give its sequences their tokens."""
        step, self._in_flight = self._in_flight, None
        if step is None:
            return
        token_ids = step.token_ids.wait()
        self._seconds["waiting_s"] += step.token_ids.waited_s
        for part, (start, end) in zip(_PARTS, pairwise(step.timestamps), strict=True):
            self._seconds[part] += end.since(start)
        sound = [token_id >= 0 for token_id in token_ids]
        self._ended += self._scheduler.collected(step.sequences, token_ids, sound)

    def _take_ended(self) -> list[CachedSequence]:
        ended, self._ended = self._ended, []
        return ended

    def _preempt_half(self) -> list[CachedSequence]:
        """Take less into the next steps, once it is known which sequences still run."""
        self._collect()
        return [*self._take_ended(), *super()._preempt_half()]

    def _without_memory(self) -> CachedSequence | None:
        return self._scheduler.shrink()
